"""How a released model segments a case; ``client.clinic.result_folder`` is what comes of it.

The case is prepared as for training, the networks predict, what they say goes back to its grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.clinic.ood import Cohort, familiarity
from client.clinic.released_model import Model
from client.clinic.result_folder import SHOWN, Origin, Segmentation, segment_by
from client.clinic.result_schema import federation_json
from client.clinic.sequence_importance import explanation
from client.clinic.stage_times import Stopwatch
from client.clinic.uncertainty import Predictions, predictions, range_ml, uncertainty
from client.cohort.case_discovery import Decide, undecided
from client.imaging.case import Case
from client.imaging.image_reading import read_image
from client.imaging.missing_sequences import check_usable
from client.imaging.nifti import Volume
from client.imaging.plausibility import judge_stripped
from client.imaging.preprocessing import Prepared, prepare, to_native
from client.networks.registry import build, load_arrays
from client.segmentation.calibration import AS_IT_IS, Temperatures, calibrated
from client.segmentation.expected_dice import region_confidence
from client.segmentation.postprocessing import segmented
from client.segmentation.prediction import Networks, predict
from client.site.execution import ExecutionOptions
from common.errors import ModelError
from common.regions import MODALITIES
from common.trust.identity import Identity


def origin_of(
    model: Model,
    *,
    execution: ExecutionOptions,
    trusted: bool,
    calibrated: bool,
    others: Sequence[Model] = (),
) -> Origin:
    """Return what results of ``model`` say of it."""
    return Origin(
        model.identity,
        federation_json(model.card),
        tuple(other.identity for other in others),
        model.protocol.postprocessing.model_dump(mode="json"),
        execution.prediction_precision,
        calibrated,
        trusted,
        device=execution.kind,
        layout=execution.layout,
        threads=execution.threads,
    )


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
    read: Mapping[str, Volume] | None = None,
    explain: bool = False,
) -> Segmentation:
    """Return the segmentation of ``case`` on its own grid.

    ``model`` says how; ``networks`` are its own, and others that predict together with it.
    ``temperatures`` make the probabilities truer here; they change no label. ``read`` holds the
    sequences where they were read before. ``explain`` asks how much the answer owes to each
    sequence, at the cost of a prediction for each.

    Raises CaseError: what ``prepare`` raises, ``case-sequence`` where the model cannot do without
    what is missing, or ``case-brain`` where no brain is shown.
    """
    training = model.protocol.training
    check_usable(case.name, case.missing, sequence_dropout=training.sequence_dropout)
    options = model.protocol.preprocessing
    watch = Stopwatch()
    read = read or {name: read_image(image) for name, image in case.images.items()}
    watch.done("load")
    # A mask in the patient's folder is no part of what is segmented, whatever it holds.
    prepared = prepare(replace(case, label=None), options, read=read)
    seen = {name: read[name].data for name in SHOWN if name in read}
    del read  # the others are not needed while the network works
    if options.input == "brats":  # of raw input the brain was judged when it was found
        judge_stripped((prepared.image != 0).any(axis=0), options.spacing_mm, case.name)

    def probabilities(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return predict(
            networks,
            image,
            crop_size=training.crop_size,
            execution=execution,
            options=model.protocol.prediction,
        )

    watch.done("prepare")
    found = predictions(probabilities, prepared.image)
    watch.done("predict")
    raw = options.input == "raw"
    voxel_mm3 = abs(float(np.linalg.det(prepared.native_affine[:3, :3])))
    labels = segmented(
        to_native(found.there, prepared), model.protocol.postprocessing, voxel_mm3=voxel_mm3
    )
    watch.done("measure")
    explained = None
    if explain:
        explained = explanation(
            prepared.image,
            found.there,
            labels,
            predict=probabilities,
            to_grid=lambda values: to_native(values, prepared),
            segmented=lambda values: segmented(
                values, model.protocol.postprocessing, voxel_mm3=voxel_mm3
            ),
            dropout=training.sequence_dropout > 0,
            voxel_ml=voxel_mm3 / 1000,
        )
        watch.done("explain")
    truer = Predictions(
        calibrated(found.there, temperatures),
        tuple(calibrated(one, temperatures) for one in found.fewer),
    )
    native = to_native(truer.there, prepared)
    others = (to_native(one, prepared) for one in truer.fewer)  # one at a time: they are large
    result = Segmentation(
        labels,
        prepared.native_affine,
        prepared.history,
        prepared.input_sha256,
        _brain(prepared) if raw else None,
        to_native(uncertainty(truer)[None], prepared)[0],
        range_ml(chain([native], others), voxel_ml=voxel_mm3 / 1000),
        region_confidence(native, labels),
        None if raw else seen,
        familiarity(
            prepared,
            Cohort.of(model.card),
            whole_tumour_ml=np.count_nonzero(labels) * voxel_mm3 / 1000,
        ),
        explained,
    )
    watch.done("measure")
    return replace(result, stages=watch.stages)


def _brain(prepared: Prepared) -> dict[str, NDArray[np.float32]]:
    """Return what the picture shows, from the network's input: above 0 in the brain, 0 outside."""
    names = [name for name in SHOWN if name not in prepared.missing]
    shown = prepared.image[[MODALITIES.index(name) for name in names]]
    lowest = shown.min(axis=(1, 2, 3), keepdims=True)
    positive = np.where(shown != 0, shown - lowest + 0.1, 0).astype(np.float32)
    return dict(zip(names, to_native(positive, prepared), strict=True))


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
    prior: Path | None = None,
    sealer: tuple[str, Identity] | None = None,
    explain: bool = False,
) -> dict[str, Any]:
    """Segment the case in ``folder`` into ``out`` and return what ``result.json`` says.

    ``trusted`` says whether the model's signer is known to be the site's own consortium, ``decide``
    which sequence a person takes a DICOM series for. ``others`` predict together with ``model``,
    whose protocol says how the result is processed. ``temperatures`` are those fitted at this site,
    None without. ``prior`` is the folder of an earlier result to compare with, ``sealer`` the site
    that signs the result, by name and key; ``explain`` asks what each sequence mattered. Raises
    CaseError, ModelError (the others take another input), StateError (``out`` is not empty, the
    disk is full, or ``prior`` holds no result).
    """
    for other in others:
        check_together(model, other)

    def here(case: Case) -> tuple[Segmentation, Origin]:
        found = segment_case(
            case,
            model,
            [network_of(one) for one in (model, *others)],
            execution=execution,
            temperatures=temperatures or AS_IT_IS,
            explain=explain,
        )
        return found, origin_of(
            model,
            execution=execution,
            trusted=trusted,
            calibrated=temperatures is not None,
            others=others,
        )

    return segment_by(here, folder, out, decide=decide, prior=prior, sealer=sealer)


def check_together(model: Model, other: Model) -> None:
    """Raise ModelError unless the two can predict together: both see the same prepared image."""
    if other.protocol.preprocessing_sha256 != model.protocol.preprocessing_sha256:
        raise ModelError(
            f"{other.card['name']} {other.card['version']} and {model.card['name']} "
            f"{model.card['version']} were trained on input that was prepared differently.",
            do="Let only models with the same preprocessing predict together.",
            code="model-preprocessing",
        )
