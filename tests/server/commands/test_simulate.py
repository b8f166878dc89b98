from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.errors import ProtocolError, StateError
from common.records.weights import save
from server.commands import coordinator
from server.simulation.study_simulation import starting_weights
from tests.consortia import tiny_protocol, toml


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(toml(tiny_protocol(rounds=8, aggregation={"deadline_s": 300.0})))
    return path


def run(*arguments: Any, fails: type[BaseException] | None = None) -> str:
    result = CliRunner().invoke(coordinator.app, ["simulate", *map(str, arguments)])
    if fails is not None:
        assert isinstance(result.exception, fails), (result.output, result.exception)
    else:
        assert result.exit_code == 0, (result.output, result.exception)
    return " ".join(result.output.split())


def test_a_plan_in_words(protocol: Path) -> None:
    said = run(protocol, "--sites", 10, "--parameters", 1000, "--seconds-per-step", 3)
    for part in (
        "10 sites, rule fedavg, 1,000 parameters",
        "the sites and the time were not",
        "2 of 2",
        "the 8 rounds of the protocol take",
        "train",
        "makes 16 steps",
        "noise multiplier 2, at delta 0.001; the study's cap is epsilon 8",
        "gliofed-site plan",
    ):
        assert part in said
    assert "WITHOUT" not in said


def test_a_plan_as_json(protocol: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    save(weights, starting_weights(tiny_protocol().network), {})
    said = json.loads(
        run(protocol, "--sites", 6, "--initial", weights, "--rounds", 1, "--mbit", 10, "--json")
    )
    assert said["parameters"] == 109_003
    assert said["measured"][-1]["sites"] == 6
    assert said["speeds"]["mbit"] == 10
    assert said["rounds_simulated"] == 1


def test_what_a_person_must_not_overlook(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    changes: dict[str, Any] = {
        "aggregation": {"rule": "coordinate_median", "quorum": 3, "deadline_s": 100.0},
        "privacy": {"mode": "none"},
    }
    path.write_text(toml(tiny_protocol(**changes)))
    said = run(path, "--sites", 3, "--parameters", 100, "--drop-share", 1)
    assert "did not get to its end" in said
    assert "WITHOUT differential privacy" in said
    assert "memory grows with each site" in said
    assert "At this pace" not in said


def test_what_cannot_be_planned(protocol: Path, tmp_path: Path) -> None:
    run(protocol, "--sites", 3, "--parameters", 0, fails=StateError)
    run(tmp_path / "absent.toml", "--sites", 3, "--parameters", 5, fails=ProtocolError)
    run(protocol, "--sites", 0, "--parameters", 5, fails=SystemExit)
    run(protocol, "--sites", 3, "--parameters", 5, "--drop-share", 2, fails=SystemExit)
