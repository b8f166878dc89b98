"""Write a file whole or not at all.

Every file that must survive a kill or a full disk is written here: temporary file beside the
target, fsync, rename, fsync of the folder. The append-only journal has its own writer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from common import posix
from common.errors import StateError
from common.records.regular_files import read_regular

_MOST_JSON_BYTES: Final = 2**28

PARTIAL: Final = ".partial-"
"""Begins the name of a file that is being written."""


def unwritable(path: Path, error: OSError) -> StateError:
    """Return the error to raise when ``path`` could not be written because of ``error``."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StateError(
            f"The disk is full: {path} was not written; what was there before is unchanged.",
            do="Free space on that disk and run the command again.",
            code="disk-full",
        )
    return StateError(
        f"Cannot write {path}: {error.strerror or error}.",
        do="Check that the folder exists, that its disk works, that this user may write there and "
        "that no other program has the file open.",
        code="disk-write",
    )


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o644, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well it becomes ``path`` atomically.

    ``durable`` waits until file and name are on the disk; without it a power failure may lose the
    file, but a killed process never leaves half of it under its name. Raises StateError when the
    disk is full or the folder cannot be written; no half file stays.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("r+b") as file:  # Windows syncs no file that is open to be read
            temporary.chmod(mode)
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        temporary = None
        if durable:
            posix.sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def held(path: Path, *, what: str, attempts: int = 5, shared: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs; it ends with the process, however it ends.

    ``shared`` lets others hold it as well who want it shared. Raises StateError if another process
    holds it otherwise: ``what`` says what that one is doing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        # Somebody who only looks (``is_held``) holds it for a moment.
        for attempt in range(attempts):
            try:
                posix.lock(file.fileno(), shared=shared, wait=False)
                break
            except BlockingIOError:
                if attempt + 1 < attempts:
                    time.sleep(0.1)
        else:
            raise StateError(
                f"{what} already: another process holds {path}.",
                do="Stop that one first.",
                code="in-use",
            )
        yield


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock file ``path``."""
    try:
        with held(path, what="", attempts=1):
            return False
    except StateError:
        return True


def sweep(folder: Path, *, older_than_s: float = 86_400.0) -> int:
    """Remove what killed processes left half-written below ``folder``; return how many files."""
    limit = time.time() - older_than_s
    removed = 0
    for partial in folder.rglob(f"{PARTIAL}*"):
        with contextlib.suppress(FileNotFoundError):  # another process sweeps as well
            if partial.stat().st_mtime < limit:
                partial.unlink()
                removed += 1
    return removed


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Write ``data`` to ``path`` atomically; raise StateError."""
    with replacing(path, mode=mode, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_secret(path: Path, data: bytes) -> None:
    """Write ``data`` readable by its owner only."""
    write_bytes(path, data, mode=0o600)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Write ``value`` as indented JSON with a final newline."""
    write_bytes(path, json_bytes(value), mode=mode)


def json_bytes(value: Any) -> bytes:
    """Return what ``write_json`` writes."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def read_json(path: Path, *, what: str) -> Any:
    """Read JSON; raise StateError that calls the file ``what``."""
    try:
        return json.loads(read_regular(path, most_bytes=_MOST_JSON_BYTES))
    except FileNotFoundError:
        raise StateError(f"There is no {what} at {path}.", do="Check the path.") from None
    except OSError as error:
        raise StateError(f"Cannot read {what} {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise StateError(
            f"The {what} {path} is not valid JSON: {error}.", do="Ask for the file again."
        ) from error
