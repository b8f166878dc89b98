"""One run: train as it says, score on the held-out patients, write what came of it."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.networks.registry import build, load_arrays
from client.segmentation.evaluation import evaluate
from common.records.atomic_files import write_json
from common.records.weights import Arrays
from common.regions import REGIONS
from common.study.protocol import StudyProtocol
from tests.benchmarks.accuracy.cohorts import hospitals
from tests.benchmarks.accuracy.learning import LEARN, loaded, seed_of, started
from tests.benchmarks.accuracy.plan import START_STEPS, Run
from tests.benchmarks.federation import EXECUTION, Hospital

RESULTS = Path(__file__).parent / "results"


def path_of(run: Run, seed: int) -> Path:
    return RESULTS / f"{run.key}-{seed}.json"


def done(run: Run, seed: int, work: Path) -> str:
    """Do one run, write its file, and return a line about it."""
    torch.set_num_threads(1)
    logging.getLogger("client.privacy.dp_sgd").setLevel(logging.ERROR)
    began = time.process_time()
    protocol = run.protocol
    there = hospitals(run.cohort, work, protocol)
    start = starting(run, seed, work)
    curve: list[dict[str, Any]] = []
    last: list[dict[str, Arrays]] = []
    if run.learn == "start":
        last = [{hospital.name: start for hospital in there}]
    else:
        for number, weights in enumerate(LEARN[run.learn](protocol, there, start, seed), start=1):
            last = [*last, weights][-run.average :]
            if run.learn != "alone" and number % 2 == 0 and number < protocol.rounds:
                curve.append({"round": number, "dice": scores(protocol, there, weights)["mean"]})
    model = {name: mean([weights[name] for weights in last]) for name in last[0]}
    found = scores(protocol, there, model)
    curve.append({"round": protocol.rounds, "dice": found["mean"]})
    privacy = protocol.privacy
    write_json(
        path_of(run, seed),
        {
            "run": run.key,
            "says": run.says,
            "seed": seed,
            "protocol": json.loads(protocol.canonical()),
            "epsilon": run.epsilon,
            "noise_multiplier": privacy.noise_multiplier if protocol.private else None,
            "pretrained": run.pretrained,
            "averaged_rounds": run.average,
            "parameters": sum(array.size for array in start.values()),
            **found,
            "curve": curve,
            "cpu_seconds": round(time.process_time() - began),
        },
    )
    return f"{run.key} {seed}: mean {found['mean']:.3f}, worst site {found['worst']:.3f}"


def starting(run: Run, seed: int, work: Path) -> Arrays:
    """Return the start of a run: of one network and seed all runs have the same."""
    if not run.pretrained:
        return started(run.protocol, None, seed, steps=0)
    network = run.protocol.network
    kind = f"{network.name}-{network.size}-{network.deep_supervision}"
    path = work / f"start-{run.cohort}-{kind}-{seed}.npz"
    if not path.exists():
        outside = hospitals(f"outside-{run.cohort}", work, run.protocol)[0]
        made = started(run.protocol, outside, seed, steps=START_STEPS)
        partial = path.with_suffix(f".{seed_of(run.key)}.npz")
        np.savez(partial, **made)
        partial.replace(path)
    with np.load(path) as kept:
        return {name: kept[name] for name in kept}


def mean(models: list[Arrays]) -> Arrays:
    """Return the mean of each array."""
    return {
        name: np.mean([model[name] for model in models], axis=0, dtype=np.float64).astype(
            np.float32
        )
        for name in models[0]
    }


def scores(
    protocol: StudyProtocol, there: list[Hospital], models: Mapping[str, Arrays]
) -> dict[str, Any]:
    """Return Dice on the held-out patients of all hospitals.

    Where hospitals have models of their own, each is scored on all; ``alone`` is each one's mean.
    """
    distinct = {id(model): (name, model) for name, model in models.items()}
    by_model: dict[str, dict[str, dict[str, float]]] = {}
    for name, model in distinct.values():
        network = build(protocol.network, seed=0)
        load_arrays(network, model)
        by_model[name] = {}
        for hospital in there:
            found = evaluate(
                network,
                loaded(hospital.held_out),
                crop_size=protocol.training.crop_size,
                execution=EXECUTION,
            )
            by_model[name][hospital.name] = {
                region: round(found.mean(region) or 0.0, 4) for region in REGIONS
            }
    cases = {hospital.name: len(hospital.held_out) for hospital in there}
    pooled = {name: _pooled(sites, cases) for name, sites in by_model.items()}
    worst = {
        name: min(statistics.fmean(dice.values()) for dice in sites.values())
        for name, sites in by_model.items()
    }
    return {
        "mean": round(statistics.fmean(pooled.values()), 4),
        "worst": round(statistics.fmean(worst.values()), 4),
        "best_model": round(max(pooled.values()), 4),
        "models": {name: round(value, 4) for name, value in pooled.items()},
        "sites": by_model,
    }


def _pooled(sites: Mapping[str, Mapping[str, float]], cases: Mapping[str, int]) -> float:
    """Return the mean over all cases and regions."""
    total = sum(statistics.fmean(dice.values()) * cases[name] for name, dice in sites.items())
    return total / sum(cases.values())
