"""The ways to learn that are compared, each by the product's own training and aggregation.

All take as many steps, and without privacy as many patients a site and step. What is not here
changes no weight: transport, keys, journals, ledgers. The noise of private runs is drawn from a
seed, which the product never does.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from client.networks.registry import build, load_arrays, state_arrays
from client.privacy.dp_sgd import CountingCharge, train_privately
from client.training.loop import train
from client.training.lr_schedule import Place
from common.messages.low_rank import Subspace, expand
from common.records.weights import Arrays
from common.study.protocol import StudyProtocol
from server.aggregation import RULES
from tests.benchmarks.federation import EXECUTION, Hospital, Scan, loaders

Learn = Callable[[StudyProtocol, Sequence[Hospital], Arrays, int], Iterator[dict[str, Arrays]]]
"""From protocol, hospitals, start and seed to the weights of each hospital after each round."""


def seed_of(*parts: object) -> int:
    """Return a seed that these parts alone decide."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7])


def federated(
    protocol: StudyProtocol, hospitals: Sequence[Hospital], start: Arrays, seed: int
) -> Iterator[dict[str, Arrays]]:
    """Let the hospitals train together; all have the same weights."""
    weights, kept = dict(start), dict[str, np.ndarray]()
    shapes = {name: value.shape for name, value in start.items()}
    for number in range(1, protocol.rounds + 1):
        rule = RULES[protocol.aggregation.rule](protocol.aggregation, kept)
        for hospital in hospitals:
            update = _update(protocol, hospital, weights, number, seed)
            rule.fold(hospital.name, update, weight=1.0, steps=protocol.training.local_steps)
        change = expand(
            rule.result(),
            shapes,
            seed=protocol.seed,
            round_number=number,
            rank=protocol.training.rank,
        )
        kept = rule.state()
        weights = {name: value + change.get(name, 0) for name, value in weights.items()}
        yield {hospital.name: weights for hospital in hospitals}


def alone(
    protocol: StudyProtocol, hospitals: Sequence[Hospital], start: Arrays, seed: int
) -> Iterator[dict[str, Arrays]]:
    """Let each hospital train for itself."""
    own = {hospital.name: dict(start) for hospital in hospitals}
    for number in range(1, protocol.rounds + 1):
        for hospital in hospitals:
            update = _update(protocol, hospital, own[hospital.name], number, seed)
            own[hospital.name] = {
                name: value + update.get(name, np.float32(0))
                for name, value in own[hospital.name].items()
            }
        yield dict(own)


def pooled(
    protocol: StudyProtocol, hospitals: Sequence[Hospital], start: Arrays, seed: int
) -> Iterator[dict[str, Arrays]]:
    """Train on the patients of all hospitals as if they were in one place."""
    together = Hospital("pooled", tuple(p for one in hospitals for p in one.patients), ())
    size = protocol.training.patients_per_step * len(hospitals)
    wanted = protocol.model_copy(
        update={"training": protocol.training.model_copy(update={"patients_per_step": size})}
    )
    for weights in alone(wanted, [together], start, seed):
        yield {hospital.name: weights["pooled"] for hospital in hospitals}


LEARN: dict[str, Learn] = {"federated": federated, "alone": alone, "pooled": pooled}


def _update(
    protocol: StudyProtocol, hospital: Hospital, weights: Arrays, number: int, seed: int
) -> Arrays:
    network = build(protocol.network, seed=0)
    load_arrays(network, weights)
    drawn = seed_of(seed, hospital.name, number)
    place = Place.of_round(number, protocol.rounds, protocol.training)
    subspace = Subspace(protocol.seed, number)
    patients = loaders(hospital.patients)
    if protocol.private:
        return train_privately(
            network,
            patients,
            protocol.training,
            protocol.privacy,
            CountingCharge(),
            execution=EXECUTION,
            subspace=subspace,
            place=place,
            entropy=np.random.default_rng(drawn).bytes,
        ).update
    return train(
        network,
        patients,
        protocol.training,
        seed=drawn,
        execution=EXECUTION,
        subspace=subspace,
        place=place,
    ).update


def started(protocol: StudyProtocol, outside: Hospital | None, seed: int, *, steps: int) -> Arrays:
    """Return random weights, or those trained on a hospital that no study has."""
    network = build(protocol.network, seed=seed)
    if outside is not None:
        options = protocol.training.model_copy(
            update={
                "local_steps": steps,
                "learning_rate": 3e-3,
                "schedule": "cosine",
                "warmup_steps": 20,
                "patients_per_step": 4,
                "augmentation": "full",
                "optimizer": "adam",
                "trainable": ("all",),
            }
        )
        train(
            network,
            loaders(outside.patients),
            options,
            seed=seed_of(seed, "start"),
            execution=EXECUTION,
        )
    return state_arrays(network)


def loaded(scans: Sequence[Scan]) -> list[Callable[[], Scan]]:
    """Return the scans as evaluation reads them."""
    return [functools.partial(_same, scan) for scan in scans]


def _same(scan: Scan) -> Scan:
    return scan
