"""Work on phantoms: a hospital's rehearsal, and the starting weights that they give.

Phantoms are synthetic patients: nothing here touches a patient, the ledger or the network.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import torch

from client.cohort.case_discovery import read_cohort
from client.cohort.patient_split import split
from client.imaging.prepared_cache import PreparedCache
from client.networks.registry import build, load_arrays, state_arrays
from client.phantoms.cohort import write_cohort
from client.phantoms.profiles import PROFILES
from client.privacy.dp_sgd import CountingCharge, train_privately
from client.segmentation.evaluation import evaluate
from client.site.execution import ExecutionOptions
from client.study.round_training import mean_dice
from client.training.crops import Patient
from client.training.loop import Progress, train
from client.training.lr_schedule import Place
from common.messages.low_rank import Subspace
from common.records.weights import Arrays
from common.study.protocol import (
    NetworkOptions,
    PreprocessingOptions,
    PrivacyOptions,
    StudyProtocol,
    TrainingOptions,
)

PHASES: Final = ((2e-3, 0.5), (1e-3, 0.3), (3e-4, 0.2))
"""Learning rate and share of the steps of each phase of pre-training."""

MEASURED: Final = TrainingOptions(local_steps=2, crop_size=(64, 64, 64), learning_rate=1e-3)
"""The steps by which precisions are compared, with crops and network as a protocol has them if it
says nothing else. The last is measured; those before it warm up."""

_TURNS: Final = 3
_WORTH: Final = 1.05
"""Times that bfloat16 must be faster to be advised: float32 rounds less."""

Precision = Literal["float32", "bfloat16"]


def rehearse(
    folder: Path,
    *,
    patients: int,
    execution: ExecutionOptions,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Do once, on phantoms, all that a study will ask of this machine; return what it took.

    ``folder`` keeps the phantoms and a cache of its own; it may be removed at any time.
    """
    seconds: dict[str, float] = {}
    began = time.monotonic()
    data = folder / "phantoms"
    write_cohort(
        data,
        PROFILES["1.5t-community"],
        patients=patients,
        seed=1,
        progress=functools.partial(progress, "phantoms"),
    )
    seconds["phantoms"] = time.monotonic() - began
    options = PreprocessingOptions(spacing_mm=3.75)
    cohort = read_cohort(data)
    cache = PreparedCache(folder / "cache", options)
    began = time.monotonic()
    for number, case in enumerate(cohort.cases, start=1):
        cache.get(case)
        progress("preprocessing", number, len(cohort.cases))
    seconds["preprocessing"] = time.monotonic() - began
    loaders: list[Patient] = [[functools.partial(cache.get, case)] for case in cohort.cases]
    network = build(NetworkOptions(size="tiny"), seed=0)
    steps = 3
    training = TrainingOptions(local_steps=steps, crop_size=(32, 32, 32), learning_rate=1e-3)
    privacy = PrivacyOptions(sampling_rate=0.5, nominal_patients=max(1, patients))
    charge = CountingCharge()
    result = train_privately(
        network,
        loaders,
        training,
        privacy,
        charge,
        execution=execution,
        progress=functools.partial(progress, "private training"),
    )
    seconds["private_training"] = result.seconds
    by_precision = compare_precisions(
        loaders[0], execution=execution, progress=functools.partial(progress, "precision")
    )
    best = "float32" if execution.device == "cpu" else advise(by_precision)
    began = time.monotonic()
    scores = evaluate(network, loaders[0], crop_size=(48, 48, 48), execution=execution)
    seconds["prediction_per_case"] = (time.monotonic() - began) / len(loaders[0])
    return {
        "phantom_patients": patients,
        "cases": len(cohort.cases),
        "device": execution.device,
        "steps": steps,
        "steps_charged": charge.confirmed,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "seconds_per_step": round(result.seconds / steps, 2),
        "precision": execution.precision,
        "seconds_by_precision": {name: round(value, 4) for name, value in by_precision.items()},
        "site_toml": f'precision = "{best}"',
        "dice_untrained": mean_dice(scores),
        "folder": str(folder),
    }


def compare_precisions(
    patient: Patient, *, execution: ExecutionOptions, progress: Progress
) -> dict[Precision, float]:
    """Return the median seconds of one private step on ``patient`` in each precision.

    They take turns, so that the machine is the same for both. A device without bfloat16 has
    float32 alone.
    """
    kinds: list[Precision] = ["float32"]
    if torch.amp.is_autocast_available(torch.device(execution.device).type):
        kinds.append("bfloat16")
    case = patient[0]()  # reading a scan takes as long in both
    privacy = PrivacyOptions(sampling_rate=1.0, nominal_patients=1)
    seconds: dict[Precision, list[float]] = {kind: [] for kind in kinds}
    for turn in range(_TURNS):
        for kind in kinds:
            ends: list[float] = []
            train_privately(
                build(NetworkOptions(), seed=0),
                [[lambda: case]],
                MEASURED,
                privacy,
                CountingCharge(),
                execution=replace(execution, precision=kind),
                progress=lambda *_, ends=ends: ends.append(time.monotonic()),
            )
            seconds[kind].append(ends[-1] - ends[-2])
        progress(turn + 1, _TURNS)
    return {kind: statistics.median(taken) for kind, taken in seconds.items()}


def advise(seconds: Mapping[Precision, float]) -> Precision:
    """Return the precision to use, by the seconds that each took."""
    faster = seconds.get("bfloat16", float("inf")) * _WORTH < seconds["float32"]
    return "bfloat16" if faster else "float32"


def pretrain(
    folder: Path,
    *,
    protocol: StudyProtocol,
    patients: int,
    steps: int,
    seed: int,
    execution: ExecutionOptions,
    progress: Callable[[str, int, int], None],
) -> tuple[Arrays, dict[str, float]]:
    """Train the protocol's network on reference phantoms; return its weights and their Dice.

    The Dice is the mean on phantom patients that were held out. No patient's data is read, so the
    weights may start a study at no cost in privacy.
    """
    data = folder / "phantoms"
    write_cohort(
        data,
        PROFILES["reference"],
        patients=patients,
        seed=seed,
        progress=functools.partial(progress, "phantoms"),
    )
    cache = PreparedCache(folder / "cache", protocol.preprocessing)
    parts = split(read_cohort(data), "pretraining")
    by_patient: dict[str, list[Callable[[], Any]]] = {}
    for case in parts.train:
        by_patient.setdefault(case.patient, []).append(functools.partial(cache.get, case))
    network = build(protocol.network, seed=seed)
    for phase, (rate, share) in enumerate(PHASES):
        options = protocol.training.model_copy(
            update={
                "local_steps": max(1, round(steps * share)),
                "learning_rate": rate,
                "optimizer": "adam",
                "trainable": ("all",),
                "patients_per_step": 4,
                "proximal_mu": 0.0,
            }
        )
        told: Progress = functools.partial(progress, f"phase {phase + 1} of {len(PHASES)}")
        train(
            network,
            list(by_patient.values()),
            options,
            seed=seed + phase,
            execution=execution,
            progress=told,
        )
    held_out = [functools.partial(cache.get, case) for case in parts.test]
    scores = evaluate(
        network,
        held_out,
        crop_size=protocol.training.crop_size,
        execution=execution,
        prediction=protocol.prediction,
        postprocessing=protocol.postprocessing,
        spacing_mm=protocol.preprocessing.spacing_mm,
    )
    return state_arrays(network), mean_dice(scores)


def train_alone(
    protocol: StudyProtocol,
    weights: Arrays,
    patients: Sequence[Patient],
    *,
    private: bool,
    execution: ExecutionOptions,
    progress: Progress,
) -> Arrays:
    """Train for as many rounds as the study has, but without the other sites.

    The result never leaves the site, so the ledger is not charged; it is for comparison only.
    With ``private`` the steps are those of the study; without it they have as many patients as a
    private step is expected to draw, no clipping and no noise.
    """
    options = protocol.training
    if protocol.private:
        drawn = round(protocol.privacy.sampling_rate * protocol.privacy.nominal_patients)
        options = options.model_copy(update={"patients_per_step": max(1, drawn)})
    network = build(protocol.network, seed=protocol.seed)
    load_arrays(network, weights)
    steps = protocol.training.local_steps
    for number in range(protocol.rounds):

        def told(done: int, total: int, *, before: int = number * steps) -> None:
            progress(before + done, total * protocol.rounds)

        subspace = Subspace(protocol.seed, number + 1)
        place = Place.of_round(number + 1, protocol.rounds, options)
        if private and protocol.private:
            train_privately(
                network,
                patients,
                options,
                protocol.privacy,
                CountingCharge(),
                execution=execution,
                subspace=subspace,
                place=place,
                progress=told,
            )
        else:
            train(
                network,
                patients,
                options,
                seed=protocol.seed + number,
                execution=execution,
                subspace=subspace,
                place=place,
                progress=told,
            )
    return state_arrays(network)
