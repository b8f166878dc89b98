"""The door to what POSIX systems have and Windows has not: a clinic's computer may be either.

On Windows a lock is on a byte behind the end of every file, which hinders nobody who reads; a
folder's entries are synced by the system alone; a file's mode says nothing, its folder's
permissions do. A site and a coordinator need POSIX: what locks their folders must be seen by all
who use them, and Windows and Linux do not see each other's locks on a shared drive.

Source: ``_locking`` in Microsoft's C runtime, which ``msvcrt`` calls.
"""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from typing import Any, Final

from common.errors import StateError

try:
    import fcntl
except ImportError:
    _FLOCK = False
else:
    _FLOCK = True

POSIX: Final = _FLOCK
_BEHIND: Final = 2**31 - 2  # the runtime takes no place from 2**31 on
_POLL_S: Final = 0.05


def required(what: str, *, do: str) -> None:
    """Raise StateError (``posix``) unless this is a POSIX system, which ``what`` needs."""
    if not POSIX:
        raise StateError(
            f"{what} needs a POSIX system such as Linux: this one has no POSIX file locks.",
            do=do,
            code="posix",
        )


def lock(descriptor: int, *, shared: bool = False, wait: bool = True) -> None:
    """Lock an open file until it is closed, by whatever ends the process at the latest.

    ``shared`` lets others in who want it shared as well; Windows does not know that. Raises
    BlockingIOError without ``wait`` while another holds it, OSError where files cannot be locked.
    """
    if POSIX:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        return
    while not _locked_on_windows(descriptor):
        if not wait:
            raise BlockingIOError("another process holds the file")
        time.sleep(_POLL_S)


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on the disk; raise OSError."""
    if not POSIX:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _locked_on_windows(descriptor: int) -> bool:
    msvcrt: Any = importlib.import_module("msvcrt")  # typed on Windows only
    place = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, _BEHIND, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except PermissionError:
        return False
    finally:
        os.lseek(descriptor, place, os.SEEK_SET)
    return True
