"""How much a segmentation owes to each sequence: each is hidden in turn, and the rest predicts.

This is occlusion sensitivity (Zeiler & Fergus 2014, arXiv:1311.2901) by sequence instead of by
patch: one prediction more for each sequence that is there, in place of hundreds. It says what the
model's answer would have been without a sequence. It says neither why, nor whether the answer is
right: a wrong segmentation has as clear an explanation. A hidden sequence looks as a missing one
does, if the model was trained to do without; else it has the brain's mean everywhere, which no
training showed it, and part of the change is the model's surprise.

Out of scope: which place in a sequence mattered. Pure but for the prediction that is handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from client.imaging.missing_sequences import ABSENT, present
from client.segmentation.dice import dice
from common.regions import MODALITIES, REGIONS, labels_to_regions

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]
HiddenAs = Literal["absent", "mean"]

_MEAN: Final = 0.0
"""Of every z-scored sequence."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Without(_Part):
    """A region without one sequence: its volume then, and its Dice with that of all sequences."""

    volume_ml: Annotated[float, Field(ge=0)]
    dice: Annotated[float, Field(ge=0, le=1)]


class Explained(_Part):
    """By hidden sequence and region."""

    hidden_as: HiddenAs
    without: dict[Literal["t1n", "t1c", "t2w", "t2f"], dict[Literal["WT", "TC", "ET"], Without]]


@dataclass(frozen=True, eq=False)
class Explanation:
    """``changed`` (X, Y, Z, sequences) is how much the probabilities of a voxel changed at most, 0
    to 1, in the order of ``told.without``; on the grid of the labels.
    """

    told: Explained
    changed: Floats


def explanation(
    image: Floats,
    whole: Floats,
    labels: Labels,
    *,
    predict: Callable[[Floats], Floats],
    to_grid: Callable[[Floats], Floats],
    segmented: Callable[[Floats], Labels],
    dropout: bool,
    voxel_ml: float,
) -> Explanation:
    """Explain ``labels`` (X, Y, Z), from the probabilities ``whole`` of ``image`` (4, ...).

    ``predict`` is what gave them, ``to_grid`` maps (C, ...) to the labels' grid, where
    ``segmented`` makes labels of probabilities. ``dropout`` says whether the model was trained with
    sequences missing.
    """
    inside = (image != 0).any(axis=0)
    without, changed = {}, []
    names = [one for one, kept in zip(MODALITIES, present(image), strict=True) if kept]
    for name in names:
        hidden = image.copy()
        hidden[MODALITIES.index(name), inside] = ABSENT if dropout else _MEAN
        probabilities = predict(hidden)
        moved = np.abs(probabilities - whole).max(axis=0, keepdims=True)
        changed.append(to_grid(moved)[0])
        without[name] = _regions(segmented(to_grid(probabilities)), labels, voxel_ml=voxel_ml)
    told = Explained.model_validate(
        {"hidden_as": "absent" if dropout else "mean", "without": without}
    )
    return Explanation(told, np.stack(changed, axis=-1))


def _regions(now: Labels, labels: Labels, *, voxel_ml: float) -> dict[str, Without]:
    pairs = zip(REGIONS, labels_to_regions(now), labels_to_regions(labels), strict=True)
    return {
        region: Without(
            volume_ml=round(float(np.count_nonzero(one)) * voxel_ml, 3),
            dice=round(dice(one, other), 4),
        )
        for region, one, other in pairs
    }
