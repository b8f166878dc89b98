"""A network's segmentation of prepared cases, and how well it agrees with their labels.

``evaluate`` gives the Dice that a study reports, ``evaluate_fully`` all that BraTS scores, for the
hospital's own eyes. Both segment as the clinic does, by the protocol's options.

Out of scope: resampling to the scanner's own grid, which ``client.imaging.preprocessing`` does,
and whether a score may leave the hospital. Scores are not private.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.segmentation.calibration import Counts, calibration_errors
from client.segmentation.dice import RegionScores
from client.segmentation.postprocessing import segmented
from client.segmentation.prediction import Networks, predict
from client.segmentation.scores import Scores, mean_scores, score_labels
from client.site.execution import ExecutionOptions
from client.training.crops import PreparedCase
from common.errors import CaseError
from common.regions import REGIONS, labels_to_regions
from common.study.segmentation_options import (
    DEFAULT_POSTPROCESSING,
    DEFAULT_PREDICTION,
    PostprocessingOptions,
    PredictionOptions,
)


def evaluate(
    networks: Networks,
    cases: Iterable[Callable[[], PreparedCase]],
    *,
    crop_size: tuple[int, int, int],
    execution: ExecutionOptions,
    prediction: PredictionOptions = DEFAULT_PREDICTION,
    postprocessing: PostprocessingOptions = DEFAULT_POSTPROCESSING,
    spacing_mm: float = 1.0,
) -> RegionScores:
    """Return the Dice scores of ``networks`` over ``cases``, on the prepared grid.

    ``spacing_mm`` is that grid's. Raises CaseError for a case that cannot be read or has no labels.
    """
    scores = RegionScores()
    for probabilities, truth in predictions(
        networks, cases, crop_size=crop_size, execution=execution, prediction=prediction
    ):
        found = segmented(probabilities, postprocessing, voxel_mm3=spacing_mm**3)
        scores += RegionScores.of_case(labels_to_regions(found), labels_to_regions(truth))
    return scores


@dataclass(frozen=True)
class Evaluation:
    """All scores of several cases, for the hospital's own eyes."""

    cases: tuple[dict[str, Scores], ...]
    """Of each case, by region."""
    counts: Counts
    """How true the probabilities were."""

    @property
    def dice(self) -> RegionScores:
        """What ``evaluate`` gives."""
        total = RegionScores()
        for case in self.cases:
            total += RegionScores.of_values([case[region].dice for region in REGIONS])
        return total

    def summary(self) -> dict[str, Any]:
        """Return the means over the cases and the calibration error, by region."""
        return {
            "scores": mean_scores(self.cases),
            "calibration_error": calibration_errors(self.counts),
        }


def evaluate_fully(
    networks: Networks,
    cases: Iterable[Callable[[], PreparedCase]],
    *,
    crop_size: tuple[int, int, int],
    execution: ExecutionOptions,
    prediction: PredictionOptions = DEFAULT_PREDICTION,
    postprocessing: PostprocessingOptions = DEFAULT_POSTPROCESSING,
    spacing_mm: float = 1.0,
) -> Evaluation:
    """Return all scores of each case; see ``evaluate`` and ``client.segmentation.scores``."""
    scores, counts = [], Counts.none()
    for probabilities, truth in predictions(
        networks, cases, crop_size=crop_size, execution=execution, prediction=prediction
    ):
        found = segmented(probabilities, postprocessing, voxel_mm3=spacing_mm**3)
        scores.append(score_labels(found, truth, spacing_mm=(spacing_mm,) * 3))
        counts += Counts.of_case(probabilities, labels_to_regions(truth))
    return Evaluation(tuple(scores), counts)


def predictions(
    networks: Networks,
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
        probabilities = predict(
            networks,
            case.image,
            crop_size=crop_size,
            execution=execution,
            options=prediction,
        )
        yield probabilities, case.labels
