"""How a trained network's output becomes a segmentation, as a study's protocol says it.

Sites score and clinics segment by the same options: they travel in the signed protocol, which is
part of every release. All are chosen by validation, before the study or in an earlier one; none is
fitted on the patients that a score is about. Volumes are in mm3, so that an option means the same
on every grid.

Out of scope: the steps themselves (``client.segmentation.prediction``,
``client.segmentation.postprocessing``).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Axis = Literal["x", "y", "z"]
AXES: Final[tuple[Axis, ...]] = ("x", "y", "z")
"""Of a prepared image: left to right, back to front, bottom to top."""

Threshold = Annotated[float, Field(gt=0, lt=1)]
Volume = Annotated[float, Field(ge=0, le=1e6)]


class PredictionOptions(BaseModel):
    """How a network sees a volume that is larger than its crops."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    overlap: float = Field(default=0.5, ge=0, le=0.9)
    """Share of a window that it has in common with the next one."""
    mirrors: tuple[Axis, ...] = ()
    """Axes along which each window is also seen mirrored; n of them make 2^n views, which are
    averaged."""

    @field_validator("mirrors")
    @classmethod
    def _once(cls, value: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(axis for axis in AXES if axis in value)


class PostprocessingOptions(BaseModel):
    """What is done to the regions' probabilities, in this order. The defaults only threshold.

    Triples are in the order of ``common.regions.REGIONS``: WT, TC, ET.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    thresholds: tuple[Threshold, Threshold, Threshold] = (0.5, 0.5, 0.5)
    """A voxel is in a region when the network's own probability, not calibrated, is above it."""
    fill_holes: bool = False
    """Background inside the whole tumour becomes oedema, oedema inside the core necrosis."""
    smallest_part_mm3: tuple[Volume, Volume, Volume] = (0.0, 0.0, 0.0)
    """A connected part of a region that is smaller falls back to the region around it."""
    smallest_et_mm3: Volume = 0.0
    """If all enhancing tumour together is less, it becomes necrosis: a case that has none scores 0
    for a single voxel."""


DEFAULT_PREDICTION: Final = PredictionOptions()
DEFAULT_POSTPROCESSING: Final = PostprocessingOptions()
