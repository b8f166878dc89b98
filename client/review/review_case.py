"""What is under review: a result as it was written, its images, and the mask that is gone on from.

Invariants: result and mask are those that were written (digests), the images those that were
segmented (``images``), and the mask that is opened is the newest review's, the model's own where
there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.clinic.provenance import RESULT, sha256_of
from client.clinic.result_folder import MASK
from client.clinic.result_schema import Result, read_result
from client.clinic.review_outcome import MACHINE
from client.imaging.case import Case
from client.imaging.nifti import read_volume
from client.review.source_images import find_case, shown
from client.review.versions import Versions
from common.errors import StateError

REVIEWS: Final = "reviews"
_DO: Final = "Name the folder that `gliofed-clinic segment` wrote."


@dataclass(frozen=True, eq=False)
class Subject:
    """A result to review. Masks and images (X, Y, Z) lie on the grid ``affine``.

    ``result`` and ``machine`` are the model's own, ``mask`` is what is gone on from, ``opened`` its
    name: ``machine`` or a review's number. ``percent`` is the model's doubt.
    """

    folder: Path
    result: Result
    case: Case
    images: Mapping[str, NDArray[np.float32]]
    affine: NDArray[np.float64]
    machine: NDArray[np.uint8]
    percent: NDArray[np.uint8] | None
    versions: Versions
    opened: str
    opened_sha256: str
    mask: NDArray[np.uint8]
    latest: Result

    @property
    def place(self) -> Path:
        """The folder of the version that was opened."""
        return self.folder if self.opened == MACHINE else self.versions.place(int(self.opened))

    @property
    def result_sha256(self) -> str:
        return sha256_of(self.folder / RESULT)

    @property
    def machine_sha256(self) -> str:
        return self.result.outputs[MASK]


def open_subject(folder: Path, case_folder: Path | None = None) -> Subject:
    """Open the result in ``folder`` on its newest version.

    The images are sought in ``case_folder``, or where they were. Raises CaseError (of the images)
    and StateError (codes ``review-result``, ``review-changed``).
    """
    result = read_result(folder, do=_DO, code="review-result")
    if result.review is not None:
        raise StateError(
            f"{folder} is a review itself.",
            do="Name the folder of the result; it opens on its newest review.",
            code="review-result",
        )
    _unchanged(folder, result)
    versions = Versions(folder / REVIEWS)
    machine = read_volume(folder / MASK, dtype=np.uint8, empty_ok=True)
    opened, latest, mask = MACHINE, result, machine.data
    if versions.numbers:
        number = versions.numbers[-1]
        opened = f"{number}"
        latest = read_result(versions.place(number), do=_DO, code="review-result")
        mask = read_volume(versions.place(number) / MASK, dtype=np.uint8, empty_ok=True).data
    case = find_case(result, case_folder)
    doubt = folder / "uncertainty.nii.gz"
    return Subject(
        folder=folder,
        result=result,
        case=case,
        images=shown(case, result, machine.data.shape, machine.affine),
        affine=machine.affine,
        machine=machine.data,
        percent=read_volume(doubt, dtype=np.uint8, empty_ok=True).data if doubt.exists() else None,
        versions=versions,
        opened=opened,
        opened_sha256=latest.outputs[MASK],
        mask=mask,
        latest=latest,
    )


def _unchanged(folder: Path, result: Result) -> None:
    for name in (MASK, "uncertainty.nii.gz"):
        known = result.outputs.get(name)
        if (known is None and name == MASK) or (known and sha256_of(folder / name) != known):
            raise StateError(
                f"{folder / name} is not the file that {RESULT} names.",
                do="`gliofed-clinic verify` says what else was changed; segment the case again.",
                code="review-changed",
            )
