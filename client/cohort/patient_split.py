"""The split of a cohort's patients into training, validation and test.

A patient's part depends on the study's and the patient's name alone: adding, losing or renaming
another patient moves nobody, and all scans of a patient stay together. The price: the sizes only
come near the fractions, and with few patients a part may be empty; ``Split.patients`` says so.

A reviewed case (``Case.reviewed``) is for training alone: its mask was a model's first, and models
are not measured against it. Where its patient has masks of the hospital's own and is in validation
or test by them, the study leaves it out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from client.cohort.case_discovery import Cohort
from client.imaging.case import Case


@dataclass(frozen=True)
class Split:
    """The labelled cases of a cohort, apart by patient."""

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]

    @property
    def patients(self) -> dict[str, int]:
        """Number of patients in each part."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: len({case.patient for case in part}) for name, part in parts.items()}


def split(
    cohort: Cohort, study: str, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> Split:
    """Split the labelled cases; raise ValueError unless the fractions are shares of 1."""
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"the fractions {fractions} must not be negative and must add up to 1")
    train, validation, _ = fractions
    parts: tuple[list[Case], list[Case], list[Case]] = ([], [], [])
    own = {case.patient for case in cohort.labelled if not case.reviewed}
    for case in cohort.labelled:
        share = position(study, case.patient)
        if case.reviewed:
            if share < train or case.patient not in own:
                parts[0].append(case)
            continue
        parts[0 if share < train else 1 if share < train + validation else 2].append(case)
    return Split(*(tuple(part) for part in parts))


def position(study: str, patient: str) -> float:
    """Return where in [0, 1) a patient falls in a study: a hash, evenly spread."""
    digest = hashlib.sha256(f"{study}\n{patient}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48
