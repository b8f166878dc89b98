"""Files and zip members: what lies there, read into memory, never unpacked to the disk.

A zip file is refused as a whole when it is encrypted, damaged, holds a path that leaves it, or
would grow beyond all reason: nothing of it is used then. No file of more than
``limits.MOST_DICOM_BYTES`` is read, and none that is no regular file.
"""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, Final

from client.imaging.case import Part
from client.imaging.limits import (
    MOST_DICOM_BYTES,
    MOST_ZIP_BYTES,
    MOST_ZIP_FILES,
    is_bomb,
)
from common.errors import CaseError
from common.records.regular_files import open_regular, read_regular

Identity = tuple[int, int, int, int]
Digests = dict[tuple[Part, Identity], bytes]

_ENCRYPTED: Final = 0x1
_EXPORT: Final = "Export the study again, as a folder or as a zip file without a password."
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Others ``zipfile`` unpacks without a limit."""
_ENTRY_BYTES: Final = 512
"""That an entry of a zip's list of files takes at most, on average; the name is most of it."""
_LEAVES: Final = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")
_UNREADABLE: Final = (
    EOFError, NotImplementedError, OSError, RuntimeError, ValueError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


def members(path: Path) -> list[Part]:
    """Return the files in the zip file at ``path``, sorted; raise CaseError (``case-zip``)."""
    try:
        size = path.stat().st_size
        with open_regular(path) as file:
            listed = _listed_bytes(file)
            if listed > MOST_ZIP_FILES * _ENTRY_BYTES:
                raise _refused(path, f"lists its files in {listed} bytes")
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
    except _UNREADABLE as error:
        raise _refused(path, f"cannot be read as a zip file ({_words(error)})") from error
    total = sum(entry.file_size for entry in entries)
    largest = max((entry.file_size for entry in entries), default=0)
    if len(entries) > MOST_ZIP_FILES:
        raise _refused(path, f"holds {len(entries)} files, more than {MOST_ZIP_FILES}")
    if total > MOST_ZIP_BYTES:
        raise _refused(path, f"would unpack to {total / 2**30:.0f} GiB")
    if largest > MOST_DICOM_BYTES:
        raise _refused(path, f"holds a file of {largest / 2**20:.0f} MiB when unpacked")
    if is_bomb(total, size):
        raise _refused(path, f"would grow {total // max(1, size)} fold when unpacked: a zip bomb")
    for entry in entries:
        if entry.flag_bits & _ENCRYPTED:
            raise _refused(path, "is encrypted")
        if entry.compress_type not in _METHODS:
            raise _refused(path, "is packed in another way than by deflate")
        if _LEAVES.search(entry.filename):
            raise _refused(path, "holds a file whose path leads out of it")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise _refused(path, "holds a symbolic link")
    return sorted(Part(path, entry.filename) for entry in entries if not entry.is_dir())


def contents(parts: Iterable[Part]) -> Iterator[tuple[Part, bytes]]:
    """Yield the bytes of each part; a zip file is opened once. Raises CaseError."""
    for path, group in groupby(parts, key=lambda part: part.path):
        first, *rest = group
        if not first.member:
            for part in (first, *rest):
                yield part, _file(part.path)
            continue
        try:
            with open_regular(path) as file, zipfile.ZipFile(file) as archive:
                for part in (first, *rest):
                    yield part, _member(archive, part)
        except _UNREADABLE as error:
            raise _refused(path, f"cannot be read to its end ({_words(error)})") from error


def identity_of(path: Path) -> Identity:
    """Return what changes when the file at ``path`` does; raise OSError."""
    facts = path.stat()
    return facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns


def digests(
    parts: Sequence[Part], make: Callable[[Part, bytes], bytes], known: Digests
) -> list[bytes]:
    """Return what ``make`` makes of each part's bytes; what is ``known`` is not read again.

    Raises CaseError.
    """
    try:
        keys = [(part, identity_of(part.path)) for part in parts]
    except OSError as error:
        raise unreadable(parts[0].path, error) from error
    by_part = dict(keys)
    for part, data in contents(part for part, identity in keys if (part, identity) not in known):
        known[part, by_part[part]] = make(part, data)
    return [known[key] for key in keys]


def _member(archive: zipfile.ZipFile, part: Part) -> bytes:
    entry = archive.getinfo(part.member)
    if entry.file_size > MOST_DICOM_BYTES or entry.compress_type not in _METHODS:
        raise ValueError("the zip file was changed after it was listed")
    with archive.open(entry) as stream:
        # What it holds beyond its size is not unpacked: its CRC differs.
        return stream.read(entry.file_size)


def _listed_bytes(file: BinaryIO) -> int:
    """Return how long the list of a zip's files is, all of which ``zipfile`` reads at once."""
    found = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # as zipfile itself finds it
    return int(found[zipfile._ECD_SIZE]) if found else 0  # type: ignore[attr-defined]


def _file(path: Path) -> bytes:
    try:
        return read_regular(path, most_bytes=MOST_DICOM_BYTES)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> CaseError:
    """Return the error for a file that the system does not let us read."""
    return CaseError(
        f"{path} cannot be read: {error.strerror or error}.",
        do="Check that the file is there and that this user may read it.",
        code="case-file",
    )


def _refused(path: Path, fault: str) -> CaseError:
    return CaseError(f"{path} {fault}.", do=_EXPORT, code="case-zip")


def _words(error: Exception) -> str:
    """Say what is wrong without the name of a member, which may be a patient's."""
    return getattr(error, "strerror", None) or type(error).__name__
