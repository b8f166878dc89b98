"""Where the SuperLink listens: its port of the loopback address, and the certificate for it.

    flower/hub/port, hub.crt, hub.key    see ``common.process.loopback_tls``
    flower/hub/reached                   touched whenever the executor has reached it

Only processes of this machine and user come here; hospitals come to the gateway. ``serve`` makes
it anew at each start, and everything that calls the SuperLink reads it here, so that nothing
between the coordinator's own processes depends on the public certificate or on a port that was
free when the consortium was founded.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from common.process.loopback_tls import LoopbackAddress


@dataclass(frozen=True)
class Hub(LoopbackAddress):
    """The SuperLink's address as it is now."""

    @classmethod
    def make(cls, flower: Path) -> Hub:
        """Make it anew below the folder of Flower's files."""
        hub = cls._of(flower).create()
        hub._reached.unlink(missing_ok=True)
        return hub

    @classmethod
    def open(cls, flower: Path) -> Hub:
        """Return it as it is now; raise StateError if `serve` made none."""
        return cls._of(flower).known()

    @classmethod
    def _of(cls, flower: Path) -> Hub:
        return cls(flower / "hub", 0, name="SuperLink", restart="gliofed-server serve")

    @property
    def _reached(self) -> Path:
        return self.folder / "reached"

    def reached(self) -> None:
        """Take note that the executor has reached the SuperLink just now."""
        self._reached.touch(mode=0o600)

    def reached_s_ago(self) -> float | None:
        """Return how long ago the executor reached the SuperLink, or None if it never did."""
        try:
            return max(0.0, time.time() - self._reached.stat().st_mtime)
        except FileNotFoundError:
            return None
