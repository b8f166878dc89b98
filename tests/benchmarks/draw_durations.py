"""What a private round's time tells of its draws, and what either way to hide it costs.

Rounds of a small network on cubes of noise, one after another on one thread: the processor's time
that each took, and how many patients were drawn. From the same run what it would take if each step
were padded to a public number of patients with throw-away ones, a number that is passed in a whole
study with a chance of a hundredth of delta; and what it takes where answers wait
(``client.study.answer_times``). Padding costs that much of the machine; waiting leaves it free.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.stats import binom

from client.networks.registry import build
from client.privacy import dp_sgd
from client.privacy.dp_sgd import CountingCharge, train_privately
from client.site.execution import ExecutionOptions
from client.study.answer_times import Known, answer_after, margin
from client.training.crops import Patient
from common.study.protocol import NetworkOptions, StudyProtocol
from tests.benchmarks.result import Measuring, Result, line
from tests.benchmarks.steps import Prepared
from tests.consortia import tiny_protocol

ROUNDS: Final = 16
STUDIES: Final = ((5, 24, 0.2), (7, 14, 0.5))
"""Steps of a round, patients, rate; each study has ``STUDY_ROUNDS`` rounds and delta ``DELTA``."""
STUDY_ROUNDS: Final = 20
DELTA: Final = 1e-3
SIDE: Final = 16


def measure(folder: Path) -> Measuring:
    """Return, of each study, correlation and cost."""
    del folder
    columns = [
        "steps, patients, rate",
        "s a round",
        "s a patient",
        "correlation",
        "when waiting",
        "padded to",
        "padded, times",
        "waiting, times",
    ]
    rows, worst = [], 0.0
    patients = phantoms(max(count for _, count, _ in STUDIES))
    for steps, count, rate in STUDIES:
        protocol = _protocol(steps, count, rate)
        seconds, drawn = rounds(patients[:count], protocol)
        per_patient, rest = np.polyfit(drawn, seconds, 1)
        known, answers = Known(), []
        for taken in seconds:
            due, known = answer_after(protocol, taken, known)
            answers.append(due)
        chance = DELTA / 100 / steps / STUDY_ROUNDS
        most = int(binom.isf(chance, count, rate))
        padded = (rest + per_patient * steps * most) / (rest + per_patient * steps * rate * count)
        told = 0.0 if np.ptp(answers) == 0 else float(np.corrcoef(drawn, answers)[0, 1])
        worst = max(worst, abs(told))
        rows.append(
            [
                f"{steps}, {count}, {rate:g}",
                statistics.median(seconds),
                float(per_patient),
                float(np.corrcoef(drawn, seconds)[0, 1]),
                told,
                most,
                float(padded),
                statistics.median(answers) / statistics.median(seconds),
            ]
        )
        yield line(columns, rows[-1])
    return Result(
        title=f"{ROUNDS} private rounds on cubes of noise, one thread (SegResNet tiny, {SIDE}^3)",
        columns=columns,
        rows=rows,
        promise=f"answers that wait do not follow the draws: correlation {worst:.2f}, at most 0.2",
        holds=worst <= 0.2,
        facts={"margins": [margin(_protocol(*study)) for study in STUDIES]},
    )


def rounds(patients: list[Patient], protocol: StudyProtocol) -> tuple[list[float], list[int]]:
    """Train ``ROUNDS`` rounds and return of each its seconds, and how many it drew in all."""
    drawn: list[int] = []
    original = dp_sgd.sample

    def watched(*arguments: Any, **options: Any) -> list[int]:
        found = original(*arguments, **options)
        drawn[-1] += len(found)
        return found

    seconds = []
    dp_sgd.sample = watched
    try:
        for number in range(ROUNDS + 1):
            drawn.append(0)
            network = build(NetworkOptions(size="tiny"), seed=0)
            began = time.process_time()  # whatever else the machine does
            train_privately(
                network,
                patients,
                protocol.training,
                protocol.privacy,
                CountingCharge(),
                execution=ExecutionOptions(threads=1, prefetch=0),
            )
            if number:  # the first one loads libraries
                seconds.append(time.process_time() - began)
    finally:
        dp_sgd.sample = original
    return seconds, drawn[1:]


def phantoms(count: int) -> list[Patient]:
    """Return patients of one scan each: a cube of tumour in noise, since only time is looked at."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((4, SIDE, SIDE, SIDE)).astype(np.float32)
    labels = np.zeros((SIDE, SIDE, SIDE), np.uint8)
    labels[4:12, 4:12, 4:12] = 3
    return [
        [lambda one=one: one]
        for one in (
            Prepared(image + rng.standard_normal(image.shape, np.float32), labels)
            for _ in range(count)
        )
    ]


def _protocol(steps: int, patients: int, rate: float) -> StudyProtocol:
    return tiny_protocol(
        training={"local_steps": steps, "crop_size": [SIDE] * 3},
        privacy={"sampling_rate": rate, "nominal_patients": patients},
    )
