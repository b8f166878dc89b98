"""Where the dashboard listens: this machine alone, or an address of it by TLS."""

from __future__ import annotations

from pathlib import Path

from common.web.auth import issue, link
from common.web.listen_address import Place as AnyPlace


class Place(AnyPlace):
    """An address and port. Anything but the loopback address is served by TLS."""

    @staticmethod
    def tokens(folder: Path) -> Path:
        """Return where the coordinator's folder keeps the hashes of one-time tokens."""
        return folder / "flower" / "dashboard"

    def link(self, folder: Path) -> str:
        """Make a one-time link."""
        return link(self.address, issue(self.tokens(folder)))
