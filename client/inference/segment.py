"""Segment one case and write what a clinician reads: the mask, the volumes, a picture.

Written to the output folder, each file whole or not at all, ``result.json`` last, so that a folder
with a ``result.json`` is complete::

    segmentation.nii.gz   uint8, 0 background, 1 NCR, 2 ED, 3 ET, on the input's own grid (of raw
                          input, the grid of the contrast-enhanced T1)
    overview.png          contours on FLAIR and contrast-enhanced T1
    result.json           volumes, model, inputs, preparation and its digest, warnings, seconds
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.cohort import Decide, read_case, undecided
from client.evaluation import predict
from client.imaging.cache import content_sha256
from client.imaging.case import Case
from client.imaging.images import read_image
from client.imaging.nifti import write_volume
from client.imaging.preprocessing import Prepared, prepare, to_native
from client.imaging.quality import warnings_of
from client.inference.model import Model
from client.inference.picture import draw_overview
from client.training import ExecutionOptions
from common.errors import StateError
from common.files import write_json
from common.networks import build, load_arrays
from common.regions import LABELS, MODALITIES, REGIONS, regions_to_labels

RESULT_VERSION: Final = 1
_SHOWN: Final = ("t2f", "t1c")
RESEARCH_USE: Final = "Research use only: a person must review this segmentation."


@dataclass(frozen=True)
class Segmentation:
    """A label map (X, Y, Z) on the grid ``affine`` of the input.

    ``history`` says how the input was prepared, ``input_sha256`` what the network was given: a site
    that trains on the case prepares the same. ``brain`` holds, of raw input, FLAIR and
    contrast-enhanced T1 on that grid, without the skull; it is None where the files share a grid.
    """

    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    history: tuple[dict[str, Any], ...] = ()
    input_sha256: str = ""
    brain: Mapping[str, NDArray[np.float32]] | None = None


def network_of(model: Model) -> torch.nn.Module:
    """Return the model's network with its weights, ready for prediction."""
    network = build(model.protocol.network, seed=0)
    load_arrays(network, model.weights)
    return network.eval()


def segment_case(
    case: Case, model: Model, network: torch.nn.Module, *, execution: ExecutionOptions
) -> Segmentation:
    """Return the segmentation of ``case`` on its own grid; raise CaseError."""
    prepared = prepare(case, model.protocol.preprocessing)
    chances = predict(
        network,
        prepared.image,
        crop_size=model.protocol.training.crop_size,
        execution=execution,
    )
    native = to_native(chances, prepared)
    raw = model.protocol.preprocessing.input == "raw"
    return Segmentation(
        regions_to_labels(native > 0.5),
        prepared.native_affine,
        prepared.history,
        prepared.input_sha256,
        _brain(prepared) if raw else None,
    )


def _brain(prepared: Prepared) -> dict[str, NDArray[np.float32]]:
    """Return what the picture shows, from the network's input: above 0 in the brain, 0 outside."""
    shown = prepared.image[[MODALITIES.index(name) for name in _SHOWN]]
    lowest = shown.min(axis=(1, 2, 3), keepdims=True)
    positive = np.where(shown != 0, shown - lowest + 0.1, 0).astype(np.float32)
    return dict(zip(_SHOWN, to_native(positive, prepared), strict=True))


def segment(
    folder: Path,
    out: Path,
    model: Model,
    *,
    execution: ExecutionOptions,
    trusted: bool,
    decide: Decide = undecided,
) -> dict[str, Any]:
    """Segment the case in ``folder`` into ``out`` and return what ``result.json`` says.

    ``trusted`` says whether the model's signer is known to be the site's own consortium, ``decide``
    which sequence a person takes a DICOM series for. Raises
    CaseError, StateError (``out`` is not empty, or the disk is full).
    """
    started = time.monotonic()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StateError(f"{out} is not an empty folder.", do="Choose a new folder for the result.")
    case = read_case(folder, decide=decide)
    found = segment_case(case, model, network_of(model), execution=execution)
    volumes = volumes_ml(found)
    write_volume(out / "segmentation.nii.gz", found.labels, found.affine)
    images = found.brain or {name: read_image(case.images[name]).data for name in _SHOWN}
    draw_overview(out / "overview.png", images, found.labels, found.affine, volumes=volumes)
    result = {
        "result_version": RESULT_VERSION,
        "volumes_ml": volumes,
        "model": model.identity,
        "inputs": {
            name: {
                "file": case.images[name].path.name,
                "channel": case.images[name].index,
                "series": case.images[name].series or None,
                "sha256": content_sha256(case.images[name]),
            }
            for name in MODALITIES
        },
        "preparation": list(found.history),
        "prepared_sha256": found.input_sha256,
        "warnings": [
            *_warnings(found, volumes, trusted=trusted, private=model.protocol.private),
            *case.notes,
        ],
        "seconds": round(time.monotonic() - started, 3),
    }
    write_json(out / "result.json", result)
    return result


def volumes_ml(found: Segmentation) -> dict[str, float]:
    """Return the volume in mL of each label and of the regions TC and WT."""
    voxel_ml = abs(float(np.linalg.det(found.affine[:3, :3]))) / 1000
    parts: dict[str, tuple[int, ...]] = {name: (value,) for name, value in LABELS.items()}
    for region in ("TC", "WT"):
        parts[region] = REGIONS[region]
    return {
        name: round(float(np.isin(found.labels, values).sum()) * voxel_ml, 3)
        for name, values in parts.items()
    }


def _warnings(
    found: Segmentation, volumes: dict[str, float], *, trusted: bool, private: bool
) -> list[str]:
    warnings = [RESEARCH_USE]
    if not trusted:
        warnings.append(
            "The model's files fit its signature, but nobody said whose signature it is: install "
            "the model at a site and use --site to have that checked."
        )
    if not private:
        warnings.append("The model was trained WITHOUT differential privacy.")
    if volumes["WT"] == 0:
        warnings.append("No tumour was found. This does not show that there is none.")
    spacing = np.linalg.norm(found.affine[:3, :3], axis=0)
    if spacing.max() > 2.0:
        warnings.append(
            f"The input's voxels are up to {spacing.max():.1f} mm wide: small parts of a tumour "
            "cannot be seen and volumes are coarse."
        )
    return warnings + warnings_of(found.history)
