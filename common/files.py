"""Write a file whole or not at all.

Every file that must survive a kill or a full disk is written here: temporary file beside the
target, fsync, rename, fsync of the folder. The append-only journal has its own writer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import StateError


def _explain(error: OSError, path: Path) -> StateError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StateError(
            f"The disk is full: {path} was not written; what was there before is unchanged.",
            do="Free space on that disk and run the command again.",
            code="disk-full",
        )
    return StateError(
        f"Cannot write {path}: {error.strerror}.", do="Check the folder's owner and permissions."
    )


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well it becomes ``path`` atomically.

    Raises StateError when the disk is full or the folder cannot be written; no half file stays.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        temporary = None
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def held(path: Path, *, what: str, attempts: int = 5) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs; it ends with the process, however it ends.

    Raises StateError if another process holds it: ``what`` says what that one is doing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        # Somebody who only looks (``is_held``) holds it for a moment.
        for attempt in range(attempts):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write ``data`` to ``path`` atomically; raise StateError."""
    with replacing(path, mode=mode) as temporary:
        temporary.write_bytes(data)


def write_secret(path: Path, data: bytes) -> None:
    """Write ``data`` readable by its owner only."""
    write_bytes(path, data, mode=0o600)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: Path, *, what: str) -> Any:
    """Read JSON; raise StateError that calls the file ``what``."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StateError(f"There is no {what} at {path}.", do="Check the path.") from None
    except OSError as error:
        raise StateError(f"Cannot read {what} {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise StateError(
            f"The {what} {path} is not valid JSON: {error}.", do="Ask for the file again."
        ) from error
