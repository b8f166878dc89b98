"""Work on phantoms: rehearsal, starting weights, training alone. No ledger is touched."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from client import rehearsal, studies
from client.phantoms import write_cohort
from client.site import Site
from client.training import ExecutionOptions
from common.weights import digest
from tests.consortia import tiny_protocol

PLAIN = ExecutionOptions(prefetch=0)


@pytest.fixture(autouse=True)
def small_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "write_cohort", functools.partial(write_cohort, size=24))


def test_a_rehearsal_does_every_step_once(tmp_path: Path) -> None:
    told: list[str] = []
    found = rehearsal.rehearse(
        tmp_path / "rehearsal",
        patients=2,
        execution=PLAIN,
        progress=lambda step, *_: told.append(step),
    )
    assert list(dict.fromkeys(told)) == ["phantoms", "preprocessing", "private training"]
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
    assert not list(tmp_path.rglob("*.sqlite"))


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
    start = studies.starting_weights(protocol)
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
    start = studies.starting_weights(protocol)
    told: list[tuple[int, int]] = []
    weights = rehearsal.train_alone(
        protocol,
        start,
        studies.training_patients(site, protocol),
        private=private,
        execution=PLAIN,
        progress=lambda *done: told.append(done),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert digest(weights) != digest(start)
    with studies.open_ledger(site) as ledger:
        assert ledger.facts() == ()
