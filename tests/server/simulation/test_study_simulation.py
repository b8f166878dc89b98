from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import ModelError, ProtocolError, StateError
from common.records.weights import digest, save
from common.study.aggregation_options import AggregationOptions
from common.study.network_shapes import shapes
from common.study.protocol import NetworkOptions
from server.aggregation import RULES
from server.aggregation.update_buffer import Collection
from server.simulation.simulated_fleet import Speeds
from server.simulation.study_simulation import HOLDING, counts, simulate, starting_weights
from tests.consortia import tiny_protocol

SPEEDS = Speeds(seconds_per_step=5.0, evaluation_seconds=3.0, mbit=100.0, server_mbit=1000.0)
WEIGHTS = starting_weights(tiny_protocol().network, parameters=2000)
DEADLINE_S = 300.0


def found(*, sites: int = 20, rounds: int = 2, speeds: Speeds = SPEEDS, **changes: Any) -> Any:
    aggregation = {"deadline_s": DEADLINE_S, **changes.pop("aggregation", {})}
    protocol = tiny_protocol(rounds=10, aggregation=aggregation, **changes)
    return simulate(protocol, WEIGHTS, sites=sites, rounds=rounds, speeds=speeds)


def test_counts_grow_with_the_sites_and_nothing_else() -> None:
    result = found(sites=40)
    assert [one["sites"] for one in result["measured"]] == [4, 12, 40]
    for one in result["measured"]:
        sites = one["sites"]
        assert (one["rounds_closed"], one["rounds_failed"], one["ended"]) == (2, 0, "")
        assert one["answers"] == 2 * sites
        assert one["dropped"] == {}
        for kind in ("train", "evaluate"):
            assert one["bytes_down"][kind] / sites == pytest.approx(
                result["measured"][0]["bytes_down"][kind] / 4, rel=0.01
            )
        assert one["bytes_up"]["train"] / sites == pytest.approx(
            result["measured"][0]["bytes_up"]["train"] / 4, rel=0.01
        )
        assert one["bytes_down"]["train"] > 2 * sites * 4 * 2000
        assert one["coordinator_s"] > 0
        assert 0 < one["site_cpu_ms"] <= 1000 * one["coordinator_cpu_s"]
        assert one["site_ms"] > 0
        assert one["peak_bytes"] > 1e6
        # Two steps of five seconds, and almost no way.
        assert one["round_s"] == pytest.approx(10, abs=2)
    journal = [one["journal_bytes"] / one["sites"] for one in result["measured"]]
    assert journal[2] < 1.2 * journal[1]


def test_the_rest_of_the_rounds_is_extrapolated() -> None:
    result = found(evaluate_every=5)
    whole = result["measured"][-1]
    assert (result["rounds_simulated"], result["rounds_planned"]) == (2, 10)
    # Ten rounds, but only two evaluations; the simulation had two rounds and one.
    evaluation = whole["study_s"] - whole["rounds_s"]
    assert result["planned_s"] == pytest.approx(5 * whole["rounds_s"] + 2 * evaluation)
    json.dumps(result, allow_nan=False)


def test_slow_sites_make_rounds_long_and_silent_ones_are_left_out() -> None:
    quick = found()["measured"][-1]
    slow = Speeds(**{**vars(SPEEDS), "slow_share": 0.2, "slow_factor": 3.0})
    assert found(speeds=slow)["measured"][-1]["round_s"] > 2.5 * quick["round_s"]
    silent = Speeds(**{**vars(SPEEDS), "drop_share": 0.2})
    whole = found(speeds=silent)["measured"][-1]
    assert whole["rounds_closed"] == 2
    assert sum(whole["dropped"].values()) + whole["answers"] == 40
    assert whole["answers"] < 40
    assert whole["study_s"] > DEADLINE_S


def test_a_study_that_would_stop_says_why() -> None:
    result = found(
        sites=4,
        speeds=Speeds(**{**vars(SPEEDS), "drop_share": 1.0}),
        aggregation={"quorum": 2},
    )
    whole = result["measured"][-1]
    assert whole["rounds_closed"] == 0
    assert "quorum" in whole["ended"]
    assert whole["round_s"] is None
    assert result["planned_s"] is result["planned_coordinator_s"] is None


def test_facts_of_privacy_are_told_and_no_epsilon() -> None:
    facts = found(sites=2, rounds=1)["privacy_of_a_site"]
    assert facts == {
        "steps": 20,
        "sampling_rate": 0.5,
        "noise_multiplier": 2.0,
        "delta": 1e-3,
        "max_epsilon": 8.0,
    }
    assert found(sites=2, rounds=1, privacy={"mode": "none"})["privacy_of_a_site"] is None


def test_smaller_messages_show() -> None:
    whole = found(sites=3, rounds=1)["measured"][-1]
    small = found(sites=3, rounds=1, messages={"encoding": "int8"})["measured"][-1]
    assert small["bytes_up"]["train"] < 0.7 * whole["bytes_up"]["train"]
    assert small["bytes_down"]["train"] == pytest.approx(whole["bytes_down"]["train"], rel=0.01)


@pytest.mark.parametrize("rule", ["scaffold", "coordinate_median", "fedadam"])
def test_other_rules_run_as_well(rule: str) -> None:
    changes: dict[str, Any] = {"aggregation": {"rule": rule, "quorum": 3}}
    if rule == "scaffold":
        changes["training"] = {"optimizer": "sgd", "momentum": 0.0}
    result = found(sites=4, rounds=2, **changes)
    assert result["measured"][-1]["rounds_closed"] == 2
    assert result["holds_every_update"] is (rule == "coordinate_median")
    down = result["measured"][-1]["bytes_down"]["train"]
    plain = found(sites=4, rounds=2)["measured"][-1]["bytes_down"]["train"]
    # From the second round on the control variates of scaffold travel beside the weights.
    assert down / plain == pytest.approx(1.45 if rule == "scaffold" else 1.0, abs=0.05)


def test_rules_that_hold_updates_are_known() -> None:
    holding = set()
    for name, make in RULES.items():
        more = {"norm_bound": 1.0} if name == "norm_bounded_mean" else {}
        rule = make(AggregationOptions.model_validate({"rule": name, "quorum": 9, **more}), {})
        if any(isinstance(value, Collection) for value in vars(rule).values()):
            holding.add(name)
    assert holding == HOLDING


def test_too_little_memory_is_said_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_AVPHYS_PAGES" else 4096)
    with pytest.raises(StateError, match="holds the updates of all sites") as caught:
        found(aggregation={"rule": "coordinate_median", "quorum": 3})
    assert caught.value.code == "memory"
    found(sites=2, rounds=1)  # a rule that adds up needs no such thing


def test_sites_with_a_public_weight_are_among_the_simulated() -> None:
    result = found(sites=3, rounds=1, aggregation={"weights": {"north": 2.0}, "quorum_weight": 0.9})
    assert result["measured"][-1]["ended"] == ""
    assert result["measured"][-1]["answers"] == 3


@pytest.mark.parametrize(
    ("sites", "quorum", "expected"),
    [(1000, 1, [100, 300, 1000]), (10, 5, [5, 10]), (1, 1, [1]), (4, 4, [4])],
)
def test_the_numbers_of_sites(sites: int, quorum: int, expected: list[int]) -> None:
    assert counts(tiny_protocol(aggregation={"quorum": quorum}), sites) == expected


def test_fewer_sites_than_the_quorum_are_refused() -> None:
    with pytest.raises(ProtocolError, match="3 sites are too few"):
        found(sites=3, aggregation={"quorum": 4})


def test_an_expired_protocol_can_be_planned_with() -> None:
    assert found(sites=2, rounds=1, expires="2020-01-01")["measured"][-1]["ended"] == ""


@pytest.mark.parametrize("parameters", [1, 59, 60, 61, 123_457])
def test_drawn_weights_have_the_wanted_size(parameters: int) -> None:
    weights = starting_weights(tiny_protocol().network, parameters=parameters)
    assert sum(value.size for value in weights.values()) == parameters
    assert all(value.size and value.dtype == np.float32 for value in weights.values())


def test_weights_come_from_a_file_a_number_or_the_network(tmp_path: Path) -> None:
    network, path = tiny_protocol().network, tmp_path / "initial.safetensors"
    drawn = starting_weights(network)
    assert {name: value.shape for name, value in drawn.items()} == shapes(network)
    save(path, drawn, {})
    assert digest(starting_weights(network, path)) == digest(drawn)
    for wrong in ((path, 5), (None, 0)):
        with pytest.raises(StateError):
            starting_weights(network, *wrong)
    other = NetworkOptions(name="unet")
    for wrong_file in (tmp_path / "absent", path):
        with pytest.raises(ModelError):
            starting_weights(other, wrong_file)
