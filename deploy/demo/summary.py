"""What the demo says of its hospitals before the study, and whether it was worth it after.

    summary.py parts SITE...   who has how many patients; fails if too few hospitals can train
    summary.py table WAY...    the last table; WAY, private or no-private: how sites trained alone

Both read and write in the working directory, which holds the sites' folders. ``parts`` writes
``parts.json`` and, for demo.sh, ``trainers.txt`` (sites with patients to train on), ``scorers.txt``
(sites with patients held out) and ``clinic.txt`` (a site, and part and folder of the patient who
is segmented in the end). ``table`` reads them, ``status.json`` and ``SITE-scores.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from client.cohort.case_discovery import read_cohort
from client.cohort.patient_split import Split, split
from client.imaging.case import Case
from client.imaging.nifti import read_volume
from client.privacy.budget_caps import open_ledger
from client.segmentation.dice import RegionScores
from client.site.folder import Site
from common import console
from common.errors import GliofedError
from common.regions import REGIONS
from common.study.protocol import read_protocol

STUDY: Final = "demo"
FEW: Final = 10
"""Fewer held-out cases cannot tell one model from another."""

PARTS: Final = ("train", "validation", "test")


def parts(names: Sequence[str]) -> None:
    """Say how each site's patients are split; raise CaseError for a site without a case."""
    found = {name: split(read_cohort(Site.open(Path(name)).data), STUDY) for name in names}
    patients = {name: one.patients for name, one in found.items()}
    protocol = read_protocol(Path("protocol.toml"))
    rows = [[name, *(one[part] for part in PARTS)] for name, one in patients.items()]
    columns = ["hospital", "patients to train on", "to validate on", "held out"]
    console.show_table(
        "Labelled patients, split by a hash of the study and the patient", columns, rows
    )
    trainers = [name for name, one in patients.items() if one["train"]]
    scorers = [name for name, one in patients.items() if one["test"]]
    for name in names:
        if name not in trainers:
            console.warn(f"{name} has no patient to train on: the study goes on without it.")
    quorum = protocol.aggregation.quorum
    if len(trainers) < quorum:
        console.warn(
            f"{len(trainers)} of these hospitals have a patient to train on, and a round needs "
            f"{quorum}: the demo ends here. Add labelled patients, or folders of more hospitals."
        )
        sys.exit(1)
    if not scorers:
        console.warn("No hospital has a patient held out: no model can be scored in the end.")
    most = max(patients[name]["train"] for name in trainers)
    nominal = protocol.privacy.nominal_patients
    if 2 * most <= nominal:
        console.warn(
            f"The protocol's noise is made for {nominal} training patients a hospital, and none "
            f"here has more than {most}: they are as private, but more of each update is noise."
        )
    Path("parts.json").write_text(json.dumps(patients))
    Path("trainers.txt").write_text("\n".join(trainers))
    Path("scorers.txt").write_text("\n".join(scorers))
    Path("clinic.txt").write_text(" ".join(clinic(found)) + "\n")


def clinic(found: dict[str, Split]) -> tuple[str, str, str]:
    """Return the site, part and folder of the patient to segment.

    It is the largest tumour of the first site that has a patient held out; without one, of the
    validation patients; and only if there is none either, of those who are trained on.
    """
    for part in ("test", "validation", "train"):
        for name, one in found.items():
            cases: tuple[Case, ...] = getattr(one, part)
            if cases:
                chosen = max(cases, key=_tumour)
                return name, part, str(chosen.images[chosen.reference].path.parent)
    raise AssertionError("a site has a patient to train on")


def _tumour(case: Case) -> int:
    return int((read_volume(case.label, empty_ok=True).data > 0).sum()) if case.label else 0


def table(ways: Sequence[str]) -> None:
    """Print Dice on the held-out cases of all sites, and what the study cost."""
    patients = json.loads(Path("parts.json").read_text())
    report = json.loads(Path("status.json").read_text())["studies"][0]
    trainers = Path("trainers.txt").read_text().split()
    scorers = Path("scorers.txt").read_text().split()
    scores = {name: json.loads(Path(f"{name}-scores.json").read_text()) for name in scorers}
    # In the order of demo.sh: starting weights, federated, then each way and in it each trainer.
    pooled = [RegionScores() for _ in range(2 + len(ways) * len(trainers))]
    for found in scores.values():
        for index, entry in enumerate(found):
            pooled[index] += RegionScores.from_dict(entry["sums"])
    start, federated = pooled[:2]
    alone = {
        way: dict(zip(trainers, pooled[2 + n * len(trainers) :], strict=False))
        for n, way in enumerate(ways)
    }
    rows = [_row(name, patients[name], report, alone, federated) for name in patients]
    columns = ["hospital", "patients (held out)", "rounds"]
    columns += [f"alone, {_WAYS[way]}" for way in ways]
    columns += ["federated, private", "epsilon", "steps charged"]
    held_out = sum(found[0]["cases"] for found in scores.values())
    whose = ", ".join(f"{found[0]['cases']} of {name}" for name, found in scores.items())
    if held_out:
        title = f"Dice {'/'.join(REGIONS)}, each on the same {held_out} held-out cases: {whose}"
    else:
        title = "No Dice: no hospital has a patient held out"
    console.show_table(title, columns, rows)
    _compare(report, start, federated, alone, held_out=held_out)


_WAYS: Final = {"private": "private", "no-private": "WITHOUT privacy"}


def _row(
    name: str,
    patients: dict[str, int],
    report: dict[str, Any],
    alone: dict[str, dict[str, RegionScores]],
    federated: RegionScores,
) -> list[object]:
    took_part = sum(name in one["took_part"] for one in report["rounds"])
    spent = report["privacy_spent"].get(name)
    with open_ledger(Site.open(Path(name))) as ledger:
        steps = sum(fact.steps for fact in ledger.facts(study=STUDY))
    return [
        name,
        f"{patients['train']} ({patients['test']})",
        f"{took_part}/{report['rounds_planned']}",
        *(_figures(models[name]) if name in models else "-" for models in alone.values()),
        _figures(federated),
        f"{spent['epsilon']:.2f}" if spent else "-",
        steps,
    ]


def _compare(
    report: dict[str, Any],
    start: RegionScores,
    federated: RegionScores,
    alone: dict[str, dict[str, RegionScores]],
    *,
    held_out: int,
) -> None:
    spent = report["privacy_spent"].values()
    cost = max((one["epsilon"] for one in spent), default=0.0)
    delta = max((one["delta"] for one in spent), default=0.0)
    price = f"epsilon at most {cost:.2f} per patient (delta {delta:g})"
    mean = _mean(federated)
    if mean is None:
        console.warn(f"Nothing says how good the model is; it cost {price}.")
        return
    console.say(
        f"Mean Dice over regions and {held_out} held-out cases: federated {mean:.3f}, at {price}."
    )
    others = {"the starting weights": _mean(start)}
    for way, models in alone.items():
        means = [found for one in models.values() if (found := _mean(one)) is not None]
        sites = f"mean of the {len(means)} hospitals that trained"
        others[f"training alone, {_WAYS[way]} ({sites})"] = sum(means) / len(means)
    for name, value in others.items():
        if value is None:
            continue
        if mean > value:
            console.say(f"It beats {name}, {value:.3f}, by {mean - value:.3f}.")
        else:
            console.warn(f"It did NOT beat {name}, {value:.3f}: {mean - value:+.3f}.")
    if held_out < FEW:
        console.warn(
            f"So few held-out cases, {held_out}, cannot tell one model from another: this says "
            "that the machinery works, no more."
        )


def _figures(scores: RegionScores) -> str:
    means = (scores.mean(region) for region in REGIONS)
    return "/".join("-" if mean is None else f"{mean:.2f}" for mean in means)


def _mean(scores: RegionScores) -> float | None:
    values = [value for region in REGIONS if (value := scores.mean(region)) is not None]
    return sum(values) / len(values) if values else None


if __name__ == "__main__":
    try:
        {"parts": parts, "table": table}[sys.argv[1]](sys.argv[2:])
    except GliofedError as error:
        console.warn(f"{error.message} {error.do}")
        sys.exit(error.exit_code)
