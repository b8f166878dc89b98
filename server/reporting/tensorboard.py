"""A study as TensorBoard reads it: Dice, epsilon, norms, seconds and bytes by round.

Written by tensorboardX, which needs neither TensorFlow nor torch. Only what
``server.reporting.study_report`` tells is in it. A run's folder is written once: TensorBoard would
show two versions as one curve.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from common.errors import StateError
from common.records.atomic_files import unwritable


def write_events(report: Mapping[str, Any], folder: Path) -> int:
    """Write the study into ``folder``/STUDY and return how many values; raise StateError."""
    run = folder / report["study"]
    if run.exists() and any(run.iterdir()):
        raise StateError(
            f"{run} holds an export already; a second one would be drawn over it.",
            do="Remove it, or export to another folder.",
        )
    count = 0
    try:
        run.mkdir(parents=True, exist_ok=True)
        with SummaryWriter(logdir=str(run), write_to_disk=True) as writer:
            for tag, value, number, time_s in values(report):
                writer.add_scalar(tag, value, number, walltime=time_s)
                count += 1
    except OSError as error:
        raise unwritable(run, error) from error
    return count


def values(report: Mapping[str, Any]) -> Iterator[tuple[str, float, int, float]]:
    """Yield tag, value, round and when, in seconds since 1970."""
    ended = {}
    for one in report["attempts"]:
        if one["state"] != "closed":
            continue
        number, at = one["round"], dt.datetime.fromisoformat(one["ended"]).timestamp()
        ended[number] = at
        yield "round/seconds", one["seconds"], number, at
        yield "round/sites", len(one["sites"]), number, at
        for site, said in sorted(one["sites"].items()):
            for key in ("norm", "cosine", "bytes", "seconds"):
                if said[key] is not None:
                    yield f"update_{key}/{site}", said[key], number, at
            if said["privacy_spent"] is not None:
                yield f"epsilon/{site}", said["privacy_spent"]["epsilon"], number, at
    for said in report["fairness"]:
        at = ended.get(said["round"], 0.0)
        for region, found in said["regions"].items():
            for key in ("mean", "worst", "best"):
                yield f"dice_{region}/{key}", found[key], said["round"], at
    for said in report["evaluations"]:
        at = ended.get(said["round"], 0.0)
        for site, dice in sorted(said["dice"].items()):
            for region, score in dice.items():
                yield f"dice_{region}/{site}", score, said["round"], at
