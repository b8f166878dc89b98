"""What a person decided about a segmentation, and how much of it the person changed.

An edit is measured against the mask that the model drew, whatever was corrected in between. Dice is
None where a label is in neither mask. Pure.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from common.regions import LABELS

UNREVIEWED: Final = "Research use only: a person must review this segmentation."
MACHINE: Final = "machine"
"""What was opened, where it is the model's own mask and no earlier review's."""

Decision = Literal["accepted", "corrected", "rejected"]
Count = Annotated[int, Field(ge=0)]
Millilitres = Annotated[float, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LabelEdit(_Part):
    """Of one label: voxels that got it and voxels that lost it."""

    added_voxels: Count
    removed_voxels: Count
    added_ml: Millilitres
    removed_ml: Millilitres
    dice: Annotated[float, Field(ge=0, le=1)] | None


class Edit(_Part):
    """``changed`` counts each voxel once whose label is another."""

    changed_voxels: Count
    changed_ml: Millilitres
    labels: dict[str, LabelEdit]


class Review(_Part):
    """One review: ``opened`` is ``machine`` or the number of the review that was gone on from."""

    number: Annotated[int, Field(ge=1)]
    decision: Decision
    reviewer: Annotated[str, Field(min_length=1, max_length=64)]
    comment: Annotated[str, Field(max_length=2000)] = ""
    time: str
    opened: str
    opened_sha256: Sha256 = Field(description="of the mask file that was opened")
    machine_sha256: Sha256 = Field(description="of the model's own mask file")
    result_sha256: Sha256 = Field(description="of the result.json that was reviewed")
    edit: Edit


def edit_of(
    machine: NDArray[np.uint8], now: NDArray[np.uint8], *, affine: NDArray[np.float64]
) -> Edit:
    """Return what differs between two label maps (X, Y, Z) on the grid ``affine``."""
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    labels: dict[str, LabelEdit] = {}
    for name, value in LABELS.items():
        before, after = machine == value, now == value
        added = int(np.count_nonzero(after & ~before))
        removed = int(np.count_nonzero(before & ~after))
        both, total = int(np.count_nonzero(before & after)), before.sum() + after.sum()
        labels[name] = LabelEdit(
            added_voxels=added,
            removed_voxels=removed,
            added_ml=round(added * voxel_ml, 3),
            removed_ml=round(removed * voxel_ml, 3),
            dice=None if total == 0 else round(2 * both / float(total), 4),
        )
    changed = int(np.count_nonzero(machine != now))
    return Edit(changed_voxels=changed, changed_ml=round(changed * voxel_ml, 3), labels=labels)
