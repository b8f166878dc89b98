"""Where a page or metrics listen: an address and a port."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Self

from common.errors import StateError


@dataclass(frozen=True)
class Place:
    """An address and port. What is beyond the loopback address is ``secure``: served by TLS."""

    host: str
    port: int

    @classmethod
    def read(cls, said: str, *, what: str = "the dashboard") -> Self:
        """Read ``PORT`` or ``HOST:PORT``; raise StateError."""
        host, _, port = said.rpartition(":")
        host = host.strip("[]") or "127.0.0.1"
        try:
            ipaddress.ip_address(host)
            number = int(port)
        except ValueError:
            number = 0
        if not 1 <= number <= 65535:
            raise StateError(
                f"{said} is no place for {what}.",
                do="Give a port, such as 8470, or an address of this machine and a port.",
                code="place",
            )
        return cls(host, number)

    @property
    def secure(self) -> bool:
        return not ipaddress.ip_address(self.host).is_loopback

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}"
