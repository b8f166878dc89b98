"""Back up a folder while it is in use, check a backup, and restore it into a new folder.

A backup is what the disk would hold if the machine were switched off at one moment. While it is
made, the journal's lock is held, and if any other file changes meanwhile it is begun again; SQLite
files are copied by SQLite. All code survives being switched off at any moment, so that what is
restored goes on.

A manifest, signed with the folder's own key, stands last in the archive: each file with its length
and SHA-256. ``restore`` reads the archive twice: nothing is written before all of it was checked,
and the folder appears under its name whole, by one rename. Restored files are for
their owner alone.

Taken are files at the top with the suffixes that gliofed uses and the named folders; links are
never followed. Everything else is left out, and the manifest names it. Out of scope: what a site or
a coordinator must settle after it was restored (``client.study.restore_reconciliation``,
``server.rounds.restore_account``).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.backup import archive
from common.backup.archive import broken
from common.errors import IdentityError, StateError
from common.records import format_versions
from common.records.atomic_files import PARTIAL, replacing, unwritable
from common.records.journal import Journal
from common.trust.identity import Identity, Statement, fingerprint

BACKUP: Final = "backup"
Kind = Literal["site", "coordinator"]

_MANIFEST: Final = "manifest.json"
_MOST_MANIFEST: Final = 64 << 20
_SUFFIXES: Final = frozenset({".json", ".jsonl", ".toml", ".crt", ".torn", ".sqlite"})
_SQLITE: Final = (".sqlite-wal", ".sqlite-shm", ".sqlite-journal")
_ATTEMPTS: Final = 10
_BLOCK: Final = 1 << 20


class _ChangedError(Exception):
    """A file is not the one any more that was listed."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Model):
    """One file of a backup. ``mtime_ns`` counts: the newest update is found by it."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    mtime_ns: int = Field(ge=0)


class Manifest(_Model):
    """What a backup holds."""

    kind: Kind
    name: str
    """The site's, or the consortium's."""
    consortium: str
    created: str
    version: str
    journal_head: str
    left_out: tuple[str, ...] = ()
    files: dict[str, File]

    @property
    def size(self) -> int:
        return sum(one.size for one in self.files.values())


@dataclass(frozen=True)
class Source:
    """A folder to back up: whose it is, which key signs, which folders below it count."""

    folder: Path
    kind: Kind
    name: str
    consortium: str
    key: str
    """Path of the signing key in the folder."""
    folders: tuple[str, ...]

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / "journal.jsonl")


def write(source: Source, to: Path, *, passphrase: bytes | None) -> Manifest:
    """Write a backup of ``source`` to the file ``to``, or into the folder; raise StateError."""
    if to.is_dir():
        stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
        to = to / f"{source.name.replace(' ', '-')}-{stamp}.backup"
    if to.exists():
        raise StateError(f"{to} exists already.", do="Choose another name; backups are kept.")
    with replacing(to, mode=0o600) as temporary:
        for _ in range(_ATTEMPTS):
            with (
                contextlib.suppress(_ChangedError),
                source.journal.held() as head,
                temporary.open("wb") as target,
            ):
                before = _listing(source)
                manifest = _write(source, before, head, target, passphrase)
                if _listing(source) == before:
                    break
        else:
            raise StateError(
                f"{source.folder} changed each of the {_ATTEMPTS} times that it was copied.",
                do="Run the command again when less is going on there.",
                code="backup-busy",
            )
    return manifest


def verify(
    path: Path, *, kind: Kind, passphrase: bytes | None = None, signed_by: str | None = None
) -> Manifest:
    """Read and check all of a backup; write nothing.

    ``signed_by`` is the fingerprint of the key that must have signed it. Raises StateError for what
    is damaged, of another kind or newer; IdentityError for a wrong passphrase or signature.
    """
    return _verify(path, kind=kind, passphrase=passphrase, signed_by=signed_by)[0]


def restore(
    path: Path,
    to: Path,
    *,
    kind: Kind,
    key: str,
    finish: Callable[[Path, Manifest], None],
    passphrase: bytes | None = None,
    signed_by: str | None = None,
) -> Manifest:
    """Verify a backup and restore it to ``to``, which is new or empty.

    ``finish`` gets the restored folder before it appears under its name. Raises as ``verify``, and
    StateError if ``to`` is not empty or the disk is full: then nothing is there.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise StateError(
            f"{to} is not empty: a backup is restored into a new folder only.",
            do="Choose another folder, or move what is there away.",
            code="not-empty",
        )
    manifest, signer = _verify(path, kind=kind, passphrase=passphrase, signed_by=signed_by)
    to = to.absolute()
    staging = to.parent / f".{to.name}.restoring"  # of a killed restore, if it is there
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(mode=0o700)
        with _members(path, passphrase) as members:
            for name, content in members:
                if name != _MANIFEST:
                    _extract(path, staging, name, content, manifest.files)
        if Identity.load(staging / key).public != signer:
            raise broken(path, "is not signed by the key that is in it")
        finish(staging, manifest)
        _sync_folders(staging)
        staging.replace(to)
        _sync(to.parent)
    except OSError as error:
        raise unwritable(to, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _write(
    source: Source,
    listing: dict[str, tuple[int, int, int]],
    head: str,
    target: BinaryIO,
    passphrase: bytes | None,
) -> Manifest:
    files: dict[str, File] = {}
    with (
        archive.sealing(target, passphrase) as sealed,
        tarfile.open(fileobj=sealed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, (size, mtime_ns, _) in listing.items():
            path = source.folder / name
            with _opened(path, size) as (content, length):
                hashed = _Hashed(content)
                tar.addfile(_info(name, length), hashed)
            files[name] = File(sha256=hashed.sha256, size=length, mtime_ns=mtime_ns)
        manifest = Manifest(
            kind=source.kind,
            name=source.name,
            consortium=source.consortium,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            version=version("gliofed"),
            journal_head=head,
            left_out=tuple(_left_out(source)),
            files=files,
        )
        body = {"format": format_versions.NEWEST["backup"], **manifest.model_dump(mode="json")}
        signed = Identity.load(source.folder / source.key).sign(BACKUP, body).dumps().encode()
        tar.addfile(_info(_MANIFEST, len(signed)), io.BytesIO(signed))
    return manifest


@contextlib.contextmanager
def _opened(path: Path, size: int) -> Iterator[tuple[BinaryIO, int]]:
    """Yield a file to copy and how many bytes of it; raise _ChangedError if it is another one."""
    if path.suffix == ".sqlite":
        data = _sqlite(path)
        yield io.BytesIO(data), len(data)
        return
    try:
        content = path.open("rb")
    except FileNotFoundError:
        raise _ChangedError from None
    with content:
        if os.fstat(content.fileno()).st_size != size:
            raise _ChangedError
        yield content, size


def _listing(source: Source) -> dict[str, tuple[int, int, int]]:
    """Return every file to take, with what changes when it is written: size, time, inode.

    SQLite's own copy is of one moment whatever is written beside, so that its files may change.
    """
    tops = [p for p in sorted(source.folder.iterdir()) if p.suffix in _SUFFIXES]
    below = [p for name in source.folders for p in sorted((source.folder / name).rglob("*"))]
    found: dict[str, tuple[int, int, int]] = {}
    for path in (*tops, *below):
        if path.is_symlink() or path.name.startswith(PARTIAL) or path.name.endswith(_SQLITE):
            continue
        try:
            if path.is_file():
                about = path.stat()
                seen = (about.st_size, about.st_mtime_ns, about.st_ino)
                name = str(PurePosixPath(path.relative_to(source.folder)))
                found[name] = (0, 0, about.st_ino) if path.suffix == ".sqlite" else seen
        except FileNotFoundError:
            continue  # it was replaced meanwhile: the listings differ, and all is done again
    return found


def _left_out(source: Source) -> list[str]:
    taken = {*source.folders, *(name.split("/")[0] for name in _listing(source))}
    return sorted(
        path.name
        for path in source.folder.iterdir()
        if path.name not in taken and not path.name.endswith(_SQLITE)
    )


def _sqlite(path: Path) -> bytes:
    """Return a copy of a database as it is at one moment; raise StateError."""
    try:
        with (
            contextlib.closing(
                sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)
            ) as a,
            contextlib.closing(sqlite3.connect(":memory:")) as b,
        ):
            a.backup(b)
            return b.serialize()
    except sqlite3.Error as error:
        raise StateError(
            f"{path} cannot be copied: {error}.",
            do="Nothing was backed up. `gliofed-site audit` says what is wrong with it.",
            code="backup-source",
        ) from error


def _verify(
    path: Path, *, kind: Kind, passphrase: bytes | None, signed_by: str | None
) -> tuple[Manifest, str]:
    seen: dict[str, tuple[str, int]] = {}
    statement: Statement | None = None
    with _members(path, passphrase) as members:
        for name, content in members:
            if statement is not None or name in seen:
                raise broken(path, "holds more than its manifest says")
            if name == _MANIFEST:
                try:
                    statement = Statement.loads(content.read(_MOST_MANIFEST).decode())
                except (IdentityError, UnicodeDecodeError):
                    raise broken(path, "has a damaged manifest") from None
                continue
            hashed, size = _Hashed(content), 0
            while block := hashed.read(_BLOCK):
                size += len(block)
            seen[name] = hashed.sha256, size
    if statement is None:
        raise broken(path, "was cut short: its manifest is missing")
    manifest = _manifest(path, statement)
    if manifest.kind != kind:
        raise StateError(
            f"{path} is the backup of a {manifest.kind} ({manifest.name}), not of a {kind}.",
            do=f"`gliofed-{'server' if manifest.kind == 'coordinator' else 'site'}` restores it.",
            code="backup-kind",
        )
    if signed_by is not None and fingerprint(statement.signer) != signed_by:
        raise IdentityError(
            f"{path} is the backup of {manifest.name} in {manifest.consortium}, signed by "
            f"{fingerprint(statement.signer)}, not by {signed_by}.",
            do="Nothing was restored. Look for the right backup.",
            code="backup-other",
        )
    expected = {name: (one.sha256, one.size) for name, one in manifest.files.items()}
    if wrong := sorted(name for name in {*expected, *seen} if expected.get(name) != seen.get(name)):
        raise broken(path, f"holds other files than it was made with: {', '.join(wrong[:5])}")
    return manifest, statement.signer


def _manifest(path: Path, statement: Statement) -> Manifest:
    body = format_versions.current("backup", statement.body, where=path)
    statement.opened(kind=BACKUP, signer=statement.signer)
    try:
        manifest = Manifest.model_validate(body)
    except ValidationError:
        raise broken(path, "has a manifest that gliofed never wrote") from None
    for name in manifest.files:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/") or str(PurePosixPath(*parts)) != name:
            raise broken(path, "names a file outside its folder")
    return manifest


@contextlib.contextmanager
def _members(path: Path, passphrase: bytes | None) -> Iterator[Iterator[tuple[str, BinaryIO]]]:
    with archive.opening(path, passphrase) as plain:

        def members() -> Iterator[tuple[str, BinaryIO]]:
            try:
                with tarfile.open(fileobj=plain, mode="r|") as tar:
                    for member in tar:
                        plain_file = member.isreg() and not member.issparse()  # holes have no end
                        content = tar.extractfile(member) if plain_file else None
                        if content is None:
                            raise broken(path, "holds something that is not a plain file")
                        yield member.name, content  # type: ignore[misc]
                while plain.read(_BLOCK):
                    pass  # what is behind the tar's end is authenticated as well
            except (tarfile.TarError, EOFError, OSError, ValueError) as error:
                raise broken(path, f"was changed or cut short ({error})") from None

        try:
            yield members()
        except (tarfile.TarError, EOFError) as error:  # while a member was read
            raise broken(path, f"was cut short ({error})") from None


def _extract(
    archived: Path, root: Path, name: str, content: BinaryIO, files: dict[str, File]
) -> None:
    """Write one file of the backup; raise StateError if it changed since it was verified."""
    known = files.get(name)
    path = root / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    hashed = _Hashed(content)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        shutil.copyfileobj(hashed, file, _BLOCK)
        file.flush()
        os.fsync(file.fileno())
    if known is None or hashed.sha256 != known.sha256:
        raise broken(archived, "changed while it was restored")
    if known.mtime_ns:
        os.utime(path, ns=(known.mtime_ns, known.mtime_ns))


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info


class _Hashed:
    """Reads from a file and hashes what was read."""

    def __init__(self, content: Any) -> None:
        self._content = content
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._content.read(size)
        self._hash.update(data)
        return data

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def _sync_folders(root: Path) -> None:
    for path in (root, *(p for p in root.rglob("*") if p.is_dir())):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
