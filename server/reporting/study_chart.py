"""The curves of a study: Dice and its spread, who took part, norms, epsilon, seconds, bytes.

One PNG of six panels. What the journal does not have is said in the panel that would show it.
Lines differ in marker or dashes, not in colour alone. With many sites the lines of single sites are
grey, and those that stand out are named.

Out of scope: computing anything (``server.reporting.study_report``).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from common.regions import REGIONS
from server.reporting.chart_style import COLOURS, MARKS, new_figure, save

_OK: Final = "#0072B2"
_BAD: Final = "#D55E00"
_FEW: Final = 6
"""Up to so many sites each has its own colour and a place in the legend."""

_NAMED: Final = 8
"""Most sites that are named under the title; the page names all."""

_GRID_SITES: Final = 30
"""Up to so many sites the panel of participation has a row for each."""


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture; raise StateError if ``path`` is no PNG or matplotlib is missing."""
    figure = new_figure(path, size=(15, 9))
    from matplotlib.ticker import MaxNLocator

    (dice, parts, norms), (epsilon, seconds, volume) = figure.subplots(2, 3)
    _dice(dice, report)
    _participation(parts, report)
    _per_site(norms, report, "norm", title="Length of the updates (L2 norm)")
    _epsilon(epsilon, report)
    _seconds(seconds, report)
    _bytes(volume, report)
    last = max((one["round"] for one in report["attempts"]), default=report["rounds_planned"])
    for axes in figure.axes:
        axes.set_xlabel("round", size=11)
        axes.set_xlim(0.5, last + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(13)
    figure.suptitle(
        f"{report['study']}: {report['state']}, {report['rounds_closed']} of "
        f"{report['rounds_planned']} rounds closed\n{_left_out(report)}",
        size=14,
    )
    save(figure, path)


def _left_out(report: Mapping[str, Any]) -> str:
    """Return who was not part of every closed round, by name as far as there is room."""
    names = sorted({*report["not_approved"], *report["absences"], *report["suspended"]})
    if not names:
        return "with every admitted site" if report["rounds_closed"] else ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"not in every closed round: {', '.join(names[:_NAMED])}{more}"


def _dice(axes: Any, report: Mapping[str, Any]) -> None:
    axes.set_title("Dice: mean over the sites, and from worst to best")
    drawn = False
    for region, colour, mark in zip(REGIONS, COLOURS, MARKS, strict=False):
        found = [(one["round"], one["regions"].get(region)) for one in report["fairness"]]
        points = [(number, said) for number, said in found if said]
        if not points:
            continue
        rounds = [number for number, _ in points]
        mean, worst, best = ([said[key] for _, said in points] for key in ("mean", "worst", "best"))
        axes.fill_between(rounds, worst, best, color=colour, alpha=0.15, linewidth=0)
        axes.plot(rounds, mean, color=colour, marker=mark, linewidth=2, label=region)
        axes.plot(rounds, worst, color=colour, linestyle=":", linewidth=1.4)
        drawn = True
    if not drawn:
        return _nothing(axes, "no site reported Dice")
    names = sorted({site for one in report["fairness"] for site in one["noised"]})
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(title="dotted: worst site" + ("; some noised" if names else ""), frameon=False)
    return None


def _participation(axes: Any, report: Mapping[str, Any]) -> None:
    axes.set_title("Who took part")
    ended = _ended(report)
    sites = sorted({site for one in ended for site in one["approved"]})
    if not sites:
        return _nothing(axes, "no round has ended")
    if len(sites) > _GRID_SITES:
        rounds = [one["round"] for one in ended]
        there = [len(one["took_part"]) for one in ended]
        gone = [len(one["approved"]) - count for one, count in zip(ended, there, strict=True)]
        axes.bar(rounds, there, color=_OK, label="took part")
        axes.bar(rounds, gone, bottom=there, color=_BAD, hatch="//", label="left out")
        axes.set_ylabel("sites")
    else:
        for wanted, colour, mark, label in (
            (True, _OK, "s", "took part"),
            (False, _BAD, "x", "left out"),
        ):
            points = [
                (one["round"], row)
                for one in ended
                for row, site in enumerate(sites)
                if site in one["approved"] and (site in one["took_part"]) is wanted
            ]
            x, y = zip(*points, strict=True) if points else ((), ())
            axes.scatter(x, y, color=colour, marker=mark, s=60, label=label)
        axes.set_yticks(range(len(sites)), sites)
        axes.set_ylim(len(sites) - 0.5, -0.5)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    return None


def _per_site(axes: Any, report: Mapping[str, Any], key: str, *, title: str) -> None:
    """Draw ``key`` of each site's updates over the closed rounds."""
    axes.set_title(title)
    lines: dict[str, list[tuple[int, float]]] = {}
    for one in _ended(report):
        for site, said in one["sites"].items():
            if said[key] is not None:
                lines.setdefault(site, []).append((one["round"], float(said[key])))
    if not lines:
        return _nothing(axes, "not recorded")
    _draw_sites(axes, lines, [s for s, c in report["conduct"].items() if c["remarks"]])
    axes.set_ylim(bottom=0)
    return None


def _epsilon(axes: Any, report: Mapping[str, Any]) -> None:
    axes.set_title("Epsilon of the worst patient of each site")
    lines: dict[str, list[tuple[int, float]]] = {}
    for one in _ended(report):
        for site, said in one["sites"].items():
            if said["privacy_spent"] is not None:
                point = (one["round"], float(said["privacy_spent"]["epsilon"]))
                lines.setdefault(site, []).append(point)
    if not lines:
        return _nothing(axes, "not private" if not report["private"] else "not reported")
    most = max(lines, key=lambda site: max(value for _, value in lines[site]))
    _draw_sites(axes, lines, [most])
    axes.axhline(report["max_epsilon"], color="dimgrey", linestyle=":", linewidth=1.5)
    axes.annotate(
        "the study's cap",
        (0.02, report["max_epsilon"]),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color="dimgrey",
    )
    axes.set_ylim(0, 1.12 * max(report["max_epsilon"], *(e for v in lines.values() for _, e in v)))
    return None


def _seconds(axes: Any, report: Mapping[str, Any]) -> None:
    axes.set_title("Seconds of each attempt at a round")
    ended = _ended(report, failed=True)
    if not ended:
        return _nothing(axes, "no round has ended")
    under: dict[int, float] = {}  # attempts at the same round lie on each other
    for state, colour, hatch in (("failed", _BAD, "//"), ("closed", _OK, "")):
        label = state
        for one in ended:
            if one["state"] == state:
                number, took_s = one["round"], one["seconds"]
                below = under.get(number, 0.0)
                axes.bar(number, took_s, bottom=below, color=colour, hatch=hatch, label=label)
                under[number], label = below + took_s, "_"
    axes.legend(frameon=False)
    return None


def _bytes(axes: Any, report: Mapping[str, Any]) -> None:
    axes.set_title("Megabytes of a round")
    ended = _ended(report)
    up = [
        (one["round"], sum(s["bytes"] for s in one["sites"].values()) / 1e6)
        for one in ended
        if one["sites"] and all(s["bytes"] is not None for s in one["sites"].values())
    ]
    down = [
        (one["round"], one["order_bytes"] * len(one["ordered"]) / 1e6)
        for one in ended
        if one["order_bytes"] is not None
    ]
    if not up and not down:
        return _nothing(axes, "not recorded")
    for points, colour, mark, label in (
        (down, _OK, "v", "orders to the sites"),
        (up, _BAD, "^", "from the sites"),
    ):
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=colour, marker=mark, label=label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return None


def _draw_sites(
    axes: Any, lines: Mapping[str, Sequence[tuple[int, float]]], named: Sequence[str]
) -> None:
    """Draw one line a site; of many, only those in ``named`` and the median have a colour."""
    few = len(lines) <= _FEW
    chosen = sorted(lines) if few else [site for site in named if site in lines][:_FEW]
    for site, points in sorted(lines.items()):
        x, y = zip(*points, strict=True)
        if site in chosen:
            place = chosen.index(site) % len(COLOURS)
            axes.plot(x, y, color=COLOURS[place], marker=MARKS[place], label=site)
        else:
            axes.plot(x, y, color="silver", linewidth=0.8)
    if not few:
        by_round: dict[int, list[float]] = {}
        for points in lines.values():
            for number, value in points:
                by_round.setdefault(number, []).append(value)
        medians = {number: statistics.median(values) for number, values in sorted(by_round.items())}
        label = f"median of {len(lines)} sites"
        axes.plot(list(medians), list(medians.values()), color="black", marker=".", label=label)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _ended(report: Mapping[str, Any], *, failed: bool = False) -> list[Mapping[str, Any]]:
    states = {"closed", "failed"} if failed else {"closed"}
    return [one for one in report["attempts"] if one["state"] in states]


def _nothing(axes: Any, why: str) -> None:
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color="dimgrey")
    axes.set_yticks([])
