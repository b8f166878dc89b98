"""Pictures of the dashboard as plain SVG, in the page's own colours, light or dark.

Each picture has a text for people who do not see it; lines and states differ in dashes, marks or
words, not in colour alone. Whatever comes from a journal is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup, escape

from common.regions import REGIONS
from server.reporting.live_status import SiteReading

_WIDE: Final = 760
_LEFT: Final = 64
_COLOURS: Final = 6
_MOST_BARS: Final = 120


def site_map(consortium: str, sites: Sequence[SiteReading]) -> Markup:
    """Return the consortium: the coordinator in the middle, its sites around."""
    rows = max(1, math.ceil(len(sites) / 2))
    height = max(150, 46 * rows + 20)
    middle = (_WIDE / 2, height / 2)
    parts = []
    for number, site in enumerate(sites):
        right, row = number % 2, number // 2
        x = _WIDE - 250 if right else 250
        y = height * (row + 0.5) / rows
        kind, words = standing(site)
        wire = "" if site.online else " off"
        parts.append(
            Markup('<line class="wire{}" x1="{}" y1="{}" x2="{}" y2="{:.0f}"/>').format(
                wire, *middle, x, y
            )
        )
        anchor, side = ("start", 16) if right else ("end", -16)
        parts.append(
            Markup(
                '<circle class="dot {}" cx="{}" cy="{:.0f}" r="8"/>'
                '<text class="mark" x="{}" y="{:.0f}" text-anchor="{}">{}</text>'
                '<text class="faint" x="{}" y="{:.0f}" text-anchor="{}">{}</text>'
            ).format(kind, x, y, x + side, y - 1, anchor, site.name[:28], x + side, y + 15,
                     anchor, words)
        )  # fmt: skip
    online = sum(bool(site.online) for site in sites)
    hub = Markup(
        '<circle class="hub" cx="{0}" cy="{1}" r="15"/>'
        '<text class="mark" x="{0}" y="{2}" text-anchor="middle">{3}</text>'
    ).format(*middle, middle[1] + 33, consortium[:40])
    title = f"{consortium}: {online} of {len(sites)} sites are connected. The table says which."
    return _svg(Markup("").join(parts) + hub, height, title)


def standing(site: SiteReading) -> tuple[str, str]:
    """Return how a site stands, as a class of the style sheet and in words."""
    if site.suspended:
        return "bad", "suspended"
    if site.paused:
        return "bad", "paused by the hospital"
    if site.online is None:
        return "", "connection not known"
    return ("on", "online") if site.online else ("", "offline")


def timeline(report: Mapping[str, Any]) -> Markup:
    """Return the attempts at rounds as bars: how long each took and how it ended."""
    attempts = report["attempts"][-_MOST_BARS:]
    if not attempts:
        return Markup("")
    height, top, bottom = 190, 14, 150
    longest = max((one["seconds"] or 0 for one in attempts), default=0) or 1.0
    step = (_WIDE - _LEFT - 8) / max(len(attempts), 8)
    parts = [_axis(top, bottom, longest, "s")]
    for place, one in enumerate(attempts):
        seconds = one["seconds"]
        tall = max(3.0, (bottom - top) * (longest / 2 if seconds is None else seconds) / longest)
        x = _LEFT + place * step
        took = f"{seconds:.1f} s" if seconds is not None else "no end recorded"
        said = f"Round {one['round']} {one['state']}, {took}, {len(one['sites'])} updates"
        parts.append(
            Markup(
                '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                "<title>{}</title></rect>"
            ).format(one["state"], x + 1, bottom - tall, max(1.5, step - 3), tall, said)
        )
        if len(attempts) <= 30 or place % math.ceil(len(attempts) / 30) == 0:
            mark = {"failed": " ×", "open": " …", "interrupted": " /"}.get(one["state"], "")
            parts.append(
                Markup('<text class="faint" x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
                .format(x + step / 2, bottom + 18, f"{one['round']}{mark}")
            )  # fmt: skip
    said = ", ".join(
        f"{sum(one['state'] == state for one in attempts)} {state}"
        for state in ("closed", "failed", "interrupted", "open")
    )
    return _svg(Markup("").join(parts), height, f"Attempts at rounds: {said}. Seconds by round.")


def dice(report: Mapping[str, Any]) -> Markup:
    """Return the mean Dice of each region over the rounds, and dotted the worst site's."""
    lines: list[tuple[str, int, bool, list[tuple[int, float]]]] = []
    for place, region in enumerate(REGIONS):
        said = [(one["round"], one["regions"].get(region)) for one in report["fairness"]]
        for key, worst in (("mean", False), ("worst", True)):
            points = [(number, found[key]) for number, found in said if found]
            if points:
                lines.append((region, place, worst, points))
    if not lines:
        return Markup("")
    return _lines(lines, top_value=1.0, unit="", title="Dice by round; dotted is the worst site")


def epsilon(report: Mapping[str, Any]) -> Markup:
    """Return the epsilon of each site over the rounds, under the study's cap."""
    found: dict[str, list[tuple[int, float]]] = {}
    for one in report["attempts"]:
        for site, said in one["sites"].items():
            if said["privacy_spent"] is not None:
                point = (one["round"], float(said["privacy_spent"]["epsilon"]))
                found.setdefault(site, []).append(point)
    if not found or report["max_epsilon"] is None:
        return Markup("")
    lines = [(site, n, False, points) for n, (site, points) in enumerate(sorted(found.items()))]
    top = max(report["max_epsilon"], *(v for line in lines for _, v in line[3])) * 1.08
    return _lines(
        lines,
        top_value=top,
        unit="",
        title="Epsilon by round and site; the dotted line is the cap",
        cap=report["max_epsilon"],
    )


def _lines(
    lines: Sequence[tuple[str, int, bool, Sequence[tuple[int, float]]]],
    *,
    top_value: float,
    unit: str,
    title: str,
    cap: float | None = None,
) -> Markup:
    height, top, bottom, right = 240, 14, 200, 120
    numbers = sorted({number for *_, points in lines for number, _ in points})
    first, last = numbers[0], max(numbers[-1], numbers[0] + 1)
    wide = _WIDE - _LEFT - right

    def place(number: int, value: float) -> tuple[float, float]:
        x = _LEFT + wide * (number - first) / (last - first)
        return x, bottom - (bottom - top) * min(value, top_value) / top_value

    parts = [_axis(top, bottom, top_value, unit)]
    if cap is not None:
        _, y = place(first, cap)
        parts.append(
            Markup('<line class="cap" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>').format(
                _LEFT, y, _LEFT + wide, y
            )
        )
    taken: list[float] = []
    for name, colour, worst, points in lines:
        at = [place(number, value) for number, value in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        kind = f"line s{colour % _COLOURS}{' worst' if worst else ''}"
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(kind, path))
        if worst:
            continue
        x, y = at[-1]
        parts.append(
            Markup('<circle class="f{}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(
                colour % _COLOURS, x, y
            )
        )
        while any(abs(y - other) < 15 for other in taken):
            y += 15
        taken.append(y)
        if len(taken) <= 12:
            value = f"{name[:14]} {points[-1][1]:.2f}"
            parts.append(
                Markup('<text x="{:.1f}" y="{:.1f}">{}</text>').format(x + 8, y + 4, value)
            )
    every = math.ceil(len(numbers) / 12)
    for number in numbers[::every]:
        x, _ = place(number, 0)
        parts.append(
            Markup('<text class="faint" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                x, bottom + 18, number
            )
        )
    return _svg(Markup("").join(parts), height, title + ". The tables have the numbers.")


def _axis(top: float, bottom: float, highest: float, unit: str) -> Markup:
    return Markup(
        '<path class="axis" d="M{0} {1}V{2}H{3}"/>'
        '<text class="faint" x="{4}" y="{5}" text-anchor="end">{6:.3g} {7}</text>'
        '<text class="faint" x="{4}" y="{2}" text-anchor="end">0</text>'
    ).format(_LEFT, top, bottom, _WIDE - 4, _LEFT - 6, top + 6, highest, unit)


def _svg(inside: Markup, height: float, title: str) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>'
    ).format(_WIDE, height, escape(title), inside)  # fmt: skip
