"""A picture of the privacy budget: the worst patient's epsilon against time, and the caps.

Each study has one line: that of the patient who has spent the most in it by now. The black line is
the patient who has spent the most over all studies. Colours are those of Okabe and Ito, which
people who see few colours can tell apart; each line has its own marker and dashes besides.

Out of scope: steps without privacy, whose epsilon is infinite: the black line says that it leaves
them out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from client.privacy.budget_caps import accountant, open_ledger
from client.privacy.mechanism import UNPROTECTED, Accountant, Fact
from client.site.folder import Site
from client.views.budget import history
from common.errors import StateError
from common.records.atomic_files import replacing

POINTS: Final = 32
"""Most points of a line: each asks the accountant once."""

_NAMED: Final = 3
"""Most studies that are named at a cap that they share."""

_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS: Final = ("o", "s", "^", "D", "v", "P")
_DASHES: Final = ("-", (0, (6, 2)), (0, (3, 1.5)), (0, (6, 2, 1.5, 2)))


@dataclass(frozen=True)
class Curve:
    """Epsilon at ``delta`` after each of some times, and the cap that it may not pass."""

    name: str
    times: tuple[dt.datetime, ...]
    epsilons: tuple[float, ...]
    delta: float
    cap: float


def curves(site: Site) -> list[Curve]:
    """Return the curve of each private study that has spent something, then that of all studies."""
    found = []
    known = accountant(site)
    protocols = [p for p in map(site.protocol, site.study_names()) if p.private]
    with open_ledger(site) as ledger:
        for protocol in protocols:
            delta = protocol.privacy.delta
            worst = ledger.worst_patient(delta, study=protocol.study)
            if worst is not None:
                facts = ledger.facts(study=protocol.study, patient=worst)
                cap = protocol.privacy.max_epsilon
                found.append(_curve(protocol.study, facts, known, delta=delta, cap=cap))
        delta = min((protocol.privacy.delta for protocol in protocols), default=1e-5)
        worst = ledger.worst_patient(delta)
        if worst is not None:
            facts, cap = ledger.facts(patient=worst), site.settings.policy.max_epsilon
            drawn = [fact for fact in facts if fact.mechanism != UNPROTECTED]
            name = "all studies" if len(drawn) == len(facts) else "all but those without privacy"
            if drawn:
                found.append(_curve(name, drawn, known, delta=delta, cap=cap))
    return found


def draw(site: Site, lines: Sequence[Curve], path: Path) -> None:
    """Write the picture; raise StateError when there is nothing to draw or ``path`` is no PNG."""
    if path.suffix.lower() != ".png":
        raise StateError(f"{path} is no name of a picture.", do="Give it the ending .png.")
    if not lines:
        raise StateError(
            f"No study has spent anything at {site.name} yet: there is nothing to draw.",
            do="Run it again after the first round.",
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    caps: dict[float, list[tuple[str, str]]] = {}
    styles = zip(cycle(_COLOURS), cycle(_MARKS), cycle(_DASHES), strict=False)
    for line, (hue, mark, dashes) in zip(lines, styles, strict=False):
        last = line is lines[-1]
        colour = "black" if last else hue
        _draw_line(axes, line, colour=colour, mark=mark, dashes="-" if last else dashes)
        caps.setdefault(line.cap, []).append((line.name, colour))
    for cap, owners in caps.items():
        _draw_cap(axes, cap, owners)
    locator = AutoDateLocator(minticks=3, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_ylim(0, 1.12 * max(max(line.cap, *line.epsilons) for line in lines))
    axes.set_title(f"Privacy budget of {site.name}: the patient who has spent the most", size=15)
    axes.set_xlabel("time (UTC)", size=13)
    axes.set_ylabel("epsilon (add or remove one patient)", size=13)
    axes.tick_params(labelsize=12)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=12, loc="upper left", bbox_to_anchor=(0, -0.13), ncols=2, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_line(axes: Any, line: Curve, *, colour: str, mark: str, dashes: Any) -> None:
    axes.plot(
        line.times,
        line.epsilons,
        color=colour,
        marker=mark,
        markersize=5,
        markevery=0.08,
        linestyle=dashes,
        linewidth=2.2,
        label=f"{line.name}: {line.epsilons[-1]:.2f} of {line.cap:g} (delta {line.delta:g})",
    )


def _draw_cap(axes: Any, cap: float, owners: Sequence[tuple[str, str]]) -> None:
    """Draw a cap once, whoever shares it, so that no two labels lie on each other."""
    names = [name for name, _ in owners]
    colour = owners[0][1] if len(owners) == 1 else "dimgrey"
    whose = ", ".join(names) if len(names) <= _NAMED else f"{len(names)} lines"
    axes.axhline(cap, color=colour, linestyle=":", linewidth=1.5)
    axes.annotate(
        f"cap of {whose}",
        (0.0, cap),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        color=colour,
        size=11,
    )


def _curve(
    name: str, facts: Sequence[Fact], known: Accountant, *, delta: float, cap: float
) -> Curve:
    """Return the line through at most ``POINTS`` facts, the first and the last among them."""
    last = len(facts) - 1
    places = sorted({round(last * point / (POINTS - 1)) for point in range(POINTS)})
    return Curve(
        name,
        tuple(dt.datetime.fromisoformat(facts[place].time) for place in places),
        tuple(known.epsilon(history(facts[: place + 1]), delta) for place in places),
        delta,
        cap,
    )
