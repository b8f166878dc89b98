"""Segment one case and write what a clinician reads: the mask, the volumes, a picture.

Written to the output folder, each file whole or not at all, ``result.json`` last, so that a folder
with a ``result.json`` is complete::

    segmentation.nii.gz   uint8, 0 background, 1 NCR, 2 ED, 3 ET, on the input's own grid (of raw
                          input, the grid of the contrast-enhanced T1)
    uncertainty.nii.gz    uint8 on the same grid: the entropy of each voxel's label, 0 (sure) to 100
    overview.png          contours on FLAIR and contrast-enhanced T1
    result.json           volumes, confidence, model, inputs, preparation, warnings, seconds
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.calibration import AS_IT_IS, Temperatures, calibrated
from client.cohort import Decide, read_case, undecided
from client.confidence import entropy, region_confidence
from client.imaging.cache import content_sha256
from client.imaging.case import Case
from client.imaging.images import read_image
from client.imaging.nifti import write_volume
from client.imaging.preprocessing import Prepared, prepare, to_native
from client.imaging.quality import warnings_of
from client.inference.model import Model
from client.inference.picture import draw_overview
from client.postprocessing import segmented
from client.prediction import Networks, predict
from client.training import ExecutionOptions
from common.errors import ModelError, StateError
from common.files import write_json
from common.networks import build, load_arrays
from common.regions import LABELS, MODALITIES, REGIONS

RESULT_VERSION: Final = 1
_SHOWN: Final = ("t2f", "t1c")
RESEARCH_USE: Final = "Research use only: a person must review this segmentation."


@dataclass(frozen=True)
class Segmentation:
    """A label map (X, Y, Z) on the grid ``affine`` of the input.

    ``entropy`` says from 0 to 1 how unsure each voxel is, ``confidence`` which Dice is to be
    expected of each region; see ``client.confidence``.

    ``history`` says how the input was prepared. ``brain`` holds, of raw input, FLAIR and
    contrast-enhanced T1 on that grid, without the skull; it is None where the files share a grid.
    """

    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    history: tuple[dict[str, Any], ...] = ()
    brain: Mapping[str, NDArray[np.float32]] | None = None
    entropy: NDArray[np.float32] | None = None
    confidence: Mapping[str, float] = field(default_factory=dict)


def network_of(model: Model) -> torch.nn.Module:
    """Return the model's network with its weights, ready for prediction."""
    network = build(model.protocol.network, seed=0)
    load_arrays(network, model.weights)
    return network.eval()


def segment_case(
    case: Case,
    model: Model,
    networks: Networks,
    *,
    execution: ExecutionOptions,
    temperatures: Temperatures = AS_IT_IS,
) -> Segmentation:
    """Return the segmentation of ``case`` on its own grid; raise CaseError.

    ``model`` says how; ``networks`` are its own, and others that predict together with it.
    ``temperatures`` make the probabilities truer here; they change no label.
    """
    prepared = prepare(case, model.protocol.preprocessing)
    chances = predict(
        networks,
        prepared.image,
        crop_size=model.protocol.training.crop_size,
        execution=execution,
        options=model.protocol.prediction,
    )
    native = to_native(chances, prepared)
    voxel_mm3 = abs(float(np.linalg.det(prepared.native_affine[:3, :3])))
    raw = model.protocol.preprocessing.input == "raw"
    labels = segmented(native, model.protocol.postprocessing, voxel_mm3=voxel_mm3)
    truer = calibrated(native, temperatures)
    return Segmentation(
        labels,
        prepared.native_affine,
        prepared.history,
        _brain(prepared) if raw else None,
        entropy(truer),
        region_confidence(truer, labels),
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
    others: Sequence[Model] = (),
    temperatures: Temperatures | None = None,
) -> dict[str, Any]:
    """Segment the case in ``folder`` into ``out`` and return what ``result.json`` says.

    ``trusted`` says whether the model's signer is known to be the site's own consortium, ``decide``
    which sequence a person takes a DICOM series for. ``others`` predict together with ``model``,
    whose protocol says how the result is processed. ``temperatures`` are those fitted at this site,
    None without. Raises CaseError, ModelError (the others take another input), StateError (``out``
    is not empty, or the disk is full).
    """
    started = time.monotonic()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StateError(f"{out} is not an empty folder.", do="Choose a new folder for the result.")
    for other in others:
        check_together(model, other)
    case = read_case(folder, decide=decide)
    found = segment_case(
        case,
        model,
        [network_of(one) for one in (model, *others)],
        execution=execution,
        temperatures=temperatures or AS_IT_IS,
    )
    volumes = volumes_ml(found)
    write_volume(out / "segmentation.nii.gz", found.labels, found.affine)
    if found.entropy is not None:
        percent = np.rint(100 * found.entropy).astype(np.uint8)
        write_volume(out / "uncertainty.nii.gz", percent, found.affine)
    images = found.brain or {name: read_image(case.images[name]).data for name in _SHOWN}
    draw_overview(out / "overview.png", images, found.labels, found.affine, volumes=volumes)
    result = {
        "result_version": RESULT_VERSION,
        "volumes_ml": volumes,
        "confidence": dict(found.confidence),
        "calibrated": temperatures is not None,
        "model": model.identity,
        "together_with": [other.identity for other in others],
        "postprocessing": model.protocol.postprocessing.model_dump(mode="json"),
        "precision": execution.prediction_precision,
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
        "warnings": [
            *_warnings(found, volumes, trusted=trusted, private=model.protocol.private),
            *case.notes,
        ],
        "seconds": round(time.monotonic() - started, 3),
    }
    write_json(out / "result.json", result)
    return result


def check_together(model: Model, other: Model) -> None:
    """Raise ModelError unless the two can predict together: both see the same prepared image."""
    if other.protocol.preprocessing_sha256 != model.protocol.preprocessing_sha256:
        raise ModelError(
            f"{other.card['name']} {other.card['version']} and {model.card['name']} "
            f"{model.card['version']} were trained on input that was prepared differently.",
            do="Let only models with the same preprocessing predict together.",
            code="model-preprocessing",
        )


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
