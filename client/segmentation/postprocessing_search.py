"""Which post-processing would have served a site's validation patients best.

One option after another is tried, each with those before it as they were chosen, and kept at its
default unless another value gains at least ``WORTH``: few patients choose by chance. What is found
is about those patients: nothing of it leaves the site unless a person tells the coordinator, whose
next protocol may say it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from client.segmentation.postprocessing import segmented
from client.segmentation.scores import score_labels
from common.regions import REGIONS
from common.study.segmentation_options import PostprocessingOptions

Criterion = Literal["dice", "lesion_dice"]
Predicted = tuple[NDArray[np.floating[Any]], NDArray[np.uint8]]
"""A case's probabilities (3, X, Y, Z) and true labels."""

WORTH: Final = 0.002

THRESHOLDS: Final = (0.5, 0.3, 0.4, 0.6, 0.7)
SMALLEST_PARTS_MM3: Final = (0.0, 50.0, 200.0, 500.0)
SMALLEST_ET_MM3: Final = (0.0, 50.0, 100.0, 200.0, 500.0)


@dataclass(frozen=True)
class Trial:
    """One value of an option, and the mean score with it."""

    option: str
    value: float | bool
    score: float
    chosen: bool


def try_options(
    cases: Sequence[Predicted],
    *,
    spacing_mm: float,
    criterion: Criterion,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[PostprocessingOptions, list[Trial]]:
    """Return the options that score best on ``cases``, which lie on the prepared grid, and all
    that was tried. The score is the mean over cases and regions of ``criterion``."""
    spacing = (spacing_mm, spacing_mm, spacing_mm)

    def score(options: PostprocessingOptions) -> float:
        scores = [
            score_labels(
                segmented(probabilities, options, voxel_mm3=spacing_mm**3),
                truth,
                spacing_mm=spacing,
            )
            for probabilities, truth in cases
        ]
        return float(np.mean([getattr(s[region], criterion) for s in scores for region in REGIONS]))

    best, trials = PostprocessingOptions(), list[Trial]()
    steps = _steps()
    for done, (option, values, changed) in enumerate(steps, start=1):
        found = [(value, score(changed(best, value))) for value in values]
        default, default_score = found[0]
        value, top = max(found, key=lambda one: one[1])
        chosen = value if top >= default_score + WORTH else default
        best = changed(best, chosen)
        trials += [Trial(option, v, round(s, 6), v == chosen) for v, s in found]
        progress(done, len(steps))
    return best, trials


def as_toml(options: PostprocessingOptions) -> str:
    """Return the protocol's section that says ``options``."""
    lines = ["[postprocessing]"]
    for key, value in options.model_dump(mode="json").items():
        lines.append(f"{key} = {str(value).lower() if isinstance(value, bool) else value}")
    return "\n".join(lines)


Changed = Callable[[PostprocessingOptions, Any], PostprocessingOptions]


def _steps() -> list[tuple[str, tuple[Any, ...], Changed]]:
    """Return the options in the order in which they are tried, each with its default first."""
    steps: list[tuple[str, tuple[Any, ...], Changed]] = []
    for place, region in enumerate(REGIONS):
        steps.append((f"thresholds, {region}", THRESHOLDS, _at(place, "thresholds")))
    steps.append(("fill_holes", (False, True), _with("fill_holes")))
    for place, region in enumerate(REGIONS):
        name = "smallest_part_mm3"
        steps.append((f"{name}, {region}", SMALLEST_PARTS_MM3, _at(place, name)))
    steps.append(("smallest_et_mm3", SMALLEST_ET_MM3, _with("smallest_et_mm3")))
    return steps


def _with(key: str) -> Changed:
    return lambda options, value: options.model_copy(update={key: value})


def _at(place: int, key: str) -> Changed:
    def changed(options: PostprocessingOptions, value: Any) -> PostprocessingOptions:
        triple = list(getattr(options, key))
        triple[place] = value
        return options.model_copy(update={key: tuple(triple)})

    return changed
