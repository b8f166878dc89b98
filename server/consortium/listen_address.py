"""Where the gateway listens, which need not be what hospitals call, and whether it can.

Behind NAT, a port forward or a load balancer hospitals call one address and port, and the gateway
is bound to another. Whoever wants a port asks here first: what is in the way is said in words
before anything is started.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass
from typing import Final

from common.errors import StateError

_ALL_V4: Final = "0.0.0.0"  # noqa: S104 # nosec B104
_ALL: Final = "::"


@dataclass(frozen=True)
class Listening:
    """An address of this machine and a port of it. ``::`` is every address, of IPv4 too."""

    address: str
    port: int

    @classmethod
    def read(cls, said: str, *, default: str) -> Listening:
        """Read ``PORT`` or ``ADDRESS:PORT``; a port alone is at ``default``. Raises StateError."""
        address, _, port = said.rpartition(":")
        address = address.strip("[]") or default
        number = int(port) if port.isascii() and port.isdigit() else 0
        try:
            address = str(ipaddress.ip_address(address))
        except ValueError:
            number = 0
        if not 1 <= number <= 65535:
            raise StateError(
                f"{said} is no address and port to listen at.",
                do="Give a port, such as 9443, or an address of this machine and a port: "
                "192.0.2.10:9443 or [2001:db8::10]:9443. A name is not taken.",
                code="listen",
            )
        return cls(address, number)

    @property
    def here(self) -> str:
        """The address by which this machine itself comes to it."""
        return {_ALL_V4: "127.0.0.1", _ALL: "::1"}.get(self.address, self.address)

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}"


def interface(host: str) -> str:
    """Return where to listen so that ``host`` reaches us; a loopback address stays private."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host.lower() == "localhost" else host)
    except ValueError:
        return _ALL_V4
    if address.is_loopback:
        return str(address)
    return _ALL if address.version == 6 else _ALL_V4


def bound(what: str, address: str, port: int, *, else_do: str) -> socket.socket:
    """Return a socket that is bound; raise StateError (code ``port``) with which port, and why.

    ``what`` will listen there; ``else_do`` says how it is given another port.
    """
    try:
        return _bound(address, port)
    except OSError as error:
        why, do = _why(error, port)
        where = Listening(address, port)
        raise StateError(
            f"The {what} cannot listen at {where}: {why}.", do=f"{do} {else_do}", code="port"
        ) from None


def refusal(address: str, port: int) -> str:
    """Return why nothing can listen there now, or an empty text."""
    try:
        _bound(address, port).close()
    except OSError as error:
        return _why(error, port)[0]
    return ""


def _bound(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address != _ALL)
        listener.bind((address, port))
        listener.listen(1)  # two sockets that do not listen may share a port
    except OSError:
        listener.close()
        raise
    return listener


def _why(error: OSError, port: int) -> tuple[str, str]:
    """Return what is in the way, and what to do about it."""
    if error.errno == errno.EADDRINUSE:
        return (
            "another process has that port",
            f"`ss -ltnp 'sport = :{port}'` names it. End it, or take another port:",
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return (
            "this user may not take a port below 1024",
            "Take a port above 1023 and let the firewall or load balancer forward the public port "
            "to it:",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address", "`ip address` shows those that it has; then:"
    return str(error.strerror or error), "Choose another address or port:"
