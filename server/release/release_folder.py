"""A signed model for the clinics: a folder that a hospital can verify without trusting the way.

weights.safetensors   the whole network
protocol.json         the study's signed protocol
card.json, card.md    who, how, what it cost, how good, who was not there
release.json          the statement, signed by the coordinator, that names every other file
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import ModelError, StateError
from common.records.atomic_files import write_bytes, write_json
from common.records.weights import Arrays, digest, save
from common.regions import REGIONS
from common.study.cohort_histograms import HISTOGRAMS
from common.study.protocol import RELEASE, StudyProtocol
from server.consortium.provisioning import Consortium
from server.reporting.study_report import cohorts, study_report
from server.rounds.weight_retention import check_kept

_FEWEST_SUMMED: Final = 3


def release(
    consortium: Consortium,
    study: str,
    out: Path,
    *,
    number: int | None = None,
    average: int = 1,
    expires: dt.date | None = None,
) -> dict[str, Any]:
    """Write the model of round ``number`` (the last closed one by default) and return its card.

    With ``average`` it is the mean of so many rounds' weights, the last being ``number``: the noise
    of the rounds partly cancels, and no patient is looked at again (Izmailov et al. 2018,
    "Averaging weights leads to wider optima", arXiv:1803.05407). ``expires`` is the last day on
    which clinics may use it.

    Raises StateError if one of the rounds was never closed or ``out`` is not empty.
    """
    chosen = consortium.study(study)
    closed = {
        int(entry.facts["round"]): str(entry.facts["weights"])
        for entry in consortium.journal.events("round closed", study=study)
    }
    if not closed:
        raise StateError(
            f"No round of {study} is closed yet.", do="`gliofed-server launch` runs its rounds."
        )
    number = max(closed) if number is None else number
    if number not in closed:
        raise StateError(
            f"Round {number} of {study} was not closed.",
            do=f"Closed are {min(closed)} to {max(closed)}.",
        )
    chosen_rounds = range(number - average + 1, number + 1)
    if not set(chosen_rounds) <= set(closed):
        raise StateError(
            f"There are no {average} closed rounds up to round {number} of {study}.",
            do=f"Average at most {number - min(closed) + 1}.",
        )
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty.", do="Choose a new folder; a release never changes.")
    check_kept(chosen, consortium.journal, chosen_rounds)
    weights = _mean(chosen.load(one, closed[one]) for one in chosen_rounds)
    report = study_report(chosen, consortium.journal, admitted=consortium.sites.names())
    card = _card(consortium, report, number, digest(weights), chosen.protocol)
    described = cohorts(chosen, consortium.journal)
    if described and len(described["statistics"]) > 1:  # of one site the sum would be its own
        card["cohort"] = {
            "histograms": described["sum"],
            "deviation": described["sum_deviation"],
            "sites": len(described["statistics"]),
        }
    if average > 1:
        card["version"] += f"+mean{average}"
        card["averaged_rounds"] = list(chosen_rounds)
    if expires is not None:
        card["expires"] = expires.isoformat()
    metadata = {"study": study, "round": str(number)}
    save(out / "weights.safetensors", weights, metadata)
    chosen.statement.save(out / "protocol.json")
    write_json(out / "card.json", card)
    write_bytes(out / "card.md", _markdown(card).encode())
    files = ("weights.safetensors", "protocol.json", "card.json", "card.md")
    needed = consortium.charter.needed
    body = {
        "study": study,
        "round": number,
        "weights_sha256": card["weights_sha256"],
        "preprocessing_sha256": card["preprocessing_sha256"],
        **({"signatures_needed": needed} if needed > 1 else {}),
        **({} if expires is None else {"expires": expires.isoformat()}),
        "files": {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in files},
    }
    lineage = {
        "version": card["version"],
        "rounds": list(chosen_rounds),
        "private": card["private"],
    }
    consortium.journal.append("model released", **body, **lineage)
    consortium.identity.sign(RELEASE, body).save(out / "release.json")
    return card


def _mean(models: Iterable[Arrays]) -> Arrays:
    """Return the mean of each array, one model in memory at a time; of one model, itself."""
    total: dict[str, NDArray[np.float64]] = {}
    count = 0
    for model in models:
        count += 1
        for name, value in model.items():
            total[name] = total.get(name, 0.0) + value.astype(np.float64)
    return {name: (value / count).astype(np.float32) for name, value in total.items()}


def _card(
    consortium: Consortium,
    report: dict[str, Any],
    number: int,
    weights: str,
    protocol: StudyProtocol,
) -> dict[str, Any]:
    rounds = [r for r in report["rounds"] if r["round"] <= number]
    evaluation = next((e for e in report["evaluations"] if e["round"] == number), None)
    told = evaluation["dice"] if evaluation else {}
    noise = evaluation["dice_noise"] if evaluation else {}
    dice = {site: said for site, said in told.items() if site in noise}
    exact = {site: said for site, said in told.items() if said and site not in noise}
    means = {site: sum(d.values()) / len(d) for site, d in dice.items() if d}
    worst = min(means, key=lambda site: means[site], default=None)
    return {
        "name": report["study"],
        "title": report["title"],
        "version": f"1.0.{number}",
        "consortium": consortium.settings.name,
        "round": number,
        "gliofed_version": version("gliofed"),
        "weights_sha256": weights,
        "protocol_sha256": report["protocol"],
        "preprocessing_sha256": protocol.preprocessing_sha256,
        "prediction": protocol.prediction.model_dump(mode="json"),
        "postprocessing": protocol.postprocessing.model_dump(mode="json"),
        "sites": sorted({site for r in rounds for site in r["took_part"]}),
        "rounds_per_site": {
            site: sum(site in r["took_part"] for r in rounds)
            for site in sorted({site for r in rounds for site in r["took_part"]})
        },
        "dropped_out": [
            {"round": r["round"], "site": site, "why": why}
            for r in rounds
            for site, why in r["dropped"].items()
        ],
        "never_approved": report["not_approved"],
        "private": report["private"],
        "privacy_unit": "patient; add or remove one" if report["private"] else "none",
        "privacy_spent": report["privacy_spent"],
        "withdrawn": {
            site: [r for r in seen if r <= number]
            for site, seen in report["withdrawn"].items()
            if any(r <= number for r in seen)
        },
        "validation_dice": dice,
        "dice_noise": noise,
        "worst_site": worst,
        "mean_dice": _mean_scores(exact),
        "dice_not_reported": sorted(
            {site for r in rounds for site in r["took_part"]} - set(dice) - set(exact)
        ),
        "intended_use": "Research. Not a medical device; a person reviews each result.",
    }


def _mean_scores(exact: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return, by region, the mean of exact scores and of how many sites; {} of too few.

    A release is public, and exact scores are not covered by epsilon: no site's own is in it, and
    none can be had by taking away one's own from the others'.
    """
    found = {}
    for region in REGIONS:
        scores = [said[region] for said in exact.values() if region in said]
        if len(scores) >= _FEWEST_SUMMED:
            found[region] = {"mean": round(sum(scores) / len(scores), 4), "sites": len(scores)}
    return found


def _markdown(card: dict[str, Any]) -> str:
    lines = [
        f"# {card['title']}",
        "",
        f"Model {card['name']} {card['version']}, released by {card['consortium']} after round "
        f"{card['round']}.",
        "",
        f"**Intended use.** {card['intended_use']}"
        + (f" Until {card['expires']}." if "expires" in card else ""),
        "",
        f"Sites that trained: {', '.join(card['sites'])}.",
    ]
    if card["never_approved"]:
        lines.append(f"Admitted, but did not approve: {', '.join(card['never_approved'])}.")
    if card["dropped_out"]:
        lines += ["", "Dropped out:"]
        lines += [f"- round {d['round']}: {d['site']} ({d['why']})" for d in card["dropped_out"]]
    lines += ["", "## Privacy", ""]
    if card["private"]:
        lines += [
            "Unit: the patient; neighbouring cohorts differ by one patient.",
            "",
            "| site | epsilon | delta | steps | noise multiplier | sampling rate |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {site} | {s['epsilon']:.2f} | {s['delta']:g} | {s['steps']} | "
            f"{s['noise_multiplier']:g} | {s['sampling_rate']:g} |"
            for site, s in sorted(card["privacy_spent"].items())
        ]
    else:
        lines.append("**Trained WITHOUT differential privacy.**")
    if card["withdrawn"]:
        lines += ["", "Patients have withdrawn since; the weights saw them in these rounds:"]
        lines += [
            f"- {site}: {', '.join(map(str, seen))}" for site, seen in card["withdrawn"].items()
        ]
    lines += ["", "## Dice on each site's validation patients", ""]
    if "averaged_rounds" in card:
        lines += [
            f"These weights are the mean of rounds {card['averaged_rounds'][0]} to "
            f"{card['round']}; the scores are those of round {card['round']} alone. A site scores "
            "what it installs.",
            "",
        ]
    if card["validation_dice"]:
        lines += [f"| site | {' | '.join(REGIONS)} |", "| --- " * (len(REGIONS) + 1) + "|"]
        lines += [
            f"| {site}{' (worst)' if site == card['worst_site'] else ''} | "
            + " | ".join(f"{dice[region]:.3f}" if region in dice else "-" for region in REGIONS)
            + " |"
            for site, dice in sorted(card["validation_dice"].items())
        ]
        lines += [
            f"The scores of {site} hold noise of about {noise:.3f}, for privacy."
            for site, noise in sorted(card["dice_noise"].items())
        ]
    if card["mean_dice"]:
        lines += ["", "Mean of exact scores, of which no single one leaves the consortium:"]
        lines += [
            f"- {region} {said['mean']:.3f}, of {said['sites']} sites"
            for region, said in card["mean_dice"].items()
        ]
    if not card["validation_dice"] and not card["mean_dice"]:
        lines.append("Dice: not reported, or exactly by fewer than three sites.")
    elif card["dice_not_reported"]:
        lines += ["", f"Dice not reported: {', '.join(card['dice_not_reported'])}."]
    if "cohort" in card:
        lines += [
            "",
            "## The patients it learnt from",
            "",
            f"card.json holds histograms of the training patients of {card['cohort']['sites']} "
            "sites, with noise for privacy, added up: clinics compare scans with them.",
            "",
            "| histogram | unit | counts |",
            "| --- | --- | --- |",
        ]
        lines += [
            f"| {HISTOGRAMS[name].title} | {HISTOGRAMS[name].unit} | "
            + ", ".join(f"{count:.0f}" for count in counts)
            + " |"
            for name, counts in card["cohort"]["histograms"].items()
        ]
    lines += ["", "## From probabilities to a segmentation", ""]
    for part in ("prediction", "postprocessing"):
        lines += [f"- {part}.{key} = {json.dumps(value)}" for key, value in card[part].items()]
    lines += [
        "",
        "## Identity",
        "",
        f"- weights {card['weights_sha256']}",
        f"- protocol {card['protocol_sha256']}",
        f"- preprocessing {card['preprocessing_sha256']}",
        f"- gliofed {card['gliofed_version']}",
        "",
    ]
    return "\n".join(lines)
