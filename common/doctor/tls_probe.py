"""How far one gets on the way to a TLS door: its name, its port, its certificate, its time.

Each step is bounded by a short time, so that a network that swallows packets is told from one that
refuses. The certificate's name and chain are verified; its days are handed on and not judged here:
with a wrong clock they say nothing, and with the door's own time they do. Where a proxy stands on
the way, it is asked by CONNECT, and the name is its to resolve.

Out of scope: what any of it means (``common.doctor.machine_checks``), and anything beyond one
answer.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final, Literal, TypeVar

from cryptography import x509

from common.process.proxies import Proxy, bracketed

PATIENCE_S: Final = 5.0

_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL
_MOST_BYTES: Final = 16 * 1024
_MOST_ADDRESSES: Final = 3
_WRONG_NAME: Final = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH
_WRONG_DAYS: Final = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED
_STATUS: Final = re.compile(r"HTTP/1\.[01] (\d{3})\b[ -~]*")
_MOST_LETTERS: Final = 120
_AUTHENTICATE: Final = "proxy-authenticate"

_Done = TypeVar("_Done")


@dataclass(frozen=True)
class Through:
    """How far it went at the proxy."""

    proxy: Proxy
    problem: Literal["", "name", "port", "tls", "answer", "status"] = ""
    """What stood in the way: its name, its port, TLS to it, no answer in HTTP, or its refusal."""
    words: str = ""
    """``timeout``, ``refused``, ``chain``, ``days``, ``closed``, a status line, or other words."""
    status: int = 0
    issuer: str = ""
    """Of the proxy's own certificate, where that is not trusted."""
    schemes: tuple[str, ...] = ()
    """By which it lets users prove who they are."""


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
    """``name``, ``chain``, ``timeout``, ``closed``, or the library's words."""
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
    through: Through | None = None
    """The proxy on the way, if there is one; then there are no addresses."""


def reach(
    host: str,
    port: int,
    *,
    authority: Path,
    patience_s: float = PATIENCE_S,
    address: str | None = None,
    proxy: Proxy | None = None,
    own: tuple[Path, Path] | None = None,
    resolve: Callable[[str, int], tuple[str, ...]] | None = None,
    now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> Reached:
    """Go up to the door of ``host`` at ``port``; whatever goes wrong is in what is returned.

    ``authority`` are the certificates that are trusted. ``address`` is where to connect instead of
    what the name stands for, ``proxy`` who is asked to connect, ``own`` the certificate and the key
    to show to a server that asks for one. Every step takes ``patience_s`` at most.
    """
    found = Reached(host, port)
    look_up = resolve or _look_up
    at, at_port = (host, port) if proxy is None else (proxy.host, proxy.port)
    addresses, problem = (
        ((address,), "") if address else _resolved(look_up, at, at_port, patience_s)
    )
    if proxy is None:
        found = replace(found, addresses=addresses, name_problem=problem)
    elif problem:
        return replace(found, through=Through(proxy, "name", problem))
    for one in addresses[:_MOST_ADDRESSES]:
        try:
            raw = socket.create_connection((one, at_port), timeout=patience_s)
        except OSError as error:
            problem = _connecting(error)
            continue
        with raw:
            carrier: socket.socket | _Tls = raw
            if proxy is not None:
                try:
                    carrier = _passed(raw, proxy, host, port, patience_s=patience_s)
                except _Refused as refused:
                    return replace(found, through=refused.through)
                found = replace(found, through=Through(proxy))
            found = _secured(
                found, carrier, authority=authority, own=own, patience_s=patience_s, now=now
            )
        if found.tls_problem in {"chain", "name"}:
            found = _described(found, one, proxy, patience_s)
        return found
    if proxy is not None:
        return replace(found, through=Through(proxy, "port", problem))
    return replace(found, port_problem=problem)


def context_for(proxy: Proxy) -> ssl.SSLContext:
    """Return by what the certificate of an ``https`` proxy is checked; raise OSError."""
    return ssl.create_default_context(cafile=str(proxy.authority) if proxy.authority else None)


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


class _Tls:
    """TLS over what sends and receives: a socket, or TLS to a proxy. Raises as sockets do."""

    def __init__(
        self,
        carrier: socket.socket | _Tls,
        context: ssl.SSLContext,
        name: str,
        *,
        patience_s: float,
    ) -> None:
        self._carrier = carrier
        self._patience_s = patience_s
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        self._do(self._tls.do_handshake)

    def certificate(self) -> bytes | None:
        return self._tls.getpeercert(binary_form=True)

    def settimeout(self, seconds: float) -> None:
        self._patience_s = seconds

    def sendall(self, data: bytes) -> None:
        self._do(lambda: self._tls.write(data))

    def recv(self, most: int) -> bytes:
        try:
            return self._do(lambda: self._tls.read(most))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def _do(self, act: Callable[[], _Done]) -> _Done:
        until = time.monotonic() + self._patience_s
        while True:
            try:
                done = act()
            except ssl.SSLWantReadError:
                self._flush()
                data = _received(self._carrier, until)
                if data:
                    self._in.write(data)
                else:
                    self._in.write_eof()
            except OSError:
                with contextlib.suppress(OSError):  # the other side is told why, if it listens
                    self._flush()
                raise
            else:
                self._flush()
                return done

    def _flush(self) -> None:
        if self._out.pending:
            self._carrier.sendall(self._out.read())


class _Refused(Exception):  # noqa: N818
    """The proxy does not let pass."""

    def __init__(self, through: Through) -> None:
        super().__init__()
        self.through = through


def _received(carrier: socket.socket | _Tls, until: float) -> bytes:
    """Return what comes next, or nothing at the end; raise TimeoutError after ``until``."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    carrier.settimeout(left)
    return carrier.recv(_MOST_BYTES)


def _passed(
    raw: socket.socket, proxy: Proxy, host: str, port: int, *, patience_s: float
) -> socket.socket | _Tls:
    """Ask the proxy for the way and return it; raise _Refused."""
    carrier: socket.socket | _Tls = raw
    if proxy.scheme == "https":
        try:
            carrier = _Tls(raw, context_for(proxy), proxy.host, patience_s=patience_s)
        except (OSError, ValueError) as error:
            told = Through(proxy, "tls", _securing(error))
            if told.words == "chain":
                told = replace(told, issuer=_issuer(raw, proxy.host, patience_s))
            raise _Refused(told) from error
    target = f"{bracketed(host)}:{port}"
    said = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.authorization:
        said.append(f"Proxy-Authorization: {proxy.authorization}")
    try:
        carrier.sendall("\r\n".join([*said, "", ""]).encode())
        head = _head(carrier, patience_s)
    except OSError as error:
        raise _Refused(Through(proxy, "answer", _securing(error))) from error
    line, *headers = head.decode("latin-1").split("\r\n")
    status = _STATUS.match(line)
    if status is None:
        raise _Refused(Through(proxy, "answer", "no HTTP" if line else "closed"))
    if not status[1].startswith("2"):
        fields = [one.partition(":") for one in headers]
        schemes = [v.split()[0] for n, _, v in fields if v.strip() and n.lower() == _AUTHENTICATE]
        raise _Refused(
            Through(
                proxy,
                "status",
                status[0].strip()[:_MOST_LETTERS],
                status=int(status[1]),
                schemes=tuple(dict.fromkeys(schemes)),
            )
        )
    return carrier


def _issuer(raw: socket.socket, name: str, patience_s: float) -> str:
    """Return by whom the certificate of a TLS proxy is signed, from a connection of its own."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(raw.getpeername()[:2], timeout=patience_s) as again,
    ):
        shown = _Tls(again, _trusting_all(), name, patience_s=patience_s).certificate()
        if shown is not None:
            return x509.load_der_x509_certificate(shown).issuer.rfc4514_string()
    return ""


def _head(carrier: socket.socket | _Tls, patience_s: float) -> bytes:
    """Return the head of an HTTP answer, or as much as comes before the end."""
    until = time.monotonic() + patience_s
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _MOST_BYTES:
        more = _received(carrier, until)
        if not more:
            break
        head += more
    return head.partition(b"\r\n\r\n")[0]


def _secured(
    found: Reached,
    carrier: socket.socket | _Tls,
    *,
    authority: Path,
    own: tuple[Path, Path] | None,
    patience_s: float,
    now: Callable[[], dt.datetime],
) -> Reached:
    try:
        context = ssl.create_default_context(cafile=str(authority))
        context.verify_flags |= _NO_CHECK_TIME
        if own is not None:
            context.load_cert_chain(*own)
        door = _Tls(carrier, context, found.host, patience_s=patience_s)
        found = replace(_with_certificate(found, door), verified=True)
        return _asked(found, door, patience_s, now)
    except (OSError, ValueError) as error:
        return replace(found, tls_problem=_securing(error))


def _securing(error: Exception) -> str:
    """Return in a word, or in the library's, why TLS was not made."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _WRONG_DAYS:
            return "days"
        return "name" if error.verify_code in _WRONG_NAME else "chain"
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ssl.SSLEOFError | ConnectionResetError | BrokenPipeError):
        return "closed"
    words = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return str(words).replace("_", " ").lower()


def _trusting_all() -> ssl.SSLContext:
    """Return what looks at a certificate that is not trusted, for words about it alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _described(found: Reached, address: str, proxy: Proxy | None, patience_s: float) -> Reached:
    """Look at the door's certificate, which is not trusted."""
    port = found.port if proxy is None else proxy.port
    with (
        contextlib.suppress(OSError, _Refused),
        socket.create_connection((address, port), timeout=patience_s) as raw,
    ):
        carrier: socket.socket | _Tls = raw
        if proxy is not None:
            carrier = _passed(raw, proxy, found.host, found.port, patience_s=patience_s)
        door = _Tls(carrier, _trusting_all(), found.host, patience_s=patience_s)
        return _with_certificate(found, door)
    return found


def _with_certificate(found: Reached, door: _Tls) -> Reached:
    shown = door.certificate()
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
    found: Reached, door: _Tls, patience_s: float, now: Callable[[], dt.datetime]
) -> Reached:
    """Ask for nothing in particular: any answer has the time."""
    head = b""
    with contextlib.suppress(OSError):
        door.sendall(
            f"GET / HTTP/1.1\r\nHost: {found.host}\r\nConnection: close\r\n\r\n".encode("ascii")
        )
        head = _head(door, patience_s)
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
