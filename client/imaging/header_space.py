"""Where a NIfTI file lies in space, in millimetres; or why its header cannot be believed.

A header has two places for it, sform and qform, in lengths of a unit that it names. The sform
counts where it is set, as the standard says; the two may describe two spaces (the scanner's and an
atlas's), so that they may differ, but never by a mirror or a turn. Pure.

Source: NIfTI-1.1, nifti1.h, "3D IMAGE (VOLUME) ORIENTATION AND LOCATION IN SPACE".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import CaseError

_MM: Final = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}
"""By NIfTI's code of a unit; all others mean millimetres, as tools that set none do."""

VOXEL_MM: Final = (0.01, 100.0)
"""What a side of a voxel can measure."""

_MOST_SHEAR: Final = 0.01
"""Cosine between two axes that should stand upright on each other; rounding leaves 1e-4."""

_MOST_TURN_DEG: Final = 45.0
_MOST_APART: Final = 0.02
"""Of the field's diagonal, how far sform and qform may part that both describe one space."""

_AGAIN: Final = "Convert it again from its DICOM series, for instance with dcm2niix."
_COPY_HEADER: Final = (
    "If the mask was drawn on one of the case's images, copy that image's header onto it, for "
    "instance with FSL's `fslcpgeom IMAGE MASK`, and look at both in a viewer."
)


def affine_mm(header: Any, path: Path, *, mask: bool) -> NDArray[np.float64]:
    """Return the affine (4, 4) of a NIfTI header in mm; raise CaseError (``case-affine``).

    ``mask`` only chooses the advice.
    """
    if not header["sform_code"] and not header["qform_code"]:
        raise CaseError(
            f"{path} does not say how it lies in space (neither sform nor qform is set).",
            do=_COPY_HEADER if mask else _AGAIN,
            code="case-affine",
        )
    affine = np.asarray(header.get_best_affine(), np.float64)
    unit, scale = _MM.get(int(header["xyzt_units"]) & 7, ("millimetres", 1.0))
    affine[:3] *= scale
    check_affine(affine, path, unit=unit)
    if header["sform_code"] and header["qform_code"]:
        other = np.asarray(header.get_qform(), np.float64)
        other[:3] *= scale
        _check_both(affine, other, header, path)
    return affine


def check_affine(affine: NDArray[np.float64], path: Path, *, unit: str = "millimetres") -> None:
    """Raise CaseError (``case-affine``) for an affine in mm that no image has.

    ``unit`` is what the file gives lengths in, for the message.
    """
    fault, do = "", _AGAIN
    if not np.isfinite(affine).all():
        fault = "its affine holds values that are not finite"
    else:
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
            fault = "its affine is zero or flat: it has no inverse"
        elif not VOXEL_MM[0] <= lengths.min() <= lengths.max() <= VOXEL_MM[1]:
            sides = " x ".join(f"{one:.3g}" for one in lengths)
            fault = f"its header gives lengths in {unit}, so that a voxel would be {sides} mm"
            do = "Correct the unit (xyzt_units) or the voxel size in its header."
        elif (shear := _shear(affine[:3, :3] / lengths)) > _MOST_SHEAR:
            fault = f"its axes are sheared by {shear:.1%}, more than {_MOST_SHEAR:.0%}"
            do = "Resample it to a grid with upright axes, for instance its T1's."
    if fault:
        raise CaseError(
            f"{path} cannot be placed in space: {fault}.",
            do=do,
            code="case-affine",
        )


def _shear(directions: NDArray[np.float64]) -> float:
    """Return the largest cosine between two of the axes, of length 1, in the columns."""
    return float(np.abs(directions.T @ directions - np.eye(3)).max())


def _check_both(
    sform: NDArray[np.float64], qform: NDArray[np.float64], header: Any, path: Path
) -> None:
    """Raise CaseError (``case-affine``) where sform and qform cannot both be true."""
    one, other = (m[:3, :3] / np.linalg.norm(m[:3, :3], axis=0) for m in (sform, qform))
    turn = one @ other.T
    fault = ""
    if np.linalg.det(turn) < 0:
        fault = "they are mirrored against each other, so that left and right are uncertain"
    elif (degrees := _angle_deg(turn)) > _MOST_TURN_DEG:
        fault = f"they are turned by {degrees:.0f} degrees against each other"
    elif header["sform_code"] == header["qform_code"]:
        size = np.array(header.get_data_shape()[:3])
        corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)], np.float64)
        corners[:, :3] *= size - 1
        ends = (corners @ sform.T)[:, :3]
        apart = float(np.linalg.norm(ends - (corners @ qform.T)[:, :3], axis=1).max())
        if apart > _MOST_APART * float(np.linalg.norm(ends[-1] - ends[0])):
            fault = f"they are {apart:.0f} mm apart and both said to be of one space"
    if fault:
        raise CaseError(
            f"{path} says in two ways where it lies, and sform and qform disagree: {fault}.",
            do="Find out which one is right (a viewer shows one of them), set both to it, or "
            "convert the image again from its DICOM series.",
            code="case-affine",
        )


def _angle_deg(turn: NDArray[np.float64]) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
