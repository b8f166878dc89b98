"""Results are stored in a PACS without DICOMweb, by C-STORE: ``dicom://TITLE@HOST:PORT``.

The only door to pynetdicom. ``dicoms://`` is the same in TLS; ``REQUESTS_CA_BUNDLE`` names the
certificates of a hospital's own authority. DIMSE knows no password: who may store is told by
titles, addresses and networks. Each object travels as it is written, or in implicit VR if the
archive takes nothing else. What is refused does not keep the other objects back. Out of scope:
finding and fetching, storage commitment, a certificate of our own.

Sources: DICOM PS3.4 annex B, PS3.7 9.1.1, PS3.8, PS3.15 annex B.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS, code_to_category

from client.imaging.dicom.headers import quiet
from common.errors import CaseError

logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # what it logs names patients

TITLE: Final = "GLIOFED"
"""Our own title, where none is given."""

_PLAIN, _TLS = "dicom", "dicoms"
_TITLE_OK: Final = re.compile(r"(?=.*[!-~])[ -\[\]-~]{1,16}")  # PS3.5: no backslash, no control
_IMPLICIT: Final = "1.2.840.10008.1.2"
_CONNECT_S: Final = 10.0
_AGREE_S: Final = 30.0
_ANSWER_S: Final = 300.0  # for one object, its way there included
_PARK_S: Final = 5.0
_STORED: Final = ("Success", "Warning")  # a warning: stored, with elements changed or left out
_UNKNOWN_CALLED, _UNKNOWN_CALLING = 7, 3  # PS3.8 table 9-21
_BROKEN: Final = "pacs-unreachable"


@dataclass(frozen=True)
class Node:
    """A storage provider: its application entity title and where it listens."""

    title: str
    host: str
    port: int
    tls: bool


def is_dimse(url: str) -> bool:
    """Say whether ``url`` asks for DIMSE rather than for DICOMweb."""
    return urlsplit(url).scheme in (_PLAIN, _TLS)


def parse(url: str) -> Node:
    """Return the node that ``url`` names; raise CaseError (``pacs-url``)."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    title = unquote(parts.username or "")
    rest = parts.password or parts.path.strip("/") or parts.query or parts.fragment
    if not (parts.hostname and port and _TITLE_OK.fullmatch(title)) or rest:
        raise CaseError(
            "The PACS's address is not of the form dicom://TITLE@HOST:PORT.",
            do="Ask who runs the PACS for its AE title (up to 16 characters), host and port, as in "
            "dicom://ARCHIVE@pacs.hospital.example:11112.",
            code="pacs-url",
        )
    return Node(title, parts.hostname, port, tls=parts.scheme == _TLS)


def store(url: str, objects: Sequence[Any], *, calling: str = TITLE) -> int:
    """Store the DICOM ``objects`` in the node at ``url`` and return how many; ``calling`` is us.

    An object that the archive stored with a warning counts. Raises CaseError: ``pacs-url``,
    ``pacs-refused`` (of the association, a class or an object), ``pacs-unreachable``.
    """
    node = parse(url)
    if not _TITLE_OK.fullmatch(calling):
        raise CaseError(
            f"{calling!r} is no AE title: 1 to 16 ASCII characters, no backslash.",
            do="Give the title under which the PACS knows this machine.",
            code="pacs-url",
        )
    with quiet(), _associated(url, node, _contexts(objects), calling) as association:
        taken = {str(one.abstract_syntax) for one in association.accepted_contexts}
        refused: dict[str, str] = {}
        for number, one in enumerate(objects, start=1):
            if why := _refusal(url, association, one, number):
                refused[_name(one, number)] = why
    if refused:
        told = "; ".join(f"{name}: {why}" for name, why in refused.items())
        known = all(str(one.SOPClassUID) in taken for one in objects)
        raise CaseError(
            f"The PACS at {url} did not store {len(refused)} of {len(objects)} objects ({told}).",
            do="Ask who runs the PACS "
            + ("what its log says of them." if known else "whether it can be set to take these.")
            + " The result is kept: `gliofed-clinic send` sends it again.",
            code="pacs-refused",
        )
    return len(objects)


def _refusal(url: str, association: Association, one: Any, number: int) -> str:
    """Store ``one`` and return "", or why the archive does not have it."""
    try:
        answer = association.send_c_store(one, msg_id=number)
    except ValueError:  # no context was accepted that ``one`` can be sent in
        return "the class is not accepted"
    except RuntimeError as error:  # the association ended after the object before
        raise _broken(url, _name(one, number)) from error
    if "Status" not in answer:
        raise _broken(url, _name(one, number))
    status = int(answer.Status)
    if code_to_category(status) in _STORED:
        return ""
    meaning = STORAGE_SERVICE_CLASS_STATUS.get(status, ("", ""))[1]
    return f"status {status:04X}H" + (f", {meaning}" if meaning else "")


def _contexts(objects: Sequence[Any]) -> list[PresentationContext]:
    """Return one context for each class and syntax, so that the archive answers to each."""
    wanted: dict[tuple[str, str], None] = {}
    for one in objects:
        syntax = one.file_meta.TransferSyntaxUID
        wanted[str(one.SOPClassUID), str(syntax)] = None
        if not syntax.is_compressed:
            wanted[str(one.SOPClassUID), _IMPLICIT] = None  # PS3.5 10.1: always to be offered
    return [build_context(kind, syntax) for kind, syntax in wanted]


@contextlib.contextmanager
def _associated(
    url: str, node: Node, contexts: list[PresentationContext], calling: str
) -> Iterator[Association]:
    connected: list[socket.socket] = []

    def opened(event: evt.Event) -> None:
        wrapped = event.assoc.dul.socket
        if wrapped is not None and wrapped.socket is not None:
            connected.append(wrapped.socket)
            # Without it each small PDU waits for the other side's delayed acknowledgement.
            wrapped.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wrapped.socket.settimeout(_ANSWER_S)  # else an archive that stops reading holds us

    us = AE(ae_title=calling)
    us.connection_timeout = _CONNECT_S
    us.acse_timeout = _AGREE_S
    us.dimse_timeout = us.network_timeout = _ANSWER_S
    try:
        association = us.associate(
            node.host,
            node.port,
            contexts=contexts,
            ae_title=node.title,
            tls_args=(_trusting(), node.host) if node.tls else None,
            evt_handlers=[(evt.EVT_CONN_OPEN, opened)],
        )
        if not association.is_established:
            raise (
                _not_agreed(url, node, association, calling)
                if connected
                else _unreachable(url, node)
            )
        try:
            with _answers_are_ours(association):
                yield association
        except BaseException:
            association.abort()
            raise
        association.release()
    except socket.gaierror as error:
        raise _unreachable(url, node) from error
    finally:
        for one in connected:  # pynetdicom leaves it open where the archive went first
            one.close()


class _Held(threading.Event):
    """Stops whoever waits until it is let go; ``parked`` says that somebody does."""

    def __init__(self) -> None:
        super().__init__()
        self.parked = threading.Event()

    def set(self) -> None:
        """Change nothing: pynetdicom calls this after each object."""

    def wait(self, timeout: float | None = None) -> bool:
        self.parked.set()
        return super().wait(timeout)

    def let_go(self) -> None:
        super().set()


@contextlib.contextmanager
def _answers_are_ours(association: Association) -> Iterator[None]:
    """Keep pynetdicom's own thread from taking the archive's answers.

    It looks for messages between two objects and is asked to pause for each, but may be believed
    to pause when it has just stopped doing so: then a quick answer is lost and waited for in vain.
    On a busy machine that happened to one association in twelve. Here it pauses once for all.
    """
    held, before = _Held(), association._reactor_checkpoint
    association._reactor_checkpoint = held
    held.parked.wait(_PARK_S)
    try:
        yield
    finally:
        association._reactor_checkpoint = before
        held.let_go()


def _trusting() -> ssl.SSLContext:
    """Return who may vouch for the archive: the hospital's authority if named, else the system's.

    Raises CaseError (``pacs-url``) where ``REQUESTS_CA_BUNDLE`` names no certificates.
    """
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or None
    folder = bundle is not None and Path(bundle).is_dir()
    try:
        return ssl.create_default_context(
            cafile=None if folder else bundle, capath=bundle if folder else None
        )
    except OSError as error:
        raise CaseError(
            f"REQUESTS_CA_BUNDLE names no readable certificates: {bundle}.",
            do="Name a PEM file with the certificate of the hospital's authority.",
            code="pacs-url",
        ) from error


def _not_agreed(url: str, node: Node, association: Association, calling: str) -> CaseError:
    """Say why there is a connection but no association."""
    if association.is_rejected:
        answer = association.acceptor.primitive
        diagnostic = None if answer is None else answer.diagnostic
        by_user = answer is not None and answer.result_source == 1
        if by_user and diagnostic == _UNKNOWN_CALLED:
            why, do = f"it is not called {node.title}", "Check the title in --pacs."
        elif by_user and diagnostic == _UNKNOWN_CALLING:
            why = f"it does not know {calling}"
            do = "Have this machine entered there, or give the title it is known by: --aet."
        else:
            why = "no reason given" if answer is None else answer.reason_str.lower()
            do = f"Have {calling} entered there with this machine's address, or try again later."
        said, code = f"rejected the association: {why}", "pacs-refused"
    elif association.rejected_contexts:
        kinds = {str(one.abstract_syntax.name) for one in association.rejected_contexts
                 if one.abstract_syntax is not None}  # fmt: skip
        said = f"accepts none of these classes: {', '.join(sorted(kinds))}"
        do, code = "Ask who runs the PACS whether it can be set to take them.", "pacs-refused"
    else:
        said, code = "broke off, or did not answer, before an association was made", _BROKEN
        do = "Check that a DICOM service listens there" + (
            "." if node.tls else " and does not want TLS (dicoms://)."
        )
    return CaseError(f"The PACS at {url} {said}. Nothing was sent.", do=do, code=code)


def _unreachable(url: str, node: Node) -> CaseError:
    certificate = (
        ", that it speaks TLS, and that its certificate is of an authority in REQUESTS_CA_BUNDLE"
        if node.tls
        else ""
    )
    return CaseError(
        f"There is no connection to the PACS at {url}. Nothing was sent.",
        do=f"Check host and port, that the service runs and no firewall is between{certificate}. "
        "The result is kept: `gliofed-clinic send` sends it again.",
        code=_BROKEN,
    )


def _broken(url: str, name: str) -> CaseError:
    return CaseError(
        f"The PACS at {url} broke off, or did not answer, at {name}.",
        do="Try again with `gliofed-clinic send`: the result is kept, and what is stored already "
        "is sent again as the same object. If it happens each time, ask whether the PACS takes "
        "objects from this machine and its title (--aet).",
        code=_BROKEN,
    )


def _name(one: Any, number: int) -> str:
    """Return what ``one`` is called without a word of its headers' values but its class."""
    file = Path(str(getattr(one, "filename", None) or f"object {number}")).name
    return f"{file} ({one.SOPClassUID.name})"
