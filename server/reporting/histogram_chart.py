"""The histograms of the sites' cohorts as one PNG: their sum as bars, each with its noise.

A bar's whisker is two standard deviations of the noise that was added for privacy: what lies within
it means nothing. With few sites each has a mark of its own.

Out of scope: computing anything (``server.reporting.study_report``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from common.study.cohort_histograms import HISTOGRAMS
from server.reporting.chart_style import COLOURS, MARKS, new_figure, save

_COLUMNS: Final = 3
_FEW: Final = 6
"""Up to so many sites each is marked."""


def draw_statistics(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture; raise StateError as ``new_figure`` does.

    ``report["statistics"]`` is there and has at least one site.
    """
    said = report["statistics"]
    names = list(said["sum"])
    rows = math.ceil(len(names) / _COLUMNS)
    figure = new_figure(path, size=(15, 3.6 * rows + 1))
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        _histogram(axes, name, said)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(
        f"{report['study']}: training patients of {len(said['statistics'])} sites, with noise for "
        f"privacy\n{_silent(said)}",
        size=14,
    )
    save(figure, path)


def _histogram(axes: Any, name: str, said: Mapping[str, Any]) -> None:
    histogram = HISTOGRAMS[name]
    places = range(histogram.bins)
    axes.bar(
        places,
        said["sum"][name],
        color="silver",
        yerr=2 * said["sum_deviation"],
        ecolor="dimgrey",
        capsize=2,
        label="all sites; whiskers: two deviations of the noise",
    )
    if len(said["statistics"]) <= _FEW:
        for site, colour, mark in zip(sorted(said["statistics"]), COLOURS, MARKS, strict=False):
            counts = said["statistics"][site][name]
            axes.plot(places, counts, mark, color=colour, markersize=4, label=site)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_title(histogram.title, size=12)
    axes.set_xticks(places, histogram.labels, rotation=45, ha="right", size=8)
    axes.set_xlabel(histogram.unit)
    axes.set_ylabel("patients")
    axes.spines[["top", "right"]].set_visible(False)


def _silent(said: Mapping[str, Any]) -> str:
    names = sorted(said["dropped"])
    return f"not described by: {', '.join(names)}" if names else ""
