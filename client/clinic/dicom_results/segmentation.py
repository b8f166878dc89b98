"""The mask as a DICOM segmentation: binary, one coded segment for each label.

Binary and not a label map: archives in use refuse the newer storage class, and a viewer shifts its
colours. Frames without a voxel of a segment are left out; a mask without any tumour keeps them,
since an object must have one. Every label has its segment, also one that was not found.

Source: DICOM PS3.3 A.51 and C.8.20.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from client.clinic.dicom_results.model_identity import (
    CONTENT_LABEL,
    Reviewed,
    Trackings,
    algorithm,
    describe,
    device,
    equipment,
    research_use,
)
from client.clinic.dicom_results.source_series import Source
from common.regions import LABEL_CODES, LABEL_COLOURS, LABEL_NAMES, LABELS

_LINEAR: Final = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
_WHITE: Final = (0.9505, 1.0, 1.089)


def make_segmentation(
    source: Source,
    labels: NDArray[np.uint8],
    *,
    model: Mapping[str, Any],
    trackings: Trackings,
    reviewed: Reviewed | None = None,
) -> hd.seg.Segmentation:
    """Return ``labels`` (column, row, slice) as a segmentation of ``source``'s own frames.

    A mask that a person corrected is semi-automatic.
    """
    frames = source.frames(labels)
    corrected = reviewed is not None and reviewed.corrected
    kinds = hd.seg.SegmentAlgorithmTypeValues
    kind = kinds.SEMIAUTOMATIC if corrected else kinds.AUTOMATIC
    return hd.seg.Segmentation(
        source_images=source.datasets,
        pixel_array=np.stack([frames == value for value in LABELS.values()], -1).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(name, model, trackings[name], kind) for name in LABELS],
        content_label=CONTENT_LABEL,
        content_description=research_use(reviewed),
        contributing_equipment=equipment(model, reviewed),
        omit_empty_frames=bool(labels.any()),
        content_creator_name=None if reviewed is None else reviewed.name,
        **describe("segmentation", reviewed),
        **device(model),
    )


def _segment(
    name: str,
    model: Mapping[str, Any],
    tracking: hd.UID,
    kind: hd.seg.SegmentAlgorithmTypeValues,
) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=LABELS[name],
        segment_label=f"{name} {LABEL_NAMES[name]}",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=Code(*LABEL_CODES[name]),
        algorithm_type=kind,
        algorithm_identification=algorithm(model),
        tracking_uid=tracking,
        tracking_id=name,
        anatomic_regions=[codes.SCT.Brain],
        display_color=hd.color.CIELabColor(*_lab(LABEL_COLOURS[name])),
    )


def _lab(colour: str) -> tuple[float, float, float]:
    """Return CIE L*a*b* (D65) of an sRGB ``#rrggbb``; IEC 61966-2-1 and CIE 15."""
    encoded = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    light = np.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)
    xyz = np.array(_LINEAR) @ light / np.array(_WHITE)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return float(116 * y - 16), float(500 * (x - y)), float(200 * (y - z))
