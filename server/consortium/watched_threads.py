"""The executor's threads that must live while the coordinator serves, and what each last said.

    flower/threads/registering   registers the node keys of admitted hospitals, every second
    flower/threads/rounds        gives orders; said is why it was interrupted last

A thread touches its file whenever it has done its work, and writes into it why it could not:
`gliofed-server health` and `doctor` read both, so that a thread that has ended, or fails over and
over, shows with its cause. What cannot be written shows as silence.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.foreign_text import printable

SILENT_S: Final = 60.0
"""A thread that works every second waits for a SuperLink that is started anew, but not longer."""

REGISTERING: Final = "registering"
ROUNDS: Final = "rounds"

_WORK: Final = {
    REGISTERING: "registers hospitals",
    ROUNDS: "gives orders",
}
_LETTERS: Final = 300


@dataclass(frozen=True)
class WatchedThreads:
    """The notes in ``folder``."""

    folder: Path

    def begin(self) -> None:
        """Forget what was noted before: the threads begin now."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ROUNDS).unlink(missing_ok=True)
        self.well(REGISTERING)

    def well(self, name: str) -> None:
        """Take note that a thread has just done its work."""
        self._note(name, "")

    def failing(self, name: str, why: str) -> None:
        """Take note that a thread could not do its work."""
        self._note(name, printable(why)[:_LETTERS])

    def troubles(self) -> list[str]:
        """Return a sentence for each thread that has ended, or that fails."""
        said = []
        for name, work in _WORK.items():
            path = self.folder / name
            try:
                why, since_s = path.read_text(encoding="utf-8"), time.time() - path.stat().st_mtime
            except (OSError, UnicodeDecodeError):
                continue  # an executor that never began is said by its silence as a whole
            if name == REGISTERING and since_s > SILENT_S:
                said.append(f"The thread that {work} has done nothing for {since_s:.0f} s.")
            elif why and since_s <= SILENT_S:
                said.append(f"The thread that {work} failed {since_s:.0f} s ago: {why}")
        return said

    def _note(self, name: str, text: str) -> None:
        with contextlib.suppress(OSError):
            (self.folder / name).write_text(text, encoding="utf-8")
