"""The ledger's file: what stands in it, how it is made and opened, how its troubles are told.

Facts and cohorts are append-only: triggers refuse a change by any other program too. Out of scope:
what the facts mean (``client.privacy.ledger``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from common import posix
from common.errors import StateError

APPLICATION_ID: Final = 0x676C666C
"""Marks the file as a gliofed ledger; ``file`` and SQLite show it."""
FORMAT: Final = 3
_WITHOUT_SCANS: Final = 2
"""The format of 0.1.0: it becomes ``FORMAT`` when scans are first written."""

GENESIS: Final = "0" * 64
"""Stands for the digest before the first fact."""
COLUMNS: Final = (
    "id, time, study, protocol, round, purpose, cohort, noise_multiplier, sampling_rate, "
    "clipping_norm, delta, steps, code_version"
)
"""What a fact's digest covers, in this order."""

_BUSY_S: Final = 60.0
_RESTORE: Final = "Restore it from the newest backup; until then no patient is trained on."
# Each commit is moved to the file itself at once: a copy of that file is complete.
_DURABLE: Final = ("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=1")
_SCANS: Final = (
    """CREATE TABLE scans (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        scan TEXT NOT NULL,
        patient TEXT NOT NULL,
        digest TEXT NOT NULL
    )""",
    """CREATE TRIGGER scans_stay BEFORE DELETE ON scans
    BEGIN SELECT RAISE(ABORT, 'scans are never deleted'); END""",
    """CREATE TRIGGER scans_keep BEFORE UPDATE ON scans
    BEGIN SELECT RAISE(ABORT, 'scans are never changed'); END""",
    f"PRAGMA user_version = {FORMAT}",
)
_CREATE: Final = (
    "PRAGMA synchronous = FULL",
    f"PRAGMA application_id = {APPLICATION_ID}",
    "BEGIN",
    """CREATE TABLE cohorts (
        digest TEXT NOT NULL PRIMARY KEY,
        patients TEXT NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE facts (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time TEXT NOT NULL,
        study TEXT NOT NULL,
        protocol TEXT NOT NULL,
        round INTEGER NOT NULL,
        purpose TEXT NOT NULL,
        cohort TEXT NOT NULL,
        noise_multiplier REAL NOT NULL CHECK (noise_multiplier > 0),
        sampling_rate REAL NOT NULL CHECK (sampling_rate > 0 AND sampling_rate <= 1),
        clipping_norm REAL NOT NULL CHECK (clipping_norm > 0),
        delta REAL NOT NULL CHECK (delta > 0 AND delta < 1),
        steps INTEGER NOT NULL CHECK (steps > 0),
        code_version TEXT NOT NULL,
        digest TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('reserved', 'confirmed'))
    )""",
    """CREATE TRIGGER facts_stay BEFORE DELETE ON facts
    BEGIN SELECT RAISE(ABORT, 'facts are never deleted'); END""",
    """CREATE TRIGGER facts_keep BEFORE UPDATE ON facts
    WHEN NEW.id IS NOT OLD.id OR NEW.digest IS NOT OLD.digest OR OLD.state IS NOT 'reserved'
    BEGIN SELECT RAISE(ABORT, 'facts are never changed'); END""",
    """CREATE TRIGGER cohorts_stay BEFORE DELETE ON cohorts
    BEGIN SELECT RAISE(ABORT, 'cohorts are never deleted'); END""",
    """CREATE TRIGGER cohorts_keep BEFORE UPDATE ON cohorts
    BEGIN SELECT RAISE(ABORT, 'cohorts are never changed'); END""",
    *_SCANS,
    "COMMIT",
)


def create(path: Path) -> None:
    """Write an empty ledger; raise StateError (code ``ledger-exists``) if there is one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as empty:
            for statement in _CREATE:
                empty.execute(statement)
        os.link(temporary, path)  # unlike a rename, it never replaces a ledger
        posix.sync_folder(path.parent)
    except FileExistsError:
        do = "Keep it: it holds what was spent."
        raise trouble(path, "exists", "exists already", do=do) from None
    finally:
        temporary.unlink(missing_ok=True)


def connect(path: Path) -> sqlite3.Connection:
    """Open the ledger; each transaction is synced to the disk before ``COMMIT`` returns.

    Raises StateError: ``ledger-missing``, ``-damaged``, ``-version``, ``-unusable``, ``-busy``.
    """
    if not path.is_file():
        raise trouble(path, "missing", "does not exist", do=_RESTORE)
    with explained(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=_BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
    try:
        with explained(path):
            _check_format(path, connection)
            for setting in _DURABLE:
                connection.execute(f"PRAGMA {setting}")
    except BaseException:
        connection.close()
        raise
    return connection


def holds_scans(connection: sqlite3.Connection) -> bool:
    """Return whether the open ledger has the table of scans."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version) == FORMAT


def add_scans(connection: sqlite3.Connection) -> None:
    """Give the ledger of 0.1.0 the table of scans, inside the transaction that is open."""
    for statement in _SCANS:
        connection.execute(statement)


def _check_format(path: Path, connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise damaged(path, "it is not a gliofed ledger")
    if version not in {_WITHOUT_SCANS, FORMAT}:
        do = "Install the version of gliofed that wrote it, or a newer one."
        raise trouble(path, "version", f"has format {version}, not {FORMAT}", do=do)
    (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if answer != "ok":
        raise damaged(path, str(answer))


def chain(head: str, row: Sequence[object]) -> str:
    """Return the digest of the fact ``row`` that follows the fact with the digest ``head``."""
    return hashlib.sha256(f"{head}{json.dumps(list(row))}".encode()).hexdigest()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise what SQLite raises in the block as a StateError that says what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            do = "Wait until the other command has ended and run this one again."
            raise trouble(path, "busy", "is in use elsewhere", do=do) from None
        do = "Check the free space and the permissions of its folder."
        raise trouble(path, "unusable", f"cannot be used: {error}", do=do) from error
    except (sqlite3.Error, OverflowError) as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, reason: str) -> StateError:
    return trouble(path, "damaged", f"is damaged: {reason}", do=_RESTORE)


def trouble(path: Path, code: str, what: str, *, do: str) -> StateError:
    """Return the error to raise: its code is ``ledger-`` and ``code``."""
    return StateError(f"The privacy ledger {path} {what}.", do=do, code=f"ledger-{code}")
