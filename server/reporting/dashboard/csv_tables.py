"""What of a study can be saved as CSV. What a spreadsheet would take for a formula is text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from common.records.journal import Entry
from common.regions import REGIONS

Rows = tuple[Sequence[str], list[Sequence[object]]]
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def written(rows: Rows) -> str:
    columns, lines = rows
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in line] for line in lines)
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else value


def rounds(report: Mapping[str, Any]) -> Rows:
    columns = ["round", "state", "opened", "ended", "seconds", "order_bytes", "ordered"]
    columns += ["took_part", "left_out", "reason"]
    return columns, [
        [
            *(one[key] for key in ("round", "state", "opened", "ended", "seconds", "order_bytes")),
            " ".join(one["ordered"]),
            " ".join(sorted(one["sites"])),
            "; ".join(f"{site}: {why}" for site, why in sorted(one["dropped"].items())),
            one["reason"],
        ]
        for one in report["attempts"]
    ]


def updates(report: Mapping[str, Any]) -> Rows:
    keys = ("weight", "norm", "cosine", "bytes", "seconds", "staleness", "case_count")
    return ["round", "state", "site", *keys, "epsilon"], [
        [
            one["round"],
            one["state"],
            site,
            *(said[key] for key in keys),
            said["privacy_spent"]["epsilon"] if said["privacy_spent"] else None,
        ]
        for one in report["attempts"]
        for site, said in sorted(one["sites"].items())
    ]


def dice(report: Mapping[str, Any]) -> Rows:
    return ["round", "site", *REGIONS, "noise"], [
        [said["round"], site, *(scores.get(r) for r in REGIONS), said["dice_noise"].get(site)]
        for said in report["evaluations"]
        for site, scores in sorted(said["dice"].items())
    ]


def privacy(report: Mapping[str, Any]) -> Rows:
    keys = ("epsilon", "delta", "steps", "noise_multiplier", "sampling_rate")
    return ["site", *keys, "cap"], [
        [site, *(said[key] for key in keys), report["max_epsilon"]]
        for site, said in sorted(report["privacy_spent"].items())
    ]


def journal(entries: Iterable[Entry]) -> Rows:
    return ["number", "time", "event", "facts", "sha256"], [
        [one.number, one.time, one.event, json.dumps(one.facts, sort_keys=True), one.hash]
        for one in entries
    ]


OF_A_STUDY: Final[Mapping[str, Callable[[Mapping[str, Any]], Rows]]] = {
    "rounds": rounds,
    "updates": updates,
    "dice": dice,
    "privacy": privacy,
}
