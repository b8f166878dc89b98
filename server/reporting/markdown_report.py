"""A study's report for people: one sentence, one page of Markdown.

Everything said is in ``server.reporting.study_report.full_report``. A study is never called
finished or running without the names of those who were not part of it, and a score with noise is
marked.

Out of scope: the curves (``server.reporting.study_chart``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from common.regions import REGIONS
from common.study.cohort_histograms import HISTOGRAMS

_NAMED_ROUNDS: Final = 6
"""Most rounds that are listed for one site and one reason; of more, the first and the last."""


def headline(report: Mapping[str, Any]) -> str:
    """Return what became of the study, with everybody who was left out and why."""
    closed, planned = report["rounds_closed"], report["rounds_planned"]
    said = [f"Study {report['study']} is {report['state']}: {closed} of {planned} rounds closed."]
    missing = [
        f"{site} ({_missed(rounds)})"
        for site, rounds in report["absences"].items()
        if site not in report["not_approved"]
    ]
    if report["not_approved"]:
        said.append(f"Admitted but never approved: {', '.join(report['not_approved'])}.")
    if missing:
        said.append(f"Closed rounds without: {'; '.join(missing)}.")
    if report["suspended"]:
        names = (f"{site} ({why})" for site, why in report["suspended"].items())
        said.append(f"Suspended: {'; '.join(names)}.")
    if report["paused_sites"]:
        names = (f"{site} (since {time[:16]} UTC)" for site, time in report["paused_sites"].items())
        said.append(f"Paused by the hospital: {'; '.join(names)}.")
    if closed and len(said) == 1:
        said.append("Every admitted site took part in every closed round.")
    return " ".join(said)


def markdown(report: Mapping[str, Any], *, chart: str = "") -> str:
    """Return the page; ``chart`` is the file name of the curves beside it, if there are any."""
    lines = [
        f"# {report['title']}",
        "",
        headline(report),
        "",
        f"Computed from {report['journal']['facts']} facts of the coordinator's journal, until "
        f"{report['journal']['until']}; its head is `{report['journal']['head']}`. Protocol "
        f"`{report['protocol']}`.",
        "",
    ]
    if chart:
        lines += [f"![Curves of the study]({chart})", ""]
    if report["last_problem"]:
        lines += [f"**Last problem.** {report['last_problem']}", ""]
    lines += (
        _alarms(report)
        + _statistics(report, chart=bool(chart))
        + _rounds(report)
        + _updates(report)
    )
    lines += _fairness(report) + _dice(report) + _conduct(report) + _privacy(report)
    return "\n".join(lines)


def _alarms(report: Mapping[str, Any]) -> list[str]:
    if not report["journal_alarms"]:
        return ["The heads of the sites' journals fit the coordinator's in every message.", ""]
    lines = ["**Journals that did not fit.** Ask these sites before anything is built on this:", ""]
    return [
        *lines,
        *(f"- round {a['round']}, {a['site']}: {a['what']}" for a in report["journal_alarms"]),
        "",
    ]


def _statistics(report: Mapping[str, Any], *, chart: bool) -> list[str]:
    said = report["statistics"]
    if said is None:
        return []
    lines = ["## The sites' training patients", ""]
    if said["dropped"]:
        silent = ", ".join(f"{site} ({why})" for site, why in sorted(said["dropped"].items()))
        lines += [f"Not described by: {silent}.", ""]
    if not said["statistics"]:
        return lines
    if chart:
        lines += ["![Histograms of the sites' cohorts](cohorts.png)", ""]
    lines += [
        "Patients in each bin. Every number holds noise, for privacy, of a standard deviation of "
        f"{said['deviation']:.1f} patients at a site and {said['sum_deviation']:.1f} in the sum: "
        "smaller differences mean nothing, and numbers may be below 0.",
        "",
    ]
    sites = sorted(said["statistics"])
    for name, total in said["sum"].items():
        histogram = HISTOGRAMS[name]
        rows = [
            [label, f"{count:.1f}", *(f"{said['statistics'][s][name][place]:.1f}" for s in sites)]
            for place, (label, count) in enumerate(zip(histogram.labels, total, strict=True))
        ]
        lines += [f"### {histogram.title[0].upper()}{histogram.title[1:]}", ""]
        lines += _table([histogram.unit, "all", *sites], rows)
    return lines


def _rounds(report: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            one["round"],
            one["state"] + (f": {one['reason']}" if one["reason"] else ""),
            f"{len(one['ordered'])}: {_names(one['ordered'])}",
            f"{len(one['sites'])}: {_names(sorted(one['sites']))}",
            _percent(one["share_of_weight"]),
            _dropped(one),
            _number(one["seconds"], 1),
            _megabytes(one["order_bytes"]),
        ]
        for one in report["attempts"]
    ]
    columns = ["round", "state", "ordered", "took part", "of the weight", "left out"]
    columns += ["seconds", "MB an order"]
    return ["## Rounds", "", *_table(columns, rows)]


def _dropped(attempt: Mapping[str, Any]) -> str:
    said = [
        f"{site} ({why}{': ' + attempt['refused'][site] if site in attempt['refused'] else ''})"
        for site, why in sorted(attempt["dropped"].items())
    ]
    said += [f"{site}: order lost {n} times" for site, n in sorted(attempt["lost_orders"].items())]
    return "; ".join(said) or "-"


def _updates(report: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            one["round"],
            site,
            f"{said['weight']:g}",
            f"{said['norm']:.4g}",
            _number(said["cosine"], 3),
            _megabytes(said["bytes"]),
            _number(said["seconds"], 1),
            said["staleness"] or "-",
            said["case_count"] or "-",
            "-" if said["privacy_spent"] is None else f"{said['privacy_spent']['epsilon']:.3f}",
        ]
        for one in report["attempts"]
        for site, said in sorted(one["sites"].items())
    ]
    columns = ["round", "site", "weight", "norm", "cosine", "MB", "seconds", "rounds late"]
    columns += ["patients", "epsilon"]
    note = "A dash: not recorded, not reported or not applicable."
    return ["## Updates", "", note, "", *_table(columns, rows), *_late(report)]


def _late(report: Mapping[str, Any]) -> list[str]:
    if not report["late_replies"]:
        return []
    lines = ["Updates that came after their round was closed:", ""]
    for one in report["late_replies"]:
        used = one["used_in_round"]
        what = "not used" if used is None else f"used in round {used}, with less weight"
        lines.append(
            f"- {one['site']}, ordered in round {one['base_round']}, {one['staleness']} rounds "
            f"late: {what}"
        )
    return [*lines, ""]


def _fairness(report: Mapping[str, Any]) -> list[str]:
    rows = []
    for one in report["fairness"]:
        for region, found in one["regions"].items():
            worst, best = found["worst_site"], found["best_site"]
            rows.append(
                [
                    one["round"],
                    region,
                    found["sites"],
                    f"{found['mean']:.3f}",
                    f"{worst}{_mark(worst, one)} {found['worst']:.3f}",
                    f"{best}{_mark(best, one)} {found['best']:.3f}",
                    f"{found['spread']:.3f}",
                    f"{found['standard_deviation']:.3f}",
                ]
            )
    lines = ["## Fairness", ""]
    columns = ["round", "region", "sites", "mean Dice", "worst", "best", "spread", "deviation"]
    lines += _table(columns, rows)
    if any(one["noised"] for one in report["fairness"]):
        lines += [
            "`~`: the score holds noise, for privacy; part of the spread is that noise, and which "
            "site is the worst may be chance.",
            "",
        ]
    silent = [one for one in report["fairness"] if one["not_reported"]]
    lines += [
        f"- without a score in round {one['round']}: "
        + ", ".join(f"{site} ({why})" for site, why in one["not_reported"].items())
        for one in silent
    ]
    return [*lines, ""] if silent else lines


def _dice(report: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            said["round"],
            site,
            *(f"{dice[region]:.3f}" if region in dice else "-" for region in REGIONS),
            f"about {said['dice_noise'][site]:.3f}" if site in said["dice_noise"] else "exact",
        ]
        for said in report["evaluations"]
        for site, dice in sorted(said["dice"].items())
    ]
    return [
        "## Dice on the sites' validation patients",
        "",
        *_table(["round", "site", *REGIONS, "noise"], rows),
    ]


def _conduct(report: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            site,
            f"{said['answered']} of {said['ordered']}",
            _percent(said["share"]),
            _percent(said["contribution"]),
            _number(said["norm_ratio"], 2),
            _number(said["drift"], 2),
            "; ".join(said["remarks"]) or "-",
        ]
        for site, said in report["conduct"].items()
    ]
    columns = ["site", "orders answered", "share", "contribution", "norm ratio", "drift", "remarks"]
    return [
        "## Contribution and drift",
        "",
        "Contribution: the site's share of weight times norm of what was averaged, a mean over the "
        "closed rounds. Norm ratio: its norm over the round's median. Drift: 0 along the change of "
        "the round before, 1 across it, 2 against it. No update is kept: these figures are reasons "
        "to ask, not proofs"
        + (", and noise for privacy hides much of them." if report["private"] else "."),
        "",
        *_table(columns, rows),
    ]


def _privacy(report: Mapping[str, Any]) -> list[str]:
    lines = ["## Privacy", ""]
    if not report["private"]:
        return [*lines, "**Trained WITHOUT differential privacy.**", ""]
    rows = [
        [
            site,
            f"{s['epsilon']:.3f}",
            f"{s['delta']:g}",
            s["steps"],
            f"{s['noise_multiplier']:g}",
            f"{s['sampling_rate']:g}",
        ]
        for site, s in sorted(report["privacy_spent"].items())
    ]
    columns = ["site", "epsilon", "delta", "steps", "noise multiplier", "sampling rate"]
    lines += ["What the study cost the worst patient of each site, as the site said last.", ""]
    lines += _table(columns, rows)
    untold = sorted(
        {s for a in report["attempts"] for s in a["sites"]} - set(report["privacy_spent"])
    )
    if untold:
        lines += [f"Trained, but did not say what it cost: {', '.join(untold)}.", ""]
    for site, seen in sorted(report["withdrawn"].items()):
        lines.append(
            f"- {site}: patients who withdrew since were in rounds {', '.join(map(str, seen))}"
        )
    return [*lines, ""] if report["withdrawn"] else lines


def _missed(rounds: Mapping[str, str]) -> str:
    """Return the rounds that a site missed, by reason."""
    reasons: dict[str, list[str]] = {}
    for number, why in rounds.items():
        reasons.setdefault(why, []).append(number)
    return ", ".join(
        f"{why} in round{'s' if len(numbers) > 1 else ''} {_listed(numbers)}"
        for why, numbers in reasons.items()
    )


def _listed(numbers: Sequence[str]) -> str:
    if len(numbers) <= _NAMED_ROUNDS:
        return ", ".join(numbers)
    return f"{numbers[0]} to {numbers[-1]}, {len(numbers)} in all"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    if not rows:
        return ["Nothing is recorded.", ""]
    return [
        f"| {' | '.join(columns)} |",
        "| --- " * len(columns) + "|",
        *("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows),
        "",
    ]


def _cell(value: object) -> str:
    """Return a cell that cannot break the table, whatever a reason says."""
    return " ".join(str(value).replace("|", "\\|").split())


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "nobody"


def _mark(site: str, spread: Mapping[str, Any]) -> str:
    return "~" if site in spread["noised"] else ""


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.3g}"
