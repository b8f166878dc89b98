"""The demo's last page: which patient was held out, and whether training together was worth it.

summary.py held-out SITE           folder of a test patient of the site's folder SITE
summary.py table STATUS SITE...    the table, from status.json and SITE-scores.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from client.cohort import Case, read_cohort, split
from client.imaging.nifti import read_volume
from client.site import Site
from client.studies import open_ledger
from common import console
from common.metrics import RegionScores
from common.regions import REGIONS


def held_out(folder: str) -> None:
    """Print the folder of the test case with the largest tumour."""
    site = Site.open(Path(folder))
    cases = split(read_cohort(site.data), "demo").test

    def tumour(case: Case) -> int:
        return int((read_volume(case.label, empty_ok=True).data > 0).sum()) if case.label else 0

    chosen = max(cases, key=tumour)
    print(chosen.images["t1c"].path.parent)  # noqa: T201


def table(status: str, sites: list[str]) -> None:
    """Print Dice on the pooled held-out patients and what the study cost."""
    report = json.loads(Path(status).read_text())["studies"][0]
    scores = {site: json.loads(Path(f"{site}-scores.json").read_text()) for site in sites}
    # In the order of demo.sh: starting weights, federated, alone with privacy, alone without.
    pooled = [RegionScores() for _ in range(2 + 2 * len(sites))]
    for found in scores.values():
        for index, entry in enumerate(found):
            pooled[index] += RegionScores.from_dict(entry["sums"])
    rows: list[list[object]] = []
    for index, site in enumerate(sites):
        alone, unprotected = pooled[2 + index], pooled[2 + len(sites) + index]
        with open_ledger(Site.open(Path(site))) as ledger:
            facts = ledger.facts(study="demo")
        parts = split(read_cohort(Site.open(Path(site)).data), "demo")
        spent = report["privacy_spent"][site]
        took_part = sum(site in r["took_part"] for r in report["rounds"])
        rows.append(
            [
                site,
                f"{len(parts.train)} ({len(parts.test)})",
                f"{took_part}/{report['rounds_planned']}",
                _figures(alone),
                _figures(unprotected),
                _figures(pooled[1]),
                f"{spent['epsilon']:.2f}",
                sum(fact.steps for fact in facts),
            ]
        )
    columns = ["site", "cases (held out)", "rounds"]
    columns += ["alone, private", "alone, no privacy", "federated, private"]
    columns += ["epsilon", "steps charged"]
    title = f"Dice {'/'.join(REGIONS)} on the pooled held-out patients of all sites"
    console.show_table(title, columns, rows)
    private, unprotected = pooled[2 : 2 + len(sites)], pooled[2 + len(sites) :]
    federated = _mean(pooled[1])
    others = {
        "the starting weights": _mean(pooled[0]),
        "training alone with the same privacy (mean of the sites)": _mean_of(private),
        "training alone without privacy (mean of the sites)": _mean_of(unprotected),
    }
    delta = next(iter(report["privacy_spent"].values()))["delta"]
    epsilon = max(spent["epsilon"] for spent in report["privacy_spent"].values())
    console.say(
        f"Mean Dice over regions, {pooled[0].count('WT')} held-out cases: federated "
        f"{federated:.3f}, at epsilon at most {epsilon:.2f} per patient (delta {delta:g})."
    )
    for name, value in others.items():
        if federated > value:
            console.say(f"It beats {name}, {value:.3f}, by {federated - value:.3f}.")
        else:
            console.warn(f"It did NOT beat {name}, {value:.3f}: {federated - value:+.3f}.")


def _figures(scores: RegionScores) -> str:
    means = (scores.mean(region) for region in REGIONS)
    return "/".join("-" if mean is None else f"{mean:.2f}" for mean in means)


def _mean(scores: RegionScores) -> float:
    values = [value for region in REGIONS if (value := scores.mean(region)) is not None]
    return sum(values) / len(values)


def _mean_of(models: list[RegionScores]) -> float:
    return sum(_mean(scores) for scores in models) / len(models)


if __name__ == "__main__":
    if sys.argv[1] == "held-out":
        held_out(sys.argv[2])
    else:
        table(sys.argv[2], sys.argv[3:])
