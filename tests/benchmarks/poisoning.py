"""One malicious site of five: what each attack does to the model under each aggregation rule.

Training has no privacy here: the noise of so few patients would hide what an attack does. What
noise does to each rule is said in its own file. Each seed has a malicious site of its own; the
Dice is that on held-out patients of the other four.

The start was trained on phantoms of another seed. Crops, network and volumes are so small that all
studies together take minutes; figures about a real study they are not.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from client.networks.registry import build, load_arrays
from client.segmentation.dice import dice
from client.segmentation.prediction import predict
from common.records.weights import Arrays
from common.study.protocol import StudyProtocol
from tests.benchmarks.attacks import ATTACKS, Attack, corner, triggered
from tests.benchmarks.federation import (
    EXECUTION,
    Federation,
    Hospital,
    Scan,
    data_folder,
    folder_hospitals,
    phantom_hospitals,
    pretrained,
    score,
)
from tests.benchmarks.result import Measuring, Result

SEEDS: Final = (0, 1)
PROFILES: Final = ("3t-research", "1.5t-community", "3t-lowgrade", "1.5t-screening", "reference")
SITES: Final = len(PROFILES)
PATIENTS: Final = 10
HELD_OUT: Final = 8
PRETRAINING_STEPS: Final = 150
SIZE: Final = 40
"""Of the phantoms: voxels of 6 mm."""

MOST_LOST: Final = 0.02
BACKDOOR: Final = "backdoor"
ENHANCING: Final = 2
"""Place of the enhancing tumour in the network's outputs."""

ROBUST: Final[Mapping[str, Mapping[str, Any]]] = {
    "norm_bounded_mean": {},
    "coordinate_median": {},
    "trimmed_mean": {"trim_share": 0.2},
    "geometric_median": {},
    "krum": {"malicious_sites": 1},
    "multi_krum": {"malicious_sites": 1},
}
"""The robust rules and their options for one malicious site of five."""


@dataclass(frozen=True)
class Finding:
    """What one study gave: Dice, and how well the backdoor's trigger is taken for tumour."""

    dice: float
    trigger: float


def measure(folder: Path) -> Measuring:
    """Return the Dice of each rule without an attack and under each."""
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[Finding]] = {}
    starts = []
    for seed in SEEDS:
        yield f"seed {seed}: the start, {PRETRAINING_STEPS} steps, and a study without an attack"
        start, findings = _of_seed(folder / str(seed), seed)
        starts.append(start)
        for rule, attack, finding in findings:
            found.setdefault((rule, attack), []).append(finding)
            yield f"seed {seed}, {rule}, {attack}: Dice {finding.dice:.3f}"
    means = {key: _mean(several) for key, several in found.items()}
    names = [attack.name for attack in ATTACKS]
    held = {name: [rule for rule in ROBUST if _holds(means, rule, name)] for name in names}
    always = [rule for rule in ROBUST if all(rule in rules for rules in held.values())]
    return Result(
        title=f"Dice with one malicious site of {SITES}, mean of {len(SEEDS)} seeds "
        f"(start {statistics.fmean(starts):.3f}); last, the Dice of the backdoor's trigger: what "
        "it is without the attack and with it",
        columns=["rule", "clean", *names, "trigger, clean", "trigger, backdoor"],
        rows=[_row(means, rule, names) for rule in ("fedavg", *ROBUST)],
        promise=f"under each attack at least one robust rule loses at most {MOST_LOST} of its own "
        f"clean Dice and of FedAvg's; {', '.join(always) or 'none'} under all",
        holds=all(held.values()),
        facts={
            "held_by": held,
            "start": starts,
            "dice": {
                f"{rule}, {attack}": [one.dice for one in several]
                for (rule, attack), several in found.items()
            },
            "trigger": {
                f"{rule}, {attack}": [one.trigger for one in several]
                for (rule, attack), several in found.items()
                if attack in ("clean", BACKDOOR)
            },
        },
    )


def protocol_of(seed: int, aggregation: Mapping[str, Any]) -> StudyProtocol:
    """Return the study; only ``aggregation`` differs from rule to rule."""
    return StudyProtocol.model_validate(
        {
            "study": "poisoning",
            "title": "Poisoning",
            "expires": "2099-12-31",
            "rounds": 5,
            "seed": seed,
            "network": {"size": "tiny"},
            "preprocessing": {"spacing_mm": 6.0},
            "training": {
                "local_steps": 6,
                "crop_size": [16, 16, 16],
                "crops_per_patient": 2,
                "patients_per_step": 4,
                "learning_rate": 1e-3,
            },
            "aggregation": {"quorum": SITES, **aggregation},
            "privacy": {"mode": "none"},
        }
    )


def _of_seed(folder: Path, seed: int) -> tuple[float, Iterator[tuple[str, str, Finding]]]:
    """Return the Dice of the start, and rule, attack and finding of each study."""
    protocol = protocol_of(seed, {})
    hospitals = _hospitals(folder, protocol, seed)
    (reference,) = phantom_hospitals(
        folder / "start",
        ["reference"],
        protocol,
        patients=12,
        held_out=0,
        size=SIZE,
        seed=seed + 1000,
    )
    start = pretrained(reference, protocol, steps=PRETRAINING_STEPS, seed=seed)
    federation = Federation(start, seed)
    malicious = seed % SITES
    scans = [s for n, one in enumerate(hospitals) if n != malicious for s in one.held_out]
    plain = federation.study(protocol, hospitals)
    # What a coordinator can know before the study: how long updates are.
    bound = round(statistics.median(plain.norms[:SITES]), 3)
    rules: dict[str, Mapping[str, Any]] = {"fedavg": {}, **ROBUST}
    rules["norm_bounded_mean"] = {"norm_bound": bound}

    def studies() -> Iterator[tuple[str, str, Finding]]:
        for rule, options in rules.items():
            study = protocol_of(seed, {"rule": rule, **options})
            for attack in (Attack("clean"), *ATTACKS):
                weights = _attacked(federation, study, hospitals, malicious, attack)
                trigger = float("nan")
                if attack.name in ("clean", BACKDOOR):
                    trigger = _trigger_dice(weights, study, scans)
                yield rule, attack.name, Finding(score(weights, study, scans), trigger)

    return score(start, protocol, scans), studies()


def _hospitals(folder: Path, protocol: StudyProtocol, seed: int) -> list[Hospital]:
    """Return five hospitals: phantoms, or those of the folder of data."""
    data = data_folder()
    if data:
        hospitals = folder_hospitals(data, folder / "cache", protocol)
        if len(hospitals) != SITES:
            raise SystemExit(f"{data} holds {len(hospitals)} sites, not {SITES}")
        return hospitals
    return phantom_hospitals(
        folder,
        PROFILES,
        protocol,
        patients=PATIENTS,
        held_out=HELD_OUT,
        size=SIZE,
        seed=seed,
    )


def _attacked(
    federation: Federation,
    protocol: StudyProtocol,
    hospitals: Sequence[Hospital],
    malicious: int,
    attack: Attack,
) -> Arrays:
    """Return the weights of a study in which the site at place ``malicious`` attacks."""
    sites = list(hospitals)
    one = sites[malicious]
    if attack.data is not None:
        people = tuple(attack.data(scans) for scans in one.patients)
        sites[malicious] = replace(one, patients=people, variant=attack.name)
    sends = {one.name: attack.send} if attack.send is not None else {}
    return federation.study(protocol, sites, sends=sends).weights


def _trigger_dice(weights: Arrays, protocol: StudyProtocol, scans: Sequence[Scan]) -> float:
    """Return the mean Dice of what is called enhancing tumour near the trigger with the trigger."""
    network = build(protocol.network, seed=0)
    load_arrays(network, weights)
    found = []
    for scan in scans:
        bad = triggered(scan)
        added = np.not_equal(bad.labels, scan.labels)
        chance = predict(
            network, bad.image, crop_size=protocol.training.crop_size, execution=EXECUTION
        )
        found.append(dice(corner(chance[ENHANCING] > 0.5), corner(added)))
    return statistics.fmean(found)


def _mean(several: Sequence[Finding]) -> Finding:
    return Finding(
        statistics.fmean(one.dice for one in several),
        statistics.fmean(one.trigger for one in several),
    )


def _holds(means: Mapping[tuple[str, str], Finding], rule: str, attack: str) -> bool:
    clean = max(means[rule, "clean"].dice, means["fedavg", "clean"].dice)
    return clean - means[rule, attack].dice <= MOST_LOST


def _row(means: Mapping[tuple[str, str], Finding], rule: str, names: Sequence[str]) -> list[object]:
    return [
        rule,
        *(round(means[rule, name].dice, 3) for name in ("clean", *names)),
        *(round(means[rule, name].trigger, 3) for name in ("clean", BACKDOOR)),
    ]
