"""Which mechanisms touched which patients: the facts of a ledger, summed for each patient.

Patients whom the same cohorts hold have the same history, so they form a class, and what is
computed is computed for each class. Pseudonyms that share a scan are one patient: what touched one
of them touched the patient. Pure: no file, no accountant.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable

from client.privacy.mechanism import Mechanism, Patients, require_patients


def cohort_digest(patients: Patients) -> str:
    """Return the SHA-256 of the sorted pseudonyms, one a line, as it stands in each fact.

    Raises PrivacyError (code ``privacy-parameters``) for no patients or a malformed pseudonym.
    """
    require_patients(patients)
    return hashlib.sha256("\n".join(sorted(patients)).encode()).hexdigest()


class Exposure:
    """The sums. They only grow, and the order in which facts are added does not matter."""

    def __init__(self) -> None:
        self._cohorts: dict[str, Patients] = {}
        self._steps: Counter[tuple[str, Mechanism, str]] = Counter()
        self._parts: dict[Patients, list[tuple[Patients, frozenset[str]]]] = {}
        self._owner: dict[str, str] = {}
        self._same: dict[str, tuple[str, ...]] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._cohorts

    def know(self, digest: str, patients: Patients) -> None:
        """Remember who the cohort ``digest`` is, before the first fact about it is added."""
        self._cohorts[digest] = patients
        self._parts.clear()

    def add(self, study: str, mechanism: Mechanism, cohort: str, steps: int) -> None:
        """Add ``steps`` of ``study`` that touched the patients of ``cohort``."""
        self._steps[study, mechanism, cohort] += steps

    def link(self, scan: str, patient: str) -> None:
        """Remember that ``patient`` has ``scan``; who else has it is the same patient."""
        owner = self._owner.setdefault(scan, patient)
        known = self._same.setdefault(owner, (owner,))
        names = self._same.setdefault(patient, (patient,))
        if patient not in known:
            both = {*known, *names}
            # The dictionary keeps the order in which the names were first known.
            merged = tuple(name for name in self._same if name in both)
            self._same.update(dict.fromkeys(merged, merged))
            self._parts.clear()

    def owner(self, scan: str) -> str | None:
        """Return the pseudonym that had ``scan`` first; None if nobody has it."""
        return self._owner.get(scan)

    def names(self, patient: str) -> tuple[str, ...]:
        """Return every pseudonym of the patient, the one that was known first before the others."""
        return self._same.get(patient, (patient,))

    def cohorts(self, *, study: str | None = None, patient: str | None = None) -> frozenset[str]:
        """Return the digests of the cohorts that ``study`` touched and that hold ``patient``."""
        return frozenset(
            digest
            for name, _, digest in self._steps
            if study in {None, name} and (patient is None or self._holds(digest, patient))
        )

    def patients(self, *, study: str | None = None) -> Patients:
        """Return everyone who was ever touched, by ``study`` or by any."""
        return frozenset().union(*(self._cohorts[digest] for digest in self.cohorts(study=study)))

    def histories(
        self, patients: Patients, *, study: str | None = None
    ) -> list[tuple[Patients, Counter[Mechanism]]]:
        """Return ``patients`` in classes, each with the steps of ``study``, or of all studies."""
        found = []
        for members, cohorts in self._partition(patients):
            steps = Counter[Mechanism]()
            for (name, mechanism, digest), count in self._steps.items():
                if digest in cohorts and study in {None, name}:
                    steps[mechanism] += count
            found.append((members, steps))
        return found

    def _partition(self, patients: Patients) -> list[tuple[Patients, frozenset[str]]]:
        """Return ``patients`` in parts, each with the cohorts that hold all of it."""
        if patients not in self._parts:
            members: defaultdict[frozenset[str], set[str]] = defaultdict(set)
            for patient in patients:
                held = frozenset(key for key in self._cohorts if self._holds(key, patient))
                members[held].add(patient)
            self._parts[patients] = [(frozenset(part), held) for held, part in members.items()]
        return self._parts[patients]

    def _holds(self, digest: str, patient: str) -> bool:
        return not self._cohorts[digest].isdisjoint(self.names(patient))


def maximal(histories: Iterable[Counter[Mechanism]]) -> list[Counter[Mechanism]]:
    """Return the histories that are not contained in another: the worst one is among them."""
    kept: list[Counter[Mechanism]] = []
    # The longest first: none can contain one before it unless they are equal.
    for history in sorted(histories, key=Counter.total, reverse=True):
        if not any(history <= other for other in kept):
            kept.append(history)
    return kept
