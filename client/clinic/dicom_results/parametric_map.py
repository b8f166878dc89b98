"""How unsure each voxel is, as a DICOM parametric map in percent, the numbers of the NIfTI file.

Whole numbers, 16 bits: few viewers show floating-point pixels. Source: DICOM PS3.3 A.75.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.sr.coding import Code

from client.clinic.dicom_results.model_identity import (
    CONTENT_LABEL,
    RESEARCH_USE,
    describe,
    device,
    equipment,
)
from client.clinic.dicom_results.source_series import Source


def make_uncertainty(
    source: Source, percent: NDArray[np.uint8], *, model: Mapping[str, Any]
) -> hd.pm.ParametricMap:
    """Return ``percent`` (column, row, slice), 0 sure to 100, on ``source``'s own frames."""
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="UNCERTAINTY",
        lut_explanation="0 sure to 100 all labels equally likely",
        unit=Code("%", "UCUM", "percent"),
        value_range=(0, 100),
        slope=1,
        intercept=0,
    )
    made = hd.pm.ParametricMap(
        source_images=source.datasets,
        pixel_array=source.frames(percent).astype(np.uint16),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=50, window_width=100)],
        content_label=CONTENT_LABEL,
        content_description=RESEARCH_USE,
        content_qualification=hd.ContentQualificationValues.RESEARCH,
        contributing_equipment=equipment(model),
        **describe("uncertainty"),
        **device(model),
    )
    made.BodyPartExamined = "BRAIN"
    return made
