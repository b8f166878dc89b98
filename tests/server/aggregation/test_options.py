"""Parameters of the rules in a protocol: defaults that fit the rule, no setting without effect."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from common.study.aggregation_options import AggregationOptions
from tests.server.aggregation.cases import CASES


def options(**given: Any) -> AggregationOptions:
    return AggregationOptions.model_validate({"quorum": 5, **given})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"server_learning_rate": 1.0, "server_momentum": 0.0, "krum_keep": 1}),
        ({"rule": "fedavgm"}, {"server_learning_rate": 1.0, "server_momentum": 0.9}),
        ({"rule": "fedadam"}, {"server_learning_rate": 0.01, "server_momentum": 0.9}),
        ({"rule": "fedyogi"}, {"server_learning_rate": 0.01, "server_momentum": 0.9}),
        ({"rule": "fedadagrad"}, {"server_learning_rate": 0.01, "server_momentum": 0.0}),
        ({"rule": "multi_krum"}, {"krum_keep": 4}),
        ({"rule": "multi_krum", "quorum": 9, "malicious_sites": 3}, {"krum_keep": 6}),
        ({"rule": "krum"}, {"krum_keep": 1}),
        ({"rule": "fedadam", "server_learning_rate": 0.5}, {"server_learning_rate": 0.5}),
    ],
)
def test_defaults_fit_the_rule(given: dict[str, Any], expected: dict[str, Any]) -> None:
    found = options(**given).model_dump()
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_what_is_signed_is_read_again_as_it_was(case: Any) -> None:
    parsed = case.parsed()
    assert AggregationOptions.model_validate_json(parsed.model_dump_json()) == parsed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rule": "mode"}, "rule"),
        ({"server_learning_rate": 0.5}, "server_learning_rate is of no use to fedavg"),
        ({"server_momentum": 0.9}, "server_momentum is of no use to fedavg"),
        ({"rule": "scaffold", "server_momentum": 0.9}, "server_momentum is of no use to scaffold"),
        ({"rule": "fedadagrad", "server_decay": 0.9}, "server_decay is of no use to fedadagrad"),
        ({"rule": "fedavgm", "server_adaptivity": 0.1}, "server_adaptivity is of no use"),
        ({"norm_bound": 1.0}, "norm_bound is of no use to fedavg"),
        ({"rule": "coordinate_median", "trim_share": 0.1}, "trim_share is of no use"),
        ({"rule": "trimmed_mean", "malicious_sites": 2}, "malicious_sites is of no use"),
        ({"rule": "krum", "krum_keep": 2}, "krum_keep is of no use to krum"),
        ({"rule": "krum", "geometric_median_iterations": 3}, "iterations is of no use to krum"),
        ({"rule": "krum", "weights": {"a": 2.0}}, "weights are of no use"),
        ({"rule": "multi_krum", "weights": {"a": 2.0}}, "weights are of no use"),
        ({"rule": "norm_bounded_mean"}, "needs a norm_bound"),
        ({"rule": "norm_bounded_mean", "norm_bound": 2e3}, "above max_update_norm"),
        ({"rule": "norm_bounded_mean", "norm_bound": 0}, "norm_bound"),
        ({"rule": "coordinate_median", "quorum": 2}, "fewer than 3 sites"),
        ({"rule": "geometric_median", "quorum": 1}, "fewer than 3 sites"),
        ({"rule": "trimmed_mean", "quorum": 4}, "keeps nobody out"),
        ({"rule": "trimmed_mean", "trim_share": 0.5}, "trim_share"),
        ({"rule": "trimmed_mean", "trim_share": 0.0}, "trim_share"),
        ({"rule": "krum", "quorum": 4}, "needs a quorum of 2 malicious_sites"),
        ({"rule": "multi_krum", "malicious_sites": 2}, "needs a quorum of .* = 7"),
        ({"rule": "krum", "malicious_sites": 0}, "malicious_sites"),
        ({"rule": "multi_krum", "krum_keep": 5}, "krum_keep is more than"),
        ({"rule": "fedavgm", "server_momentum": 1.0}, "server_momentum"),
        ({"rule": "fedadam", "server_adaptivity": 0.0}, "server_adaptivity"),
        ({"rule": "fedadam", "server_learning_rate": 0.0}, "server_learning_rate"),
        ({"rule": "fedadam", "server_decay": 1.0}, "server_decay"),
        ({"quorum_weight": 1.1}, "quorum_weight"),
        ({"quorum_weight": -0.1}, "quorum_weight"),
        ({"deadline_slack": 0.5}, "deadline_slack"),
        ({"late_rounds": -1}, "late_rounds"),
        ({"rule": "scaffold", "late_rounds": 1}, "scaffold needs updates of the open round"),
        ({"rule": "krum", "late_rounds": 1}, "krum counts all updates alike"),
        ({"rule": "multi_krum", "late_rounds": 1, "buffer": 5}, "multi_krum counts all"),
        ({"buffer": 5}, "without late_rounds"),
        ({"buffer": 4, "late_rounds": 1}, "below the quorum"),
        ({"buffer": 0, "late_rounds": 1}, "buffer"),
    ],
)
def test_settings_without_sense_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        options(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"quorum_weight": 1.0},
        {"rule": "trimmed_mean", "quorum": 10, "trim_share": 0.1},
        {"rule": "trimmed_mean", "quorum": 3, "trim_share": 1 / 3},
        {"rule": "coordinate_median", "quorum": 3, "weights": {"a": 2.0}},
        {"rule": "krum", "quorum": 7, "malicious_sites": 2},
        {"late_rounds": 3},
        {"late_rounds": 1, "buffer": 5},
        {"rule": "fedadam", "late_rounds": 2, "buffer": 6, "deadline_slack": 1.0},
    ],
)
def test_settings_at_the_edge_are_accepted(given: dict[str, Any]) -> None:
    found = options(**given)
    assert {name: getattr(found, name) for name in given} == given
