"""Where the dashboard listens: this machine alone, or an address of it by TLS."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from common.door import issue, link
from common.errors import StateError


@dataclass(frozen=True)
class Place:
    """An address and port. Anything but the loopback address is served by TLS."""

    host: str
    port: int

    @classmethod
    def read(cls, said: str) -> Place:
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
                f"{said} is no place for the dashboard.",
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

    @staticmethod
    def tokens(folder: Path) -> Path:
        """Return where the coordinator's folder keeps the hashes of one-time tokens."""
        return folder / "flower" / "dashboard"

    def link(self, folder: Path) -> str:
        """Make a one-time link."""
        return link(self.address, issue(self.tokens(folder)))
