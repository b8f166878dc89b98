"""The hospital's privacy ledger: which mechanisms touched its patients, written before they do.

The ledger stores facts (noise multiplier, sampling rate, steps), never epsilon, which is computed
when it is asked for. Invariants:

- A step is on the disk, synced, before it is taken; one that was reserved and never confirmed
  counts as spent. Nothing is ever refunded.
- A reservation that would pass the study's cap (facts of that study) or the site's cap (all
  facts: one patient may be in every study) is refused, also when several processes reserve.
- Facts are only appended. Each carries a SHA-256 over itself and the fact before it; a file in
  which that does not hold is refused, never repaired.

Out of scope: the accountant, which is handed in (``client.accountant``), and a whole file that is
put back from an old copy, which the site's audit journal shows.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import math
import os
import sqlite3
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from common.errors import PrivacyError, StateError

APPLICATION_ID: Final = 0x676C666C
"""Marks the file as a gliofed ledger; ``file`` and SQLite show it."""
FORMAT: Final = 1

_MOST_STEPS: Final = 2**24
_BUSY_S: Final = 60.0
_DURABLE: Final = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=1"
_GENESIS: Final = "0" * 64
_RESTORE: Final = "Restore it from the newest backup; until then no patient is trained on."
_CREATE: Final = """
CREATE TABLE facts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    study TEXT NOT NULL,
    protocol TEXT NOT NULL,
    round INTEGER NOT NULL,
    noise_multiplier REAL NOT NULL CHECK (noise_multiplier > 0),
    sampling_rate REAL NOT NULL CHECK (sampling_rate > 0 AND sampling_rate <= 1),
    clipping_norm REAL NOT NULL CHECK (clipping_norm > 0),
    delta REAL NOT NULL CHECK (delta > 0 AND delta < 1),
    steps INTEGER NOT NULL CHECK (steps > 0),
    code_version TEXT NOT NULL,
    digest TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'confirmed'))
);
CREATE TRIGGER facts_stay BEFORE DELETE ON facts
BEGIN SELECT RAISE(ABORT, 'facts are never deleted'); END;
CREATE TRIGGER facts_keep BEFORE UPDATE ON facts
WHEN NEW.id IS NOT OLD.id OR NEW.digest IS NOT OLD.digest OR OLD.state IS NOT 'reserved'
BEGIN SELECT RAISE(ABORT, 'facts are never changed'); END;
"""
_COLUMNS: Final = (
    "id, time, study, protocol, round, noise_multiplier, sampling_rate, clipping_norm, delta, "
    "steps, code_version"
)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise PrivacyError(
            f"Privacy parameters are impossible: {what}.",
            do="Correct the protocol or the site's settings.",
            code="privacy-parameters",
        )


@dataclass(frozen=True)
class Mechanism:
    """One step of the Poisson-sampled Gaussian mechanism; adjacency: add or remove one patient.

    ``noise_multiplier`` is the noise's standard deviation over the clipping norm, and
    ``sampling_rate`` each patient's chance to be drawn.
    """

    noise_multiplier: float
    sampling_rate: float

    def __post_init__(self) -> None:
        _require(0 < self.noise_multiplier < math.inf, "noise_multiplier is not above 0")
        _require(0 < self.sampling_rate <= 1, "sampling_rate is not above 0 and at most 1")


@dataclass(frozen=True)
class Cap:
    """The most that may be spent: ``epsilon`` at ``delta``."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        _require(0 <= self.epsilon < math.inf, "epsilon is not at least 0")
        _require(0 < self.delta < 1, "delta is not between 0 and 1")


@dataclass(frozen=True)
class Spend:
    """What some facts cost one patient; ``unconfirmed`` of the steps were reserved only."""

    epsilon: float
    delta: float
    steps: int
    unconfirmed: int


@dataclass(frozen=True)
class Fact:
    """One line of the ledger; ``time`` is UTC, ISO 8601, and ``delta`` the study's own."""

    id: int
    time: str
    study: str
    protocol: str
    round: int
    mechanism: Mechanism
    clipping_norm: float
    delta: float
    steps: int
    code_version: str
    state: Literal["reserved", "confirmed"]


Accountant = Callable[[Sequence[tuple[Mechanism, int]], float], float]
"""Epsilon of the composition of (mechanism, steps) at a delta; never below the true one."""


class Ledger:
    """The ledger in one SQLite file. Safe to share between threads, and between processes that
    each open it.

    Raises StateError: ``ledger-missing``, ``-damaged``, ``-version``, ``-unusable``, ``-busy``.
    """

    def __init__(self, path: Path, *, accountant: Accountant, code_version: str = "") -> None:
        self._path = path
        self._accountant = accountant
        self._code_version = code_version
        self._lock = threading.Lock()
        self._seen = 0
        self._head = _GENESIS
        self._steps: Counter[tuple[str, Mechanism]] = Counter()
        self._permitted: dict[object, int] = {}
        if not path.is_file():
            raise _error(path, "missing", "does not exist", do=_RESTORE)
        with self._explained():
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=_BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            with self._explained():
                self._check_format()
                # Each commit is moved to the file itself at once: a copy of that file is complete.
                self._connection.executescript(_DURABLE)
            with self._transaction("DEFERRED"):
                self._refresh()
        except BaseException:
            self._connection.close()
            raise

    @staticmethod
    def create(path: Path) -> None:
        """Write an empty ledger; raise StateError (code ``ledger-exists``) if there is one."""
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as empty:
                empty.executescript(
                    f"PRAGMA synchronous = FULL; PRAGMA application_id = {APPLICATION_ID};"
                    f"PRAGMA user_version = {FORMAT}; BEGIN; {_CREATE} COMMIT;"
                )
            os.link(temporary, path)  # unlike a rename, it never replaces a ledger
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        except FileExistsError:
            do = "Keep it: it holds what was spent."
            raise _error(path, "exists", "exists already", do=do) from None
        finally:
            temporary.unlink(missing_ok=True)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reserve(
        self,
        *,
        study: str,
        protocol: str,
        round_number: int,
        mechanism: Mechanism,
        clipping_norm: float,
        steps: int,
        study_cap: Cap,
        site_cap: Cap,
    ) -> int:
        """Write that ``steps`` are about to be taken and return the fact's id.

        ``protocol`` is the digest of the study protocol. When this returns, the fact is synced to
        the disk. Raises PrivacyError (code ``privacy-cap``) and writes nothing when the study's
        facts or all facts would pass their cap; PrivacyError (code ``privacy-parameters``) for
        impossible numbers; StateError.
        """
        _require(0 < clipping_norm < math.inf, "clipping_norm is not above 0")
        _require(type(steps) is int and 0 < steps <= _MOST_STEPS, f"{steps} steps")
        with self._transaction("IMMEDIATE"):
            self._refresh()
            left = self._left(study, mechanism, study_cap, site_cap)
            if steps > left:
                raise PrivacyError(
                    f"The privacy budget of study {study} is spent: {steps} more steps would pass "
                    f"epsilon {study_cap.epsilon:g} of the study or {site_cap.epsilon:g} of the "
                    f"site; {left} are left.",
                    do="The study ends here for this site, or the hospital raises its cap.",
                    code="privacy-cap",
                )
            number = self._seen + 1
            row = (
                number,
                dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                study,
                protocol,
                round_number,
                float(mechanism.noise_multiplier),
                float(mechanism.sampling_rate),
                float(clipping_norm),
                study_cap.delta,
                steps,
                self._code_version,
            )
            digest = _chain(self._head, row)
            self._connection.execute(
                f"INSERT INTO facts ({_COLUMNS}, digest, state) "  # noqa: S608 - constants only
                f"VALUES ({'?, ' * len(row)}?, 'reserved')",
                (*row, digest),
            )
        return number

    def confirm(self, number: int) -> None:
        """Write that the steps of fact ``number`` were taken. It changes no sum.

        Raises StateError (code ``ledger-confirm``) if no reservation has that number.
        """
        with self._transaction("IMMEDIATE"):
            changed = self._connection.execute(
                "UPDATE facts SET state = 'confirmed' WHERE id = ? AND state = 'reserved'",
                (number,),
            ).rowcount
            if changed != 1:
                do = "Restart the site's worker; what was reserved stays spent."
                raise _error(self._path, "confirm", f"has no open reservation {number}", do=do)

    def steps_left(self, *, study: str, mechanism: Mechanism, study_cap: Cap, site_cap: Cap) -> int:
        """Return how many more steps of ``mechanism`` fit below both caps (2**24 at most)."""
        with self._transaction("DEFERRED"):
            self._refresh()
            return self._left(study, mechanism, study_cap, site_cap)

    def spent(self, delta: float, *, study: str | None = None) -> Spend:
        """Return what ``study``, or everything when it is None, has cost each patient."""
        _require(0 < delta < 1, "delta is not between 0 and 1")
        facts = self.facts(study=study)
        steps = Counter[Mechanism]()
        for fact in facts:
            steps[fact.mechanism] += fact.steps
        return Spend(
            epsilon=self._accountant(list(steps.items()), delta) if steps else 0.0,
            delta=delta,
            steps=steps.total(),
            unconfirmed=sum(fact.steps for fact in facts if fact.state == "reserved"),
        )

    def facts(self, *, study: str | None = None) -> tuple[Fact, ...]:
        """Return the facts of ``study``, or all, oldest first."""
        with self._transaction("DEFERRED"):
            self._refresh()
            rows = self._connection.execute(
                f"SELECT {_COLUMNS}, state FROM facts "  # noqa: S608 - constants only
                "WHERE ?1 IS NULL OR study = ?1 ORDER BY id",
                (study,),
            ).fetchall()
        return tuple(
            Fact(number, time, name, protocol, round_, Mechanism(noise, rate), *rest)
            for number, time, name, protocol, round_, noise, rate, *rest in rows
        )

    def _left(self, study: str, mechanism: Mechanism, study_cap: Cap, site_cap: Cap) -> int:
        own = (study, mechanism)
        others = {key: steps for key, steps in self._steps.items() if key != own}
        state = (own, study_cap, site_cap, frozenset(others.items()))
        if state not in self._permitted:
            same = [(other, steps) for (name, other), steps in others.items() if name == study]
            every = [(other, steps) for (_, other), steps in others.items()]
            most = self._most(mechanism, same, study_cap)
            self._permitted = {state: min(most, self._most(mechanism, every, site_cap))}
        return max(0, self._permitted[state] - self._steps[own])

    def _most(self, mechanism: Mechanism, others: list[tuple[Mechanism, int]], cap: Cap) -> int:
        """Return the most steps of ``mechanism`` that fit below ``cap`` beside ``others``."""

        def fits(steps: int) -> bool:
            # An accountant that answers NaN compares false: nothing fits.
            return self._accountant([*others, (mechanism, steps)], cap.delta) <= cap.epsilon

        low, high = 0, 1
        while high <= _MOST_STEPS and fits(high):
            low, high = high, 2 * high
        high = min(high, _MOST_STEPS + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _refresh(self) -> None:
        """Check the facts written since the last look and fold them into the sums."""
        rows = self._connection.execute(
            f"SELECT {_COLUMNS}, digest FROM facts "  # noqa: S608 - constants only
            "WHERE id > ? ORDER BY id",
            (self._seen,),
        ).fetchall()
        for *row, digest in rows:
            if row[0] != self._seen + 1 or digest != _chain(self._head, row):
                raise self._damaged(f"fact {row[0]} is not the one that was written")
            self._steps[row[2], Mechanism(row[5], row[6])] += row[9]
            self._seen, self._head = row[0], digest
        counted = self._connection.execute("SELECT seq FROM sqlite_sequence").fetchone()
        if (counted[0] if counted else 0) != self._seen:
            raise self._damaged("facts are missing at its end")

    def _check_format(self) -> None:
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise self._damaged("it is not a gliofed ledger")
        if version != FORMAT:
            do = "Install the version of gliofed that wrote it, or a newer one."
            raise _error(self._path, "version", f"has format {version}, not {FORMAT}", do=do)
        (answer,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if answer != "ok":
            raise self._damaged(str(answer))

    @contextlib.contextmanager
    def _transaction(self, kind: Literal["DEFERRED", "IMMEDIATE"]) -> Iterator[None]:
        with self._lock, self._explained():
            self._connection.execute(f"BEGIN {kind}")
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                do = "Wait until the other command has ended and run this one again."
                raise _error(self._path, "busy", "is in use elsewhere", do=do) from None
            do = "Check the free space and the permissions of its folder."
            raise _error(self._path, "unusable", f"cannot be used: {error}", do=do) from error
        except (sqlite3.Error, OverflowError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, reason: str) -> StateError:
        return _error(self._path, "damaged", f"is damaged: {reason}", do=_RESTORE)


def _error(path: Path, code: str, what: str, *, do: str) -> StateError:
    return StateError(f"The privacy ledger {path} {what}.", do=do, code=f"ledger-{code}")


def _chain(head: str, row: Sequence[object]) -> str:
    return hashlib.sha256(f"{head}{json.dumps(list(row))}".encode()).hexdigest()
