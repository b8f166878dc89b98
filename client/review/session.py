"""What a page may ask of a review: what to show, to keep a draft, to decide. Knows no browser.

Invariants: a draft replaces only the draft that its sender knew (``known``), so that of two tabs
the second is told instead of overwriting the first; a decision is about the mask that its sender
saw, named by its digest; after a decision the next review goes on from it. One thread at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from client.clinic.report.content import BANNER, REVIEWED
from client.review.decision import Said, said, save
from client.review.drafts import Draft, digest
from client.review.review_case import Subject, open_subject
from client.review.source_images import find_case
from client.review.submitted_mask import most_bytes, read_mask
from common.errors import StateError
from common.regions import LABEL_COLOURS, LABEL_NAMES, LABELS, MODALITY_NAMES
from common.trust.identity import Identity

CONFLICT: Final = "review-conflict"
Decided = Callable[[Subject, NDArray[np.uint8], Said, int], str]
"""What follows a review that was saved under a number; what it did, in words."""


def nothing_more(_subject: Subject, _labels: NDArray[np.uint8], _said: Said, _number: int) -> str:
    return ""


class Desk:
    """The review of the result in ``folder``; raises as ``open_subject`` does."""

    def __init__(
        self,
        folder: Path,
        case: Path | None = None,
        *,
        sealer: tuple[str, Identity] | None = None,
        decided: Decided = nothing_more,
    ) -> None:
        self._folder, self._case = folder, case
        self._sealer, self._decided = sealer, decided
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        self.subject = open_subject(self._folder, self._case)
        one = self.subject
        self._draft = Draft(one.versions.folder, one.opened_sha256, one.affine)
        drawn = self._draft.read(one.mask.shape)
        self._labels = one.mask if drawn is None else drawn

    @property
    def most_bytes(self) -> int:
        return most_bytes(self.subject.mask.shape)

    def state(self) -> dict[str, Any]:
        """Return what the page says beside the pictures."""
        with self._lock:
            one, result = self.subject, self.subject.latest
            review = result.review
            return {
                "case": result.case or one.case.name,
                "study_date": result.study_date,
                "banner": BANNER if review is None else REVIEWED.format(decision=review.decision),
                "model": result.model.model_dump(mode="json"),
                "sequences": [{"name": name, "title": MODALITY_NAMES[name]} for name in one.images],
                "labels": [
                    {
                        "name": name,
                        "value": value,
                        "meaning": LABEL_NAMES[name],
                        "colour": LABEL_COLOURS[name],
                    }
                    for name, value in LABELS.items()
                ],
                "opened": one.opened,
                "review": None if review is None else review.model_dump(mode="json"),
                "sha256": digest(self._labels),
                "opened_sha256": digest(one.mask),
                "opened_voxels": np.bincount(one.mask.ravel(), minlength=4).tolist(),
                "warnings": list(result.warnings),
                "voxel_ml": abs(float(np.linalg.det(one.affine[:3, :3]))) / 1000,
            }

    def image(self, name: str) -> bytes | None:
        """Return a sequence as NIfTI on the mask's grid, None for one that there is not."""
        image = self.subject.images.get(name)
        return None if image is None else _encoded(image, self.subject.affine)

    def mask(self) -> bytes:
        """Return the draft, or the mask that was opened, as NIfTI."""
        with self._lock:
            return _nifti(self._labels, self.subject.affine)

    def keep(self, body: bytes, *, known: str) -> str:
        """Keep the mask in ``body`` as draft and return its digest; raise CaseError, StateError.

        ``known`` is the digest of the mask that its sender last had from here.
        """
        one = self.subject
        labels = read_mask(body, shape=one.mask.shape, affine=one.affine)
        with self._lock:
            self._check(known)
            if np.array_equal(labels, one.mask):
                self._draft.remove()
            else:
                self._draft.write(labels)
            self._labels = labels
            return digest(labels)

    def decide(self, decision: str, *, reviewer: str, comment: str, seen: str) -> dict[str, Any]:
        """Save a decision about the mask with the digest ``seen`` as a new version.

        Raises CaseError, StateError; then nothing was saved and the draft is as it was.
        """
        with self._lock:
            self._check(seen)
            one, labels = self.subject, self._labels
            what = said(decision, reviewer, comment, changed=not np.array_equal(labels, one.mask))
            find_case(one.result, self._case)  # what was shown is still what lies there
            number = save(one, labels, what, sealer=self._sealer)
            self._draft.remove()
            told = self._decided(one, labels, what, number)
            self._open()
            return {
                "number": number,
                "decision": what.decision,
                "folder": str(one.versions.place(number)),
                "told": told,
            }

    def _check(self, known: str) -> None:
        if known != digest(self._labels):
            raise StateError(
                "The mask here is another than the one on your page: it was drawn on in another "
                "tab or decided about there.",
                do="Load this page again to go on from what is kept. What you drew since on this "
                "page is then gone: look at it first.",
                code=CONFLICT,
            )


def _encoded(image: NDArray[np.float32], affine: NDArray[np.float64]) -> bytes:
    """Return an image in 16 bits, which is more than a screen shows, with its window."""
    made = nib.Nifti1Image(image, affine)
    made.set_data_dtype(np.int16)  # the writer scales
    low = float(image.min())
    lit = image[image > low]
    made.header["cal_min"] = low
    made.header["cal_max"] = float(np.percentile(lit, 99.5)) if lit.size else low + 1
    return bytes(made.to_bytes())


def _nifti(labels: NDArray[np.uint8], affine: NDArray[np.float64]) -> bytes:
    made = nib.Nifti1Image(labels, affine)
    return bytes(made.to_bytes())
