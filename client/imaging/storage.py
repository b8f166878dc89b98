"""Files that are either whole or not there: written beside their place, synced, then renamed.

Out of scope: what is in a file, and locks. Of two processes that write one path at once, each
leaves a whole file and the later one stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from common.errors import StateError

_PREFIX: Final = ".partial-"
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Let ``write`` fill a new file and put it at ``path``, readable by its owner only.

    ``durable`` waits until file and name are on the disk; without it a power failure may lose
    the file, but a killed process never leaves half of it under its name. Raises StateError when
    the disk is full or the folder cannot be written; nothing is left behind then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=_PREFIX, dir=path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        partial.replace(path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):  # it is gone once it has its name
            partial.unlink()


def unwritable(path: Path, error: OSError) -> StateError:
    """Return the error to raise when ``path`` could not be written because of ``error``."""
    if error.errno in _NO_SPACE:
        return StateError(
            f"No space left on the disk of {path.parent}.",
            do="Free space there, or choose a folder on another disk, and start again.",
            code="disk-full",
        )
    return StateError(
        f"Cannot write {path}: {error.strerror or error}.",
        do="Check that the folder exists, that its disk works and that this user may write there.",
        code="disk-write",
    )


def sweep(folder: Path, *, older_than_s: float = 86_400.0) -> int:
    """Remove what killed processes left half-written below ``folder``; return how many files."""
    limit = time.time() - older_than_s
    removed = 0
    for partial in folder.rglob(f"{_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # another process sweeps as well
            if partial.stat().st_mtime < limit:
                partial.unlink()
                removed += 1
    return removed


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
