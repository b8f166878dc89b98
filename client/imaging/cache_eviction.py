"""Which prepared cases give way when there is no room for more: those unused for longest.

An entry is in use as long as something has it mapped: the mapping keeps the file open, which holds
a shared lock of it (flock) and ends with the mapping or the process, however that ends. When it was
used last is the file's access time, which the cache sets itself.

Invariants: what is in use is never removed; nothing is removed without a line in the log; a process
that is killed anywhere leaves whole entries and no lock. Out of scope: what an entry holds.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from common import posix

_LOG = logging.getLogger(__name__)

_JUST_NOW_NS: Final = 10**9
"""Used again within this time, an entry's time of last use is not written again."""


class _Entry(NamedTuple):
    used_ns: int
    size: int
    path: Path


def use(descriptor: int) -> None:
    """Note that an open entry is used now, and keep it while the open file is mapped."""
    with contextlib.suppress(OSError):  # without locks nothing can be locked to be removed either
        posix.lock(descriptor, shared=True)
    with contextlib.suppress(OSError):  # another user's entry: it counts as used when it was made
        facts, now = os.fstat(descriptor), time.time_ns()
        if now - facts.st_atime_ns > _JUST_NOW_NS:
            os.utime(descriptor, ns=(now, facts.st_mtime_ns))


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time count what is in ``folder``, make room and fill it."""
    descriptor = os.open(folder / ".room", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        posix.lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def used_bytes(folder: Path) -> int:
    """Return what entries take, half-written ones of other processes included."""
    return sum(entry.size for entry in _files(folder))


def make_room(folder: Path, needed: int, *, why: str, began_ns: int) -> int:
    """Remove entries that nobody uses, those unused for longest first; return the bytes freed.

    Ends when ``needed`` bytes are free. ``why`` is said in the log; so it is if an entry was used
    since ``began_ns``, for then the same cases are prepared again and again.
    """
    gone: list[_Entry] = []
    freed = 0
    for entry in sorted(one for one in _files(folder) if one.path.suffix == ".prepared"):
        if freed >= needed:
            break
        if _removed(entry.path):
            gone.append(entry)
            freed += entry.size
    if gone:
        again = gone[-1].used_ns >= began_ns
        _LOG.warning(
            "%s: removed %d prepared cases (%.2f GB), last used %s to %s.%s",
            why,
            len(gone),
            freed / 1e9,
            _date(gone[0]),
            _date(gone[-1]),
            " Some were used by this very run, which prepares them again: give the cache more room."
            if again
            else "",
        )
    return freed


def _files(folder: Path) -> Iterator[_Entry]:
    for path in (*folder.glob("*/*.prepared"), *folder.glob("*/.partial-*")):
        with contextlib.suppress(FileNotFoundError):  # another process removes as well
            facts = path.stat()
            yield _Entry(facts.st_atime_ns, facts.st_size, path)


def _removed(path: Path) -> bool:
    """Remove an entry unless somebody uses it."""
    try:
        with path.open("r+b") as file:  # a lock over a network needs the right to write
            posix.lock(file.fileno(), wait=False)
            path.unlink()
    except OSError:  # in use, gone already, or nobody can say
        return False
    return True


def _date(entry: _Entry) -> dt.datetime:
    return dt.datetime.fromtimestamp(entry.used_ns / 1e9).replace(second=0, microsecond=0)
