"""What sites add where sites differ, against FedAvg: FedProx, local norms, SCAFFOLD, Ditto.

Hospitals whose phantoms come from unlike scanners and have unlike tumours start from the same
weights, which were trained a little on phantoms of a hospital outside the federation. All methods
have the same seeds, hospitals, rounds, steps and learning rate, and plain SGD, as SCAFFOLD needs.
Each site's score is the mean Dice of its held-out patients with what that site would use: the
global weights, with its own norms (FedBN, Li et al. 2021, arXiv:2102.07623, here the scales and
shifts of group norm), or its personal model. Updates and controls are made by the product's code.
About ten minutes on one core.

There is no privacy here: at a few patients a site its noise would hide what is compared.

``GLIOFED_BENCH_DATA`` names a folder with one folder of labelled cases for each hospital, in place
of the phantoms; ``GLIOFED_BENCH_ROUNDS`` other rounds, to see that it runs.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from client.networks.registry import build, load_arrays, state_arrays
from client.training.drift_correction import NO_TERMS, Terms, correction, next_control
from client.training.loop import train
from common.records.weights import Arrays
from common.study.protocol import StudyProtocol, parse_protocol
from server.aggregation import RULES
from server.aggregation.scaffold import control
from tests.benchmarks.federation import (
    EXECUTION,
    Hospital,
    data_folder,
    folder_hospitals,
    loaders,
    phantom_hospitals,
    pretrained,
    score,
)
from tests.benchmarks.result import Measuring, Result, line

ROUNDS: Final = int(os.environ.get("GLIOFED_BENCH_ROUNDS", "10"))
SEED: Final = 1
PROFILES: Final = ("3t-research", "1.5t-community", "3t-lowgrade", "1.5t-screening")
OUTSIDE: Final = "reference"
PATIENTS: Final = 6
HELD_OUT: Final = 4
SIZE: Final = 40
START_STEPS: Final = 60
FEDAVG: Final = "FedAvg"

METHODS: Final[Mapping[str, dict[str, Any]]] = {
    FEDAVG: {},
    "FedProx, mu 0.1": {"proximal_mu": 0.1},
    "local norms (FedBN)": {"local": ["norms"]},
    "SCAFFOLD": {"rule": "scaffold"},
    "Ditto, lambda 0.1": {"personal_lambda": 0.1},
}
_PERSONAL: Final = 1_000_000
"""Keeps the draws of personal models apart from those of the updates."""


@dataclass
class _Site:
    """A hospital of one study, and what it has of its own there."""

    hospital: Hospital
    seed: int
    control: Arrays = field(default_factory=dict)
    local: Arrays = field(default_factory=dict)
    personal: Arrays = field(default_factory=dict)

    def model(self, weights: Arrays) -> Arrays:
        """Return the weights that this site would use."""
        return self.personal or {**weights, **self.local}


def measure(folder: Path) -> Measuring:
    """Return each method's Dice, mean over the sites and worst site."""
    base = protocol({})
    data = data_folder()
    hospitals = (
        folder_hospitals(data, folder / "cache", base)
        if data
        else _phantoms(folder, PROFILES, base)
    )
    columns = ["method", *(h.name for h in hospitals), "mean", "worst site", "seconds"]
    yield f"the start, {START_STEPS} steps"
    outside = _phantoms(folder / "outside", (OUTSIDE,), base)[0]
    quick = base.training.model_copy(update={"optimizer": "adam"})
    start = pretrained(
        outside, base.model_copy(update={"training": quick}), steps=START_STEPS, seed=SEED
    )
    found: dict[str, list[float]] = {"start": [score(start, base, h.held_out) for h in hospitals]}
    seconds = {"start": 0.0}
    yield line(columns, _row("start", found["start"], 0.0))
    for name, changes in METHODS.items():
        began = time.perf_counter()
        found[name] = study(protocol(changes), hospitals, start)
        seconds[name] = time.perf_counter() - began
        yield line(columns, _row(name, found[name], seconds[name]))
    means = {name: statistics.fmean(scores) for name, scores in found.items()}
    worst = {name: min(scores) for name, scores in found.items()}
    better = [n for n in METHODS if worst[n] > worst[FEDAVG] and means[n] >= means[FEDAVG]]
    return Result(
        title=f"Dice of held-out patients after {ROUNDS} rounds at {len(hospitals)} unlike sites",
        columns=columns,
        rows=[_row(name, scores, seconds[name]) for name, scores in found.items()],
        promise="one of them is better than FedAvg at the worst site and no worse on the mean: "
        + (", ".join(better) or "none"),
        holds=bool(better) if "GLIOFED_BENCH_ROUNDS" not in os.environ else None,
        facts={
            "dice": found,
            "mean": means,
            "worst": worst,
            "rounds": ROUNDS,
            "steps": base.training.local_steps,
            "patients": [len(h.patients) for h in hospitals],
            "held_out_scans": [len(h.held_out) for h in hospitals],
            "data": "folder" if data else "phantoms",
        },
    )


def _row(name: str, scores: Sequence[float], seconds: float) -> list[object]:
    figures = (*scores, statistics.fmean(scores), min(scores))
    return [name, *(round(value, 3) for value in figures), round(seconds)]


def protocol(changes: Mapping[str, Any]) -> StudyProtocol:
    """Return the study of one method, as a coordinator would write it."""
    rule = {"rule": changes["rule"]} if "rule" in changes else {}
    training = {name: value for name, value in changes.items() if name != "rule"}
    return parse_protocol(
        {
            "study": "site-terms",
            "title": "What sites add",
            "expires": "2090-01-01",
            "rounds": ROUNDS,
            "network": {"size": "tiny"},
            "preprocessing": {"spacing_mm": 6.0},
            "training": {
                "local_steps": 20,
                "crop_size": [24, 24, 24],
                "crops_per_patient": 2,
                "patients_per_step": 3,
                "optimizer": "sgd",
                "momentum": 0.0,
                "learning_rate": 0.3,
                **training,
            },
            "aggregation": {"quorum": 1, **rule},
            "privacy": {"mode": "none"},
        },
        source="the benchmark",
    )


def study(protocol: StudyProtocol, hospitals: Sequence[Hospital], start: Arrays) -> list[float]:
    """Run all rounds; return the Dice at each hospital."""
    sites = [_Site(hospital, SEED + place) for place, hospital in enumerate(hospitals)]
    weights, state = dict(start), dict[str, Any]()
    options, rules = protocol.training, protocol.aggregation
    for number in range(1, protocol.rounds + 1):
        rule = RULES[rules.rule](rules, state)
        scaffold = rules.rule == "scaffold"
        c = control(state, learning_rate=options.learning_rate) if scaffold else {}
        for site in sites:
            update = _update(site, protocol, weights, number, c if scaffold else None)
            rule.fold(site.hospital.name, update, weight=1.0, steps=options.local_steps)
            if options.personal_lambda:
                _personalise(site, protocol, weights, number)
        change, state = rule.result(), rule.state()
        weights = {
            name: value + change[name] if name in change else value
            for name, value in weights.items()
        }
    return [score(site.model(weights), protocol, site.hospital.held_out) for site in sites]


def _update(
    site: _Site, protocol: StudyProtocol, weights: Arrays, number: int, c: Arrays | None
) -> Arrays:
    """Train a round at a site, and note what is its own."""
    options = protocol.training
    network = build(protocol.network, seed=0)
    load_arrays(network, {**weights, **site.local})
    terms = NO_TERMS if c is None else Terms(correction=correction(c, site.control))
    result = train(
        network,
        loaders(site.hospital.patients),
        options,
        seed=site.seed + 1000 * number,
        execution=EXECUTION,
        terms=terms,
    )
    site.local = result.local
    if c is not None:
        site.control = next_control(
            site.control,
            c,
            result.update,
            steps=options.local_steps,
            learning_rate=options.learning_rate,
        )
    return result.update


def _personalise(site: _Site, protocol: StudyProtocol, weights: Arrays, number: int) -> None:
    options = protocol.training
    network = build(protocol.network, seed=0)
    load_arrays(network, site.personal or weights)
    train(
        network,
        loaders(site.hospital.patients),
        options.model_copy(update={"proximal_mu": options.personal_lambda}),
        seed=site.seed + 1000 * number + _PERSONAL,
        execution=EXECUTION,
        terms=Terms(centre=weights),
    )
    site.personal = state_arrays(network)


def _phantoms(folder: Path, profiles: Sequence[str], base: StudyProtocol) -> list[Hospital]:
    return phantom_hospitals(
        folder, profiles, base, patients=PATIENTS, held_out=HELD_OUT, size=SIZE, seed=SEED
    )
