"""The hospital's privacy ledger: which mechanisms touched which patients, written before they do.

The ledger stores facts (noise multiplier, sampling rate, steps, cohort), never epsilon, which is
computed when it is asked for. Invariants:

- A step is on the disk, synced, before it is taken; one that was reserved and never confirmed
  counts as spent. Nothing is ever refunded.
- A reservation is refused exactly when one patient of its cohort would pass the study's cap (the
  facts of that study that touched the patient) or the patient's (all facts that touched the
  patient), also when several processes reserve.
- Facts, cohorts and scans are only appended. Each fact and each scan carries a SHA-256 over itself
  and the one before it, each cohort stands under its own SHA-256; a file in which that does not
  hold is refused, never repaired.
- Pseudonyms that share a scan (a keyed digest of its voxels) are one patient, whose history is that
  of all of them together.
- A step without privacy is a fact like others (``UNPROTECTED``): no cap refuses it, and its epsilon
  is infinite from then on.

Patients are pseudonyms; no error and no message names one. Out of scope: the accountant, which is
handed in (``client.privacy.accountant``), who the pseudonyms are (``client.site.pseudonyms``), and
a whole file that is put back from an old copy, which the site's audit journal shows.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import re
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Final, Literal, get_args

from client.privacy import ledger_file
from client.privacy.ledger_file import COLUMNS, GENESIS, chain, damaged, trouble
from client.privacy.mechanism import (
    MOST_STEPS,
    UNPROTECTED,
    Accountant,
    Cap,
    Fact,
    Mechanism,
    Patients,
    Purpose,
    Spend,
    require,
    require_patients,
)
from client.privacy.patient_exposure import Exposure, cohort_digest, maximal
from common.errors import PrivacyError

_SCAN: Final = re.compile(r"[0-9a-f]{32}")


def over_cap(study: str, steps: int, study_cap: Cap, patient_cap: Cap) -> PrivacyError:
    """Return the refusal of ``steps`` more, which may leave: it holds no figure of a patient."""
    return PrivacyError(
        f"The privacy budget of study {study} does not allow {steps} more steps below epsilon "
        f"{study_cap.epsilon:g} of the study and {patient_cap.epsilon:g} of a patient over all "
        "studies.",
        do="The study ends here for this site, or the hospital raises its cap: `gliofed-site "
        "budget` says what is left.",
        code="privacy-cap",
    )


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
        self._head = GENESIS
        self._scans: set[tuple[str, str]] = set()
        self._scans_head = GENESIS
        self._exposure = Exposure()
        self._permitted: dict[object, int] = {}
        self._connection = ledger_file.connect(path)
        try:
            with self._transaction("DEFERRED"):
                self._refresh()
        except BaseException:
            self._connection.close()
            raise

    @staticmethod
    def create(path: Path) -> None:
        """Write an empty ledger; raise StateError (code ``ledger-exists``) if there is one."""
        ledger_file.create(path)

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
        purpose: Purpose,
        patients: Patients,
        mechanism: Mechanism,
        clipping_norm: float,
        steps: int,
        study_cap: Cap,
        patient_cap: Cap,
    ) -> int:
        """Write that ``steps`` are about to be taken on ``patients`` and return the fact's id.

        ``protocol`` is the digest of the study protocol; ``patients`` are all who may be drawn.
        When this returns, the fact is synced to the disk. Raises PrivacyError (code
        ``privacy-cap``) and writes nothing when one patient would pass a cap, except for
        ``UNPROTECTED`` steps, which no cap refuses; PrivacyError (code
        ``privacy-parameters``) for impossible numbers or patients; StateError.
        """
        require(0 < clipping_norm < math.inf, "clipping_norm is not above 0")
        require(type(steps) is int and 0 < steps <= MOST_STEPS, f"{steps} steps")
        require(purpose in get_args(Purpose), "the purpose is unknown")
        cohort = cohort_digest(patients)
        with self._transaction("IMMEDIATE"):
            self._refresh()
            if mechanism != UNPROTECTED and steps > min(
                self._least(study, mechanism, patients, study_cap),
                self._least(None, mechanism, patients, patient_cap),
            ):
                raise over_cap(study, steps, study_cap, patient_cap)
            if cohort not in self._exposure:
                self._connection.execute(
                    "INSERT INTO cohorts (digest, patients) VALUES (?, ?)",
                    (cohort, "\n".join(sorted(patients))),
                )
            number = self._seen + 1
            row = (
                number,
                dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                study,
                protocol,
                round_number,
                purpose,
                cohort,
                float(mechanism.noise_multiplier),
                float(mechanism.sampling_rate),
                float(clipping_norm),
                study_cap.delta,
                steps,
                self._code_version,
            )
            digest = chain(self._head, row)
            self._connection.execute(
                f"INSERT INTO facts ({COLUMNS}, digest, state) "  # noqa: S608 - constants only
                f"VALUES ({'?, ' * len(row)}?, 'reserved')",
                (*row, digest),
            )
        return number

    def know(self, scans: Mapping[str, Collection[str]]) -> None:
        """Write which scans, by keyed digests, each pseudonym has; what is known is left as it is.

        A ledger of 0.1.0 becomes one of this format, if there is something to write.
        """
        pairs = sorted((scan, one) for one, several in scans.items() for scan in several)
        if not pairs:
            return
        require_patients(frozenset(scans))
        require(all(_SCAN.fullmatch(scan) for scan, _ in pairs), "a scan is no keyed digest")
        with self._transaction("DEFERRED"):
            self._refresh()
            if self._scans.issuperset(pairs):
                return
        with self._transaction("IMMEDIATE"):
            self._refresh()
            if not ledger_file.holds_scans(self._connection):
                ledger_file.add_scans(self._connection)
            head = self._scans_head
            new = [pair for pair in pairs if pair not in self._scans]
            for number, pair in enumerate(new, len(self._scans) + 1):
                head = chain(head, (number, *pair))
                self._connection.execute(
                    "INSERT INTO scans (id, scan, patient, digest) VALUES (?, ?, ?, ?)",
                    (number, *pair, head),
                )

    def owner(self, scan: str) -> str | None:
        """Return the pseudonym that had ``scan`` first; None if nobody has it."""
        with self._transaction("DEFERRED"):
            self._refresh()
            return self._exposure.owner(scan)

    def names(self, patient: str) -> tuple[str, ...]:
        """Return every pseudonym of the patient, the one that was known first before the others."""
        with self._transaction("DEFERRED"):
            self._refresh()
            return self._exposure.names(patient)

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
                raise trouble(self._path, "confirm", f"has no open reservation {number}", do=do)

    def room(
        self,
        *,
        study: str,
        mechanism: Mechanism,
        patients: Patients,
        study_cap: Cap,
        patient_cap: Cap,
        planned: Counter[Mechanism] | None = None,
    ) -> dict[str, int]:
        """Return how many more steps of ``mechanism`` each patient may take below both caps.

        ``planned`` is what the study will do to each of them besides, and has not done yet.
        """
        require_patients(patients)
        more = planned or Counter[Mechanism]()
        left = dict.fromkeys(patients, MOST_STEPS)
        with self._transaction("DEFERRED"):
            self._refresh()
            for name, cap in ((study, study_cap), (None, patient_cap)):
                for members, steps in self._exposure.histories(patients, study=name):
                    permitted = self._left(mechanism, steps + more, cap)
                    left.update({one: min(left[one], permitted) for one in members})
        return left

    def steps_left(
        self,
        *,
        study: str,
        mechanism: Mechanism,
        patients: Patients,
        study_cap: Cap,
        patient_cap: Cap,
    ) -> int:
        """Return how many more steps all of ``patients`` may take: the least of ``room``."""
        require_patients(patients)
        with self._transaction("DEFERRED"):
            self._refresh()
            return min(
                self._least(study, mechanism, patients, study_cap),
                self._least(None, mechanism, patients, patient_cap),
            )

    def spent(self, delta: float, *, study: str | None = None) -> Spend:
        """Return what ``study``, or everything when it is None, has cost the worst patient."""
        epsilon, patient = self._worst(delta, study)
        facts = () if patient is None else self.facts(study=study, patient=patient)
        return Spend(
            epsilon=epsilon,
            delta=delta,
            steps=sum(fact.steps for fact in facts),
            unconfirmed=sum(fact.steps for fact in facts if fact.state == "reserved"),
        )

    def worst_patient(self, delta: float, *, study: str | None = None) -> str | None:
        """Return the pseudonym of a patient who has spent the most; None if nobody was touched."""
        return self._worst(delta, study)[1]

    def facts(self, *, study: str | None = None, patient: str | None = None) -> tuple[Fact, ...]:
        """Return the facts of ``study``, or all, that touched ``patient``, or any; oldest first."""
        if patient is not None:
            require_patients(frozenset({patient}))
        with self._transaction("DEFERRED"):
            self._refresh()
            rows = self._connection.execute(
                f"SELECT {COLUMNS}, state FROM facts "  # noqa: S608 - constants only
                "WHERE ?1 IS NULL OR study = ?1 ORDER BY id",
                (study,),
            ).fetchall()
            cohorts = self._exposure.cohorts(study=study, patient=patient)
        return tuple(
            Fact(number, time, name, protocol, round_, kind, cohort, Mechanism(noise, rate), *rest)
            for number, time, name, protocol, round_, kind, cohort, noise, rate, *rest in rows
            if cohort in cohorts
        )

    def patients(self, *, study: str | None = None) -> Patients:
        """Return the pseudonyms of everyone who was ever charged, by ``study`` or by any."""
        with self._transaction("DEFERRED"):
            self._refresh()
            return self._exposure.patients(study=study)

    @property
    def head(self) -> tuple[int, str]:
        """How many facts there are, and the digest of the last: it stands for all of them."""
        with self._transaction("DEFERRED"):
            self._refresh()
            return self._seen, self._head

    def holds(self, facts: int, digest: str) -> bool:
        """Return whether the ledger had this ``head`` once: false for an older copy, or another."""
        if facts == 0:
            return digest == GENESIS
        with self._transaction("DEFERRED"):
            self._refresh()
            found = self._connection.execute(
                "SELECT digest FROM facts WHERE id = ?", (facts,)
            ).fetchone()
        return found is not None and str(found[0]) == digest

    def _worst(self, delta: float, study: str | None) -> tuple[float, str | None]:
        """Return the largest epsilon of a patient and that patient, the first by pseudonym."""
        require(0 < delta < 1, "delta is not between 0 and 1")
        with self._transaction("DEFERRED"):
            self._refresh()
            patients = self._exposure.patients(study=study)
            found = self._exposure.histories(patients, study=study) if patients else []
        worst: tuple[float, str | None] = (0.0, None)
        for history in maximal(steps for _, steps in found):
            epsilon = self._accountant.epsilon(_listed(history), delta)
            epsilon = math.inf if math.isnan(epsilon) else epsilon
            if worst[1] is None or epsilon > worst[0]:
                worst = epsilon, min(min(members) for members, steps in found if steps == history)
        return worst

    def _least(self, study: str | None, mechanism: Mechanism, patients: Patients, cap: Cap) -> int:
        """Return how many steps the worst of ``patients`` has left below ``cap``."""
        found = self._exposure.histories(patients, study=study)
        return min(self._left(mechanism, steps, cap) for steps in maximal(s for _, s in found))

    def _left(self, mechanism: Mechanism, history: Counter[Mechanism], cap: Cap) -> int:
        # The steps of one mechanism are what grows while a study runs: what is permitted beside
        # all others is asked for once.
        others = {other: steps for other, steps in history.items() if other != mechanism}
        question = (mechanism, frozenset(others.items()), cap)
        if question not in self._permitted:
            self._permitted[question] = self._accountant.most(mechanism, _listed(others), cap)
        return max(0, self._permitted[question] - history[mechanism])

    def _refresh(self) -> None:
        """Check the facts written since the last look and fold them into the sums."""
        rows = self._connection.execute(
            f"SELECT {COLUMNS}, digest FROM facts "  # noqa: S608 - constants only
            "WHERE id > ? ORDER BY id",
            (self._seen,),
        ).fetchall()
        for *row, digest in rows:
            if row[0] != self._seen + 1 or digest != chain(self._head, row):
                raise damaged(self._path, f"fact {row[0]} is not the one that was written")
            if row[6] not in self._exposure:
                self._exposure.know(row[6], self._read_cohort(row[6]))
            self._exposure.add(row[2], Mechanism(row[7], row[8]), row[6], row[11])
            self._seen, self._head = row[0], digest
        if self._counted("facts") != self._seen:
            raise damaged(self._path, "facts are missing at its end")
        if ledger_file.holds_scans(self._connection):
            self._refresh_scans()

    def _refresh_scans(self) -> None:
        rows = self._connection.execute(
            "SELECT id, scan, patient, digest FROM scans WHERE id > ? ORDER BY id",
            (len(self._scans),),
        ).fetchall()
        for *row, digest in rows:
            if row[0] != len(self._scans) + 1 or digest != chain(self._scans_head, row):
                raise damaged(self._path, f"scan {row[0]} is not the one that was written")
            self._exposure.link(row[1], row[2])
            self._scans.add((row[1], row[2]))
            self._scans_head = digest
        if self._counted("scans") != len(self._scans):
            raise damaged(self._path, "scans are missing at its end")

    def _counted(self, table: str) -> int:
        """Return how many rows were ever written to ``table``."""
        found = self._connection.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)
        ).fetchone()
        return int(found[0]) if found else 0

    def _read_cohort(self, digest: str) -> Patients:
        found = self._connection.execute(
            "SELECT patients FROM cohorts WHERE digest = ?", (digest,)
        ).fetchone()
        if found is None:
            raise damaged(self._path, "a cohort is missing")
        patients = frozenset(str(found[0]).split("\n"))
        with contextlib.suppress(PrivacyError):
            if cohort_digest(patients) == digest:
                return patients
        raise damaged(self._path, "a cohort is not the one that was written")

    @contextlib.contextmanager
    def _transaction(self, kind: Literal["DEFERRED", "IMMEDIATE"]) -> Iterator[None]:
        with self._lock, ledger_file.explained(self._path):
            self._connection.execute(f"BEGIN {kind}")
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")


def _listed(history: dict[Mechanism, int]) -> list[tuple[Mechanism, int]]:
    """Return the history in one order, so that the accountant knows a question again."""
    return sorted(history.items(), key=lambda item: astuple(item[0]))
