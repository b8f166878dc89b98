"""A network's segmentation of prepared cases, and how well it agrees with their labels.

``evaluate`` gives the Dice that a study reports, ``evaluate_fully`` all that BraTS scores, for the
hospital's own eyes. Both segment as the clinic does, by the protocol's options.

Out of scope: resampling to the scanner's own grid, which ``client.imaging.preprocessing`` does,
and whether a score may leave the hospital. Scores are not private.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray

from client.postprocessing import segmented
from client.scoring import Scores, score_labels
from client.training import ExecutionOptions, PreparedCase
from common.errors import CaseError
from common.metrics import RegionScores
from common.regions import labels_to_regions
from common.segmentation_options import (
    DEFAULT_POSTPROCESSING,
    DEFAULT_PREDICTION,
    PostprocessingOptions,
    PredictionOptions,
)

_ONE_PASS: Final = 1.5
_WINDOWS_AT_ONCE: Final = 2


def predict(
    network: torch.nn.Module,
    image: NDArray[np.float32],
    *,
    crop_size: tuple[int, int, int],
    execution: ExecutionOptions,
    overlap: float = 0.5,
) -> NDArray[np.float32]:
    """Return each region's probability, (3, X, Y, Z) float32, for an image (4, X, Y, Z).

    A volume of at most 1.5 times ``crop_size`` on each axis is seen whole; a larger one through
    windows of that size, which overlap by ``overlap`` and are joined with Gaussian weights. Outside
    the brain, where every channel is 0, there is no tumour: 0. The
    network is moved to the device and left in the mode in which it came.
    """
    training = network.training
    network.to(execution.device).eval()
    kind = next(network.parameters()).dtype
    if execution.channels_last:
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def probabilities(windows: torch.Tensor) -> torch.Tensor:
        windows = windows.to(execution.device, kind)
        if execution.channels_last:
            windows = windows.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(
            torch.device(execution.device).type,
            torch.bfloat16,
            enabled=execution.precision == "bfloat16",
        ):
            logits: torch.Tensor = network(windows)
        return logits.float().sigmoid()

    volume = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None]
    whole = all(n <= _ONE_PASS * c for n, c in zip(image.shape[1:], crop_size, strict=True))
    try:
        with torch.inference_mode():
            if whole:
                result = probabilities(volume)
            else:
                result = sliding_window_inference(
                    volume,
                    roi_size=crop_size,
                    sw_batch_size=_WINDOWS_AT_ONCE,
                    predictor=probabilities,
                    overlap=overlap,
                    mode="gaussian",
                    sw_device=execution.device,
                    device="cpu",
                )
    finally:
        network.train(training)
    chances = np.ascontiguousarray(result[0].cpu().numpy())
    chances[:, ~(image != 0).any(axis=0)] = 0
    return chances


def evaluate(
    network: torch.nn.Module,
    cases: Iterable[Callable[[], PreparedCase]],
    *,
    crop_size: tuple[int, int, int],
    execution: ExecutionOptions,
    prediction: PredictionOptions = DEFAULT_PREDICTION,
    postprocessing: PostprocessingOptions = DEFAULT_POSTPROCESSING,
    spacing_mm: float = 1.0,
) -> RegionScores:
    """Return the Dice scores of ``network`` over ``cases``, on the prepared grid.

    ``spacing_mm`` is that grid's. Raises CaseError for a case that cannot be read or has no labels.
    """
    scores = RegionScores()
    for chances, truth in predictions(
        network, cases, crop_size=crop_size, execution=execution, prediction=prediction
    ):
        found = segmented(chances, postprocessing, voxel_mm3=spacing_mm**3)
        scores += RegionScores.of_case(labels_to_regions(found), labels_to_regions(truth))
    return scores


def evaluate_fully(
    network: torch.nn.Module,
    cases: Iterable[Callable[[], PreparedCase]],
    *,
    crop_size: tuple[int, int, int],
    execution: ExecutionOptions,
    prediction: PredictionOptions = DEFAULT_PREDICTION,
    postprocessing: PostprocessingOptions = DEFAULT_POSTPROCESSING,
    spacing_mm: float = 1.0,
) -> list[dict[str, Scores]]:
    """Return, case by case, all scores of each region; see ``evaluate`` and ``client.scoring``."""
    return [
        score_labels(
            segmented(chances, postprocessing, voxel_mm3=spacing_mm**3),
            truth,
            spacing_mm=(spacing_mm, spacing_mm, spacing_mm),
        )
        for chances, truth in predictions(
            network, cases, crop_size=crop_size, execution=execution, prediction=prediction
        )
    ]


def predictions(
    network: torch.nn.Module,
    cases: Iterable[Callable[[], PreparedCase]],
    *,
    crop_size: tuple[int, int, int],
    execution: ExecutionOptions,
    prediction: PredictionOptions = DEFAULT_PREDICTION,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Yield each case's probabilities (3, X, Y, Z) and true labels (X, Y, Z).

    Raises CaseError for a case that cannot be read or has no labels.
    """
    for load in cases:
        case = load()
        if case.labels is None:
            raise CaseError(
                "A case without a label map cannot be scored.",
                do="Add its label map or leave the case out of the cohort.",
                code="case-unlabelled",
            )
        chances = predict(
            network,
            case.image,
            crop_size=crop_size,
            execution=execution,
            overlap=prediction.overlap,
        )
        yield chances, case.labels
