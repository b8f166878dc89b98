"""A network's segmentation of prepared cases, and how well it agrees with their labels.

Out of scope: resampling to the scanner's own grid, which ``client.imaging.preprocessing`` does,
and whether a score may leave the hospital. Scores are not private.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray

from client.training import ExecutionOptions, PreparedCase
from common.errors import CaseError
from common.metrics import RegionScores
from common.regions import labels_to_regions, regions_to_labels

THRESHOLD: Final = 0.5
"""A voxel is in a region when its probability is above it."""

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
    overlap: float = 0.5,
) -> RegionScores:
    """Return the Dice scores of ``network`` over ``cases``, on the prepared grid.

    The regions are nested first, as they are in a stored segmentation. Raises CaseError for a
    case that cannot be read or has no labels.
    """
    scores = RegionScores()
    for load in cases:
        case = load()
        if case.labels is None:
            raise CaseError(
                "A case without a label map cannot be scored.",
                do="Add its label map or leave the case out of the cohort.",
                code="case-unlabelled",
            )
        chance = predict(
            network, case.image, crop_size=crop_size, execution=execution, overlap=overlap
        )
        found = labels_to_regions(regions_to_labels(chance > THRESHOLD))
        scores += RegionScores.of_case(found, labels_to_regions(case.labels))
    return scores
