"""When a round counts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import FederationError, PrivacyError
from common.study.aggregation_options import AggregationOptions
from server.rounds.quorum import Turnout


def turnout(took_part: str, sites: str = "abc", **given: Any) -> Turnout:
    options = AggregationOptions.model_validate({"quorum": 2, **given})
    made = Turnout(options, sites)
    for site in took_part:
        made.add(site)
    return made


@pytest.mark.parametrize(
    ("took_part", "given", "met"),
    [
        ("ab", {}, True),
        ("a", {}, False),
        ("ab", {"quorum_weight": 2 / 3}, True),
        ("ab", {"quorum_weight": 0.67}, False),
        ("abc", {"quorum_weight": 1.0}, True),
        ("ab", {"quorum_weight": 0.9, "weights": {"a": 20.0}}, True),
        ("bc", {"quorum_weight": 0.2, "weights": {"a": 20.0}}, False),
        ("a", {"quorum_weight": 0.9, "weights": {"a": 20.0}}, False),
        ("ab", {"quorum_weight": 0.9, "weights": {"z": 100.0}}, False),
    ],
)
def test_a_quorum_is_of_heads_and_of_weight(
    took_part: str, given: dict[str, Any], met: bool
) -> None:
    assert turnout(took_part, **given).met() is met


def test_what_the_end_of_a_round_says() -> None:
    made = turnout("a", weights={"a": 2.0}, quorum_weight=0.6)
    assert made.shares() == {"share_of_sites": 0.333333, "share_of_weight": 0.5}
    said = made.missed({"b": "privacy-cap"})
    assert said == (
        "quorum of 2 missed: 1 of 3 sites took part; quorum of 0.6 of the weight missed: the sites "
        "that took part have 0.5. Missing: b (privacy-cap), c (no-answer)"
    )


def test_the_buffer_counts_updates_and_not_without_the_quorum() -> None:
    given: dict[str, Any] = {"buffer": 2, "late_rounds": 1}
    assert not turnout("a", **given).full()
    assert turnout("ab", **given).full()
    assert not turnout("ab").full()
    assert not turnout("ab", quorum_weight=1.0, **given).full()


@given(st.sets(st.sampled_from("abcdef")), st.sets(st.sampled_from("abcdef")), st.floats(0, 1))
def test_what_is_met_is_possible_and_stays_met(
    came: set[str], waiting: set[str], share: float
) -> None:
    made = turnout("".join(sorted(came)), "abcdef", quorum_weight=share)
    possible = made.possible(waiting)
    assert made.possible(set()) is made.met()
    assert possible or not made.met()
    for site in waiting:
        made.add(site)
    assert made.met() is possible


def test_a_study_whose_weight_is_missing_names_who_is(world: Any) -> None:
    world.join("a", "b", "c")
    world.publish(aggregation__quorum_weight=0.5, aggregation__weights="{ c = 10.0 }")
    world.rounds().approvals.gather(3)
    world.hospitals["c"].refuses = PrivacyError("The budget is spent.", code="privacy-cap")
    with pytest.raises(FederationError, match="missed its quorum"):
        world.run()
    failed = world.events("round failed")[0]
    assert failed["took_part"] == ["a", "b"]
    assert failed["reason"] == (
        "quorum of 0.5 of the weight missed: the sites that took part have 0.167. "
        "Missing: c (privacy-cap)"
    )
    assert (failed["share_of_sites"], failed["share_of_weight"]) == (0.666667, 0.166667)


def test_a_suspended_site_is_not_in_the_sum(world: Any) -> None:
    world.join("a", "b", "c")
    world.publish(aggregation__quorum_weight=0.9, aggregation__weights="{ c = 10.0 }")
    world.rounds().approvals.gather(3)
    world.consortium.sites.suspend("c", by="Ada", why="sends noise")
    world.run()
    closed = world.events("round closed")
    assert [facts["took_part"] for facts in closed] == [["a", "b"]] * 2
    assert closed[0]["share_of_weight"] == 1.0
