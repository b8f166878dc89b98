"""The images that were segmented, found again and checked before anybody looks at them.

Invariant: what is shown is what was segmented: each sequence has the SHA-256 that ``result.json``
holds of it. It is shown on the mask's own grid: as it is where it lies there, else sampled through
the motion that the preparation found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.clinic.result_schema import Result
from client.cohort.case_discovery import read_case
from client.cohort.series_decisions import for_once
from client.imaging import grid
from client.imaging.case import Case
from client.imaging.image_reading import read_image
from client.imaging.nifti import Volume
from client.imaging.prepared_cache import content_sha256
from common.errors import CaseError
from common.regions import MODALITIES


def find_case(result: Result, folder: Path | None = None) -> Case:
    """Return the case that ``result`` is of, in ``folder`` or where it was segmented.

    Raises CaseError (``case-changed``) where it is not there or other than it was.
    """
    place = folder or (Path(result.source) if result.source else None)
    if place is None or not place.exists():
        raise CaseError(
            f"The images that were segmented are not at {place or 'a known place'} any more.",
            do="Say where they are with --case FOLDER: the folder or zip file that was segmented.",
            code="case-changed",
        )
    named = [(str(name), one.series) for name, one in result.inputs.items() if one.series]
    case = read_case(place, decide=for_once(named))
    for name, one in result.inputs.items():
        image = case.images.get(name)
        if image is None or _sha256(image) != one.sha256:
            raise CaseError(
                f"The {name} in {place} is not the one that was segmented.",
                do="Give the folder that was segmented with --case, or segment this one.",
                code="case-changed",
            )
    return case


def _sha256(image: Any) -> str:
    try:
        return content_sha256(image)
    except OSError as error:
        raise CaseError(
            f"{error.filename or image.path} cannot be read: {error.strerror or error}.",
            do="Check that the file is there and that this user may read it.",
            code="case-file",
        ) from error


def shown(
    case: Case, result: Result, shape: tuple[int, ...], affine: NDArray[np.float64]
) -> dict[str, NDArray[np.float32]]:
    """Return each sequence of ``case`` on the mask's grid; raise CaseError as the readers do."""
    motions = _motions(result)
    return {
        name: _on(read_image(case.images[name]), motions.get(name), shape, affine)
        for name in MODALITIES
        if name in case.images and name in result.inputs
    }


def _motions(result: Result) -> Mapping[str, NDArray[np.float64]]:
    return {
        str(step["sequence"]): np.array(step["matrix"], np.float64)
        for step in result.preparation
        if step.get("step") == "register"
    }


def _on(
    volume: Volume,
    motion: NDArray[np.float64] | None,
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
) -> NDArray[np.float32]:
    same = volume.data.shape == shape and np.allclose(volume.affine, affine, rtol=0, atol=1e-2)
    if motion is None and same:
        return np.asarray(volume.data, np.float32)
    target = affine if motion is None else motion @ affine
    to_data = np.linalg.inv(volume.affine) @ target
    return grid.sample(
        np.asarray(volume.data, np.float32), to_data, shape, smooth=True, outside=0.0
    )
