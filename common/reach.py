"""How far one gets on the way to a TLS door: its name, its port, its certificate, its time.

Each step is bounded by a short time, so that a network that swallows packets is told from one that
refuses. The certificate's name and chain are verified; its days are handed on and not judged here:
with a wrong clock they say nothing, and with the door's own time they do.

Out of scope: what any of it means (``common.checkup``), and anything beyond one answer.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from cryptography import x509

PATIENCE_S: Final = 5.0

_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL
_MOST_BYTES: Final = 16 * 1024
_MOST_ADDRESSES: Final = 3
_WRONG_NAME: Final = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH


@dataclass(frozen=True)
class Reached:
    """How far it went; what is empty or None was not reached."""

    host: str
    port: int
    addresses: tuple[str, ...] = ()
    name_problem: str = ""
    """``timeout``, or the resolver's words."""
    port_problem: str = ""
    """``timeout``, ``refused``, or the system's words."""
    tls_problem: str = ""
    """``name``, ``chain``, ``timeout``, or the library's words."""
    issuer: str = ""
    """Of the certificate that is not trusted."""
    names: tuple[str, ...] = ()
    """For which the certificate is."""
    valid: tuple[dt.datetime, dt.datetime] | None = None
    """From when and until when (UTC) the certificate is valid."""
    verified: bool = False
    answered: bool = False
    ahead_s: float | None = None
    """Seconds by which this machine's clock is ahead of the door's; whole, as its header is."""


def reach(
    host: str,
    port: int,
    *,
    authority: Path,
    patience_s: float = PATIENCE_S,
    address: str | None = None,
    resolve: Callable[[str, int], tuple[str, ...]] | None = None,
    now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> Reached:
    """Go up to the door of ``host`` at ``port``; whatever goes wrong is in what is returned.

    ``authority`` are the certificates that are trusted. ``address`` is where to connect instead of
    what the name stands for. Every step takes ``patience_s`` at most.
    """
    found = Reached(host, port)
    if address is None:
        addresses, problem = _resolved(resolve or _look_up, host, port, patience_s)
        found = replace(found, addresses=addresses, name_problem=problem)
    else:
        found = replace(found, addresses=(address,))
    problem = ""
    for one in found.addresses[:_MOST_ADDRESSES]:
        try:
            raw = socket.create_connection((one, port), timeout=patience_s)
        except OSError as error:
            problem = _connecting(error)
            continue
        with raw:
            found = _secured(found, raw, authority, patience_s, now)
        if found.tls_problem in {"chain", "name"}:
            found = _described(found, one, patience_s)
        return found
    return replace(found, port_problem=problem)


def _resolved(
    look_up: Callable[[str, int], tuple[str, ...]], host: str, port: int, patience_s: float
) -> tuple[tuple[str, ...], str]:
    """Return the addresses of a name, and what was wrong; a resolver knows no time of its own."""
    answers: queue.SimpleQueue[tuple[tuple[str, ...], str]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put((look_up(host, port), ""))
        except (OSError, UnicodeError) as error:
            answers.put(((), str(getattr(error, "strerror", None) or error)))

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=patience_s)
    except queue.Empty:
        return (), "timeout"


def _look_up(host: str, port: int) -> tuple[str, ...]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(one[4][0]) for one in found))


def _connecting(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    return str(error.strerror or error)


def _secured(
    found: Reached,
    raw: socket.socket,
    authority: Path,
    patience_s: float,
    now: Callable[[], dt.datetime],
) -> Reached:
    try:
        context = ssl.create_default_context(cafile=str(authority))
        context.verify_flags |= _NO_CHECK_TIME
        with context.wrap_socket(raw, server_hostname=found.host) as door:
            found = replace(_with_certificate(found, door), verified=True)
            return _asked(found, door, patience_s, now)
    except ssl.SSLCertVerificationError as error:
        kind = "name" if error.verify_code in _WRONG_NAME else "chain"
        return replace(found, tls_problem=kind)
    except TimeoutError:
        return replace(found, tls_problem="timeout")
    except (OSError, ValueError) as error:
        words = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        return replace(found, tls_problem=str(words).replace("_", " ").lower())


def _described(found: Reached, address: str, patience_s: float) -> Reached:
    """Look at a certificate that is not trusted, for words about it and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        contextlib.suppress(OSError),
        socket.create_connection((address, found.port), timeout=patience_s) as raw,
        context.wrap_socket(raw) as door,
    ):
        return _with_certificate(found, door)
    return found


def _with_certificate(found: Reached, door: ssl.SSLSocket) -> Reached:
    shown = door.getpeercert(binary_form=True)
    if shown is None:
        return found
    certificate = x509.load_der_x509_certificate(shown)
    names: tuple[str, ...] = ()
    with contextlib.suppress(x509.ExtensionNotFound):
        own = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = (
            *own.get_values_for_type(x509.DNSName),
            *map(str, own.get_values_for_type(x509.IPAddress)),
        )
    return replace(
        found,
        issuer=certificate.issuer.rfc4514_string(),
        names=names,
        valid=(certificate.not_valid_before_utc, certificate.not_valid_after_utc),
    )


def _asked(
    found: Reached, door: ssl.SSLSocket, patience_s: float, now: Callable[[], dt.datetime]
) -> Reached:
    """Ask for nothing in particular: any answer has the time."""
    until = time.monotonic() + patience_s
    head = b""
    with contextlib.suppress(OSError):
        door.sendall(
            f"GET / HTTP/1.1\r\nHost: {found.host}\r\nConnection: close\r\n\r\n".encode("ascii")
        )
        while b"\r\n\r\n" not in head and len(head) < _MOST_BYTES:
            if (left := until - time.monotonic()) <= 0:
                break
            door.settimeout(left)
            more = door.recv(4096)
            if not more:
                break
            head += more
    at = now()
    if not head.startswith(b"HTTP/"):
        return found
    for line in head.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        if name.lower() == "date":
            with contextlib.suppress(ValueError, TypeError):
                theirs = parsedate_to_datetime(value.strip())
                return replace(found, answered=True, ahead_s=round((at - theirs).total_seconds()))
    return replace(found, answered=True)
