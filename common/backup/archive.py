"""The file that a backup is: one line of magic, one of JSON that says how to read on, a tar.

With a passphrase the tar is encrypted: AES-256-GCM in pieces of 1 MiB, whose nonces count and mark
the last one, under a key that scrypt made from the passphrase. The two lines are authenticated with
each piece: a changed, moved, missing or added byte is found before anything after it is used.

Standards: RFC 7914 (scrypt), NIST SP 800-38D (GCM), Hoang et al. 2015 (STREAM). Out of scope: what
is in the tar (``common.backup.folder_backup``).
"""

from __future__ import annotations

import contextlib
import io
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from common.errors import IdentityError, StateError
from common.records import format_versions
from common.records.regular_files import open_regular

_MAGIC: Final = b"gliofed-backup\n"
_PIECE: Final = 1 << 20
_TAG: Final = 16
_SCRYPT: Final = {"n": 1 << 17, "r": 8, "p": 1}
"""128 MiB and about half a second."""
_MOST_HEADER: Final = 4096
_SHORTEST: Final = 8


def read_passphrase(path: Path | None) -> bytes | None:
    """Return the first line of a passphrase file, or None; raise StateError, IdentityError."""
    if path is None:
        return None
    try:
        line = path.read_bytes().split(b"\n", 1)[0].strip()
    except OSError as error:
        raise StateError(
            f"Cannot read the passphrase file {path}: {error.strerror}.", do="Check the path."
        ) from error
    if len(line) < _SHORTEST:
        raise IdentityError(
            f"The passphrase in {path} has {len(line)} bytes; it needs at least {_SHORTEST}.",
            do="Choose a longer one: it protects private keys.",
            code="passphrase",
        )
    return line


@contextlib.contextmanager
def sealing(target: BinaryIO, passphrase: bytes | None) -> Iterator[BinaryIO]:
    """Yield a file to write the tar to; what is written is whole when the block ends well."""
    header: dict[str, Any] = {"format": format_versions.NEWEST["backup"], "encryption": None}
    salt, prefix = secrets.token_bytes(16), secrets.token_bytes(7)
    if passphrase is not None:
        header["encryption"] = {**_SCRYPT, "salt": salt.hex(), "nonce": prefix.hex()}
    lines = _MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n"
    target.write(lines)
    if passphrase is None:
        yield target
        return
    pieces = _Sealed(target, AESGCM(_key(passphrase, salt, _SCRYPT)), prefix, lines)
    yield pieces  # type: ignore[misc]  # all that tarfile asks of a file is write
    pieces.finish()


@contextlib.contextmanager
def opening(path: Path, passphrase: bytes | None) -> Iterator[BinaryIO]:
    """Yield the tar of the archive at ``path`` to read; raise StateError, IdentityError."""
    try:
        file = open_regular(path)
    except OSError as error:
        raise StateError(
            f"Cannot read the backup {path}: {error.strerror}.", do="Check the path."
        ) from error
    with file:
        lines, encryption = _header(path, file)
        if encryption is None:
            yield file
            return
        if passphrase is None:
            raise IdentityError(
                f"The backup {path} is encrypted.", do="Give --passphrase-file.", code="passphrase"
            )
        salt, prefix, costs = encryption
        yield io.BufferedReader(
            _Opened(path, file, AESGCM(_key(passphrase, salt, costs)), prefix, lines)
        )


def broken(path: Path, what: str) -> StateError:
    return StateError(
        f"The backup {path} {what}.",
        do="Nothing was restored. Take another copy of it, or an older backup.",
        code="backup-damaged",
    )


def _header(path: Path, file: BinaryIO) -> tuple[bytes, tuple[bytes, bytes, dict[str, int]] | None]:
    if file.readline(len(_MAGIC)) != _MAGIC:
        raise broken(path, "is no backup that gliofed made, or its beginning was changed")
    line = file.readline(_MOST_HEADER)
    try:
        header = json.loads(line)
        number, encryption = header["format"], header["encryption"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise broken(path, "has a damaged second line") from None
    format_versions.check("backup", number, where=path)
    if encryption is None:
        return _MAGIC + line, None
    try:
        salt, prefix = bytes.fromhex(encryption["salt"]), bytes.fromhex(encryption["nonce"])
        costs = {name: encryption[name] for name in _SCRYPT}
    except (ValueError, KeyError, TypeError):
        raise broken(path, "has a damaged second line") from None
    if len(prefix) != 7 or costs != _SCRYPT:  # costs that a stranger chose could fill the memory
        raise broken(path, "has a second line that gliofed never wrote")
    return _MAGIC + line, (salt, prefix, costs)


def _key(passphrase: bytes, salt: bytes, costs: dict[str, int]) -> bytes:
    return Scrypt(salt=salt, length=32, **costs).derive(passphrase)


def _nonce(prefix: bytes, number: int, *, last: bool) -> bytes:
    return prefix + number.to_bytes(4, "big") + (b"\1" if last else b"\0")


class _Sealed:
    """Encrypts what is written, a piece at a time; the last piece is written by ``finish``."""

    def __init__(self, target: BinaryIO, cipher: AESGCM, prefix: bytes, lines: bytes) -> None:
        self._target, self._cipher, self._prefix, self._lines = target, cipher, prefix, lines
        self._number = 0
        self._waiting = bytearray()

    def write(self, data: bytes) -> int:
        self._waiting += data
        while len(self._waiting) > _PIECE:  # one piece is kept back: it may be the last
            self._put(bytes(self._waiting[:_PIECE]), last=False)
            del self._waiting[:_PIECE]
        return len(data)

    def finish(self) -> None:
        self._put(bytes(self._waiting), last=True)

    def _put(self, piece: bytes, *, last: bool) -> None:
        nonce = _nonce(self._prefix, self._number, last=last)
        self._target.write(self._cipher.encrypt(nonce, piece, self._lines))
        self._number += 1


class _Opened(io.RawIOBase):
    """Decrypts what is read; each piece is authentic before a byte of it is given out."""

    def __init__(
        self, path: Path, source: BinaryIO, cipher: AESGCM, prefix: bytes, lines: bytes
    ) -> None:
        self._path, self._source, self._cipher = path, source, cipher
        self._prefix, self._lines = prefix, lines
        self._number = 0
        self._next = source.read(_PIECE + _TAG)
        self._ready = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            self._open_piece()
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _open_piece(self) -> None:
        piece, self._next = self._next, self._source.read(_PIECE + _TAG)
        self._ended = not self._next
        nonce = _nonce(self._prefix, self._number, last=self._ended)
        try:
            self._ready = self._cipher.decrypt(nonce, piece, self._lines)
        except (InvalidTag, ValueError):
            if self._number == 0:
                raise IdentityError(
                    f"The passphrase does not open {self._path}, or its first megabyte was changed "
                    "or cut.",
                    do="Nothing was restored. Try the right passphrase, or another copy.",
                    code="passphrase",
                ) from None
            where = self._number * _PIECE
            raise broken(self._path, f"was changed or cut short after {where} bytes") from None
        self._number += 1
