"""The draft of a review on the disk: what was drawn and not decided yet.

It lies beside the reviews, whole or not there (``common.records.atomic_files``), so that it
outlives the process. Its name holds the digest of the mask that it goes on from: after a decision
it is nobody's draft.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.imaging.nifti import read_volume, write_volume
from common.errors import StateError


def digest(labels: NDArray[np.uint8]) -> str:
    """Return the SHA-256 (hex) of labels (X, Y, Z), by which page and server name a mask."""
    return hashlib.sha256(np.ascontiguousarray(labels, np.uint8).tobytes()).hexdigest()


class Draft:
    """What was drawn from the mask file with ``opened_sha256`` on, on the grid ``affine``."""

    def __init__(self, folder: Path, opened_sha256: str, affine: NDArray[np.float64]) -> None:
        self.path = folder / f"draft-{opened_sha256[:16]}.nii.gz"
        self._affine = affine

    def read(self, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
        """Return the labels, None where nothing was drawn; raise CaseError, StateError."""
        if not self.path.exists():
            return None
        labels: NDArray[np.uint8] = read_volume(self.path, dtype=np.uint8, empty_ok=True).data
        if labels.shape != shape or labels.max() > 3:
            raise StateError(
                f"The draft {self.path} is of another scan.",
                do="Move it away; then the review begins from the saved mask.",
                code="review-draft",
            )
        return labels

    def write(self, labels: NDArray[np.uint8]) -> None:
        """Keep ``labels``, on the disk on return; raise StateError where that fails."""
        write_volume(self.path, labels, self._affine)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
