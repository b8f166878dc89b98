"""The table and the curves of the runs that are done."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from common import console
from tests.benchmarks.accuracy.plan import Run

COHORTS = {
    "folder": "four hospitals of a folder",
    "phantoms": "six hospitals of 60 phantom patients",
}


def write(results: Path, runs: Sequence[Run]) -> None:
    """Write ``table.md`` and ``curves.png`` beside the folder of results."""
    found = {run.key: _of(results, run) for run in runs}
    done = [run for run in runs if found[run.key]]
    lines = []
    for cohort, says in COHORTS.items():
        rows = [run for run in done if run.cohort == cohort]
        if not rows:
            continue
        lines += [
            f"### {says[0].upper()}{says[1:]}",
            "",
            "| model | parameters | epsilon | mean Dice | worst site | seeds |",
            "| --- | --- | --- | --- | --- | --- |",
            *(_line(run, found[run.key]) for run in rows),
            "",
        ]
    left = sum(len(run.seeds) - len(found[run.key]) for run in runs)
    if left:
        lines += [f"{left} runs of {sum(len(run.seeds) for run in runs)} are not done yet.", ""]
    (results.parent / "table.md").write_text("\n".join(lines))
    console.say("\n".join(lines))
    _curves(results.parent / "curves.png", done, found)


def _of(results: Path, run: Run) -> list[dict[str, Any]]:
    paths = [results / f"{run.key}-{seed}.json" for seed in run.seeds]
    return [json.loads(path.read_bytes()) for path in paths if path.exists()]


def _line(run: Run, found: list[dict[str, Any]]) -> str:
    cells = [
        run.says,
        f"{found[0]['parameters'] / 1e6:.2f} M",
        "-" if run.epsilon is None else f"{run.epsilon:g}",
        _spread([one["mean"] for one in found]) + _best(run, found),
        _spread([one["worst"] for one in found]),
        str(len(found)),
    ]
    return f"| {' | '.join(cells)} |"


def _best(run: Run, found: list[dict[str, Any]]) -> str:
    """Return the best model's mean, where there is one a hospital."""
    if run.learn != "alone":
        return ""
    return f" (best hospital's {statistics.fmean(one['best_model'] for one in found):.3f})"


def _spread(values: list[float]) -> str:
    said = f"{statistics.fmean(values):.3f}"
    return f"{said} ± {statistics.stdev(values):.3f}" if len(values) > 1 else said


def _curves(path: Path, done: Sequence[Run], found: dict[str, list[dict[str, Any]]]) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    drawn = [run for run in done if len(found[run.key][0]["curve"]) > 1]
    cohorts = [cohort for cohort in COHORTS if any(run.cohort == cohort for run in drawn)]
    if not cohorts:
        return
    figure, axes = plt.subplots(1, len(cohorts), figsize=(7 * len(cohorts), 8), squeeze=False)
    colours = mpl.colormaps["tab20"].colors
    for axis, cohort in zip(axes[0], cohorts, strict=True):
        axis.set_prop_cycle(color=colours[::2] + colours[1::2])
        for run in drawn:
            if run.cohort != cohort:
                continue
            curves = [one["curve"] for one in found[run.key]]
            points = list(zip(*curves, strict=True))
            axis.plot(
                [point[0]["round"] for point in points],
                [statistics.fmean(one["dice"] for one in point) for point in points],
                marker=".",
                label=run.says,
                linestyle="-" if run.epsilon is None else "--",
            )
        axis.set(title=COHORTS[cohort], xlabel="round", ylabel="mean Dice", ylim=(0, 0.8))
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
