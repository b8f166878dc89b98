"""Work on phantoms: rehearsal, starting weights, training alone. No ledger is touched."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client import rehearsal
from client.phantoms.cohort import write_cohort
from client.privacy import budget_caps
from client.site.execution import ExecutionOptions
from client.site.folder import Site
from client.study import round_training
from common.records.weights import digest
from tests.consortia import tiny_protocol

PLAIN = ExecutionOptions(prefetch=0)


@dataclass(frozen=True)
class Prepared:
    image: NDArray[np.float32]
    labels: NDArray[np.uint8]


def phantom() -> Prepared:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (16, 16, 16)).astype(np.uint8)
    return Prepared(rng.standard_normal((4, 16, 16, 16), np.float32), labels)


@pytest.fixture(autouse=True)
def small_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "write_cohort", functools.partial(write_cohort, size=24))
    small = rehearsal.MEASURED.model_copy(update={"crop_size": (16, 16, 16)})
    monkeypatch.setattr(rehearsal, "MEASURED", small)


def test_a_rehearsal_does_every_step_once(tmp_path: Path) -> None:
    told: list[str] = []
    found = rehearsal.rehearse(
        tmp_path / "rehearsal",
        patients=2,
        execution=PLAIN,
        progress=lambda step, *_: told.append(step),
    )
    assert list(dict.fromkeys(told)) == [
        "phantoms",
        "preprocessing",
        "private training",
        "precision",
    ]
    assert found["phantom_patients"] == 2
    assert found["steps_charged"] == found["steps"] == 3
    assert set(found["dice_untrained"]) == {"WT", "TC", "ET"}
    assert set(found["seconds"]) == {
        "phantoms",
        "preprocessing",
        "private_training",
        "prediction_per_case",
    }
    assert found["seconds_per_step"] >= 0
    assert found["precision"] == "float32"
    assert set(found["seconds_by_precision"]) == {"float32", "bfloat16"}
    assert all(seconds > 0 for seconds in found["seconds_by_precision"].values())
    assert found["site_toml"] in ('precision = "float32"', 'precision = "bfloat16"')
    assert not list(tmp_path.rglob("*.sqlite"))


@pytest.mark.parametrize(
    ("float32", "bfloat16", "better"),
    [(1.0, 0.5, "bfloat16"), (1.0, 0.97, "float32"), (1.0, 2.0, "float32"), (1.0, None, "float32")],
)
def test_advice_follows_what_was_measured(
    float32: float, bfloat16: float | None, better: str
) -> None:
    seconds = {"float32": float32} | ({"bfloat16": bfloat16} if bfloat16 else {})
    assert rehearsal.advise(seconds) == better  # type: ignore[arg-type]


def test_precisions_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    real = rehearsal.train_privately

    def noting(*arguments: Any, **options: Any) -> Any:
        used.append(options["execution"].precision)
        return real(*arguments, **options)

    monkeypatch.setattr(rehearsal, "train_privately", noting)
    case = phantom()
    found = rehearsal.compare_precisions([lambda: case], execution=PLAIN, progress=lambda *_: None)
    assert used == ["float32", "bfloat16"] * 3
    assert set(found) == set(used)
    used.clear()
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda _: False)
    found = rehearsal.compare_precisions([lambda: case], execution=PLAIN, progress=lambda *_: None)
    assert (set(used), list(found)) == ({"float32"}, ["float32"])


def test_pretraining_gives_weights_and_their_scores(tmp_path: Path) -> None:
    protocol = tiny_protocol()
    told: list[str] = []
    weights, dice = rehearsal.pretrain(
        tmp_path,
        protocol=protocol,
        patients=8,
        steps=6,
        seed=3,
        execution=PLAIN,
        progress=lambda step, *_: told.append(step),
    )
    start = round_training.starting_weights(protocol)
    assert {name: a.shape for name, a in weights.items()} == {
        name: a.shape for name, a in start.items()
    }
    assert all(np.isfinite(array).all() for array in weights.values())
    assert digest(weights) != digest(start)
    assert set(dice) == {"WT", "TC", "ET"}
    assert {"phase 1 of 3", "phase 2 of 3", "phase 3 of 3"} <= set(told)


@pytest.mark.parametrize(
    ("mode", "private"), [("patient-dp", True), ("patient-dp", False), ("none", True)]
)
def test_training_alone_charges_nobody(site: Site, mode: str, private: bool) -> None:
    protocol = tiny_protocol(privacy={"mode": mode})
    start = round_training.starting_weights(protocol)
    told: list[tuple[int, int]] = []
    weights = rehearsal.train_alone(
        protocol,
        start,
        list(round_training.training_patients(site, protocol).values()),
        private=private,
        execution=PLAIN,
        progress=lambda *done: told.append(done),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert digest(weights) != digest(start)
    with budget_caps.open_ledger(site) as ledger:
        assert ledger.facts() == ()
