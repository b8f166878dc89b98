"""Files that came from somebody else are opened only if they are regular files.

A named pipe would stop the reader for ever, a device such as ``/dev/zero`` never ends, and to open
some devices does something. What is no regular file is refused before it is opened, a link to one
too; what was put in its place meanwhile is refused before it is read.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import Final

_KINDS: Final = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)
_AT_ONCE: Final = (
    getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
)
"""Which of them there are depends on the system: the last one is Windows' alone."""


def open_regular(path: Path, *, most_bytes: int | None = None) -> io.BufferedReader:
    """Open the file at ``path`` to be read.

    Raises OSError, at once, if it is no regular file or has more than ``most_bytes``.
    """
    _check(path, path.stat(), most_bytes)
    handle = os.open(path, os.O_RDONLY | _AT_ONCE)
    try:
        _check(path, os.fstat(handle), most_bytes)
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_regular(path: Path, *, most_bytes: int) -> bytes:
    """Return the bytes of the file at ``path``; raise OSError as ``open_regular`` does."""
    with open_regular(path, most_bytes=most_bytes) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1)  # to read at most a number takes that much memory first
    if len(data) > size:
        raise OSError(errno.EFBIG, "it is longer than the system says", str(path))
    return data


def _check(path: Path, facts: os.stat_result, most_bytes: int | None) -> None:
    if not stat.S_ISREG(facts.st_mode):
        kind = next((words for is_kind, words in _KINDS if is_kind(facts.st_mode)), "something")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    if most_bytes is not None and facts.st_size > most_bytes:
        words = f"it has {facts.st_size} bytes, more than {most_bytes}"
        raise OSError(errno.EFBIG, words, str(path))
