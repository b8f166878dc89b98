"""Studies that appear in a folder: one subfolder or zip file each.

A study is complete when a file ``NAME.complete`` stands beside it, or when no name, size or time of
its files has changed for some seconds. Hidden names and ``*.part`` are left alone.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final

from client.clinic.watch.found_study import Found
from common.errors import StateError

COMPLETE: Final = ".complete"


class Folder:
    """Watches ``root``; ``clock`` gives seconds."""

    def __init__(
        self, root: Path, *, quiet_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root, self._quiet_s, self._clock = root, quiet_s, clock
        self._seen: dict[str, tuple[str, float]] = {}

    def look(self) -> Iterator[Found]:
        """Yield the complete studies by name; raise StateError if the folder cannot be read."""
        now = self._clock()
        try:
            entries = sorted(self._root.iterdir())
        except OSError as error:
            raise StateError(
                f"The watched folder {self._root} cannot be read: {error.strerror}.",
                do="Check that it exists and that this user may read it.",
                code="watch-folder",
            ) from error
        names = {entry.name for entry in entries}
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        for entry in entries:
            if not _is_study(entry):
                continue
            try:
                fingerprint = _fingerprint(entry)
            except FileNotFoundError:  # it changes while it is looked at
                self._seen.pop(entry.name, None)
                continue
            known, since = self._seen.get(entry.name, ("", now))
            if known != fingerprint:
                since = now
                self._seen[entry.name] = (fingerprint, since)
            if f"{entry.name}{COMPLETE}" in names or now - since >= self._quiet_s:
                yield Found(
                    entry.name, fingerprint, functools.partial(_here, entry), settled=_nothing
                )


def _here(path: Path) -> AbstractContextManager[Path]:
    return nullcontext(path)


def _nothing() -> None:
    """A folder remembers nothing."""


def _is_study(path: Path) -> bool:
    if path.name.startswith(".") or path.suffix in (".part", COMPLETE):
        return False
    return path.is_dir() or path.suffix.lower() == ".zip"


def _fingerprint(path: Path) -> str:
    """Return a digest of the names, sizes and times of a study's files; one without any is new."""
    found = hashlib.sha256()
    files = [path]
    if path.is_dir():
        files = sorted(Path(root) / name for root, _, names in os.walk(path) for name in names)
    for file in files:
        facts = file.stat()
        found.update(f"{file.relative_to(path)}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return found.hexdigest()
