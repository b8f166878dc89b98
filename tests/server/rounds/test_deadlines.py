"""How long a site is waited for: what is decided, and what it comes to in a study."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.records.journal import Entry
from common.study.aggregation_options import AggregationOptions
from server.rounds.deadlines import FLOOR_S, Attendance, Deadlines


def options(**given: Any) -> AggregationOptions:
    return AggregationOptions.model_validate({"quorum": 2, "deadline_s": 1000.0, **given})


def fact(event: str, **facts: Any) -> Entry:
    return Entry(1, "", event, facts, "")


@pytest.mark.parametrize(
    ("past", "expected"),
    [
        ([], 1000.0),
        ([10.0], 3 * 10 + FLOOR_S),
        ([10.0, 50.0, 20.0], 3 * 50 + FLOOR_S),
        ([200.0, 10.0, 10.0, 10.0, 10.0, 12.0], 3 * 12 + FLOOR_S),  # what is long ago is forgotten
        ([900.0], 1000.0),
        ([0.0], FLOOR_S),
    ],
)
def test_a_site_is_waited_for_as_its_past_says(past: list[float], expected: float) -> None:
    deadlines = Deadlines(options())
    for seconds in past:
        deadlines.learn("train", "a", seconds)
    assert deadlines.wait_s("train", "a") == expected
    assert deadlines.wait_s("train", "b") == 1000.0
    assert deadlines.wait_s("evaluate", "a") == 1000.0


@given(st.lists(st.floats(0, 1e6), max_size=9), st.floats(1, 100), st.floats(1e-3, 1e5))
def test_nobody_is_waited_for_longer_than_the_protocol_says(
    past: list[float], slack: float, deadline_s: float
) -> None:
    deadlines = Deadlines(options(deadline_slack=slack, deadline_s=deadline_s))
    for seconds in past:
        deadlines.learn("train", "a", seconds)
    wait_s = deadlines.wait_s("train", "a")
    assert wait_s <= deadline_s
    if past:
        assert wait_s == min(deadline_s, slack * max(past[-5:]) + FLOOR_S)


def test_what_the_journal_says_is_what_was_learnt() -> None:
    past = [
        fact("reply accepted", site="a", seconds=10.0),
        fact("reply late", site="a", order="train", seconds=40.0),
        fact("reply late", site="a", order="evaluate", seconds=7.0),
        fact("reply accepted", site="b"),  # of an older journal
        fact("evaluated", seconds={"a": 5.0}),
        fact("evaluated"),
        fact("round closed", seconds=300.0),
    ]
    deadlines = Deadlines(options(), past)
    assert deadlines.wait_s("train", "a") == 3 * 40 + FLOOR_S
    assert deadlines.wait_s("evaluate", "a") == 3 * 7 + FLOOR_S
    assert deadlines.wait_s("train", "b") == 1000.0


@pytest.mark.parametrize(
    ("missed", "ordered", "deferred", "waited"),
    [
        (None, False, False, True),
        (None, True, True, True),
        ("absent", False, False, False),
        ("absent", True, False, True),
        ("silent", True, False, False),
        ("deferred", False, False, True),
        ("deferred", True, False, True),
        ("deferred", False, True, False),
    ],
)
def test_who_made_the_last_exchange_wait_does_not_do_so_again(
    missed: str | None, ordered: bool, deferred: bool, waited: bool
) -> None:
    attendance = Attendance()
    if missed:
        attendance.missed({"a": missed})
    assert attendance.waited_for("a", ordered=ordered, deferred=deferred) is waited
    attendance.done("a")
    assert attendance.waited_for("a", ordered=True, deferred=True)


def test_who_kept_silent_and_was_away_since_is_waited_for_when_it_is_back() -> None:
    attendance = Attendance()
    attendance.missed({"a": "silent", "b": "silent"})
    attendance.away({"a"})
    assert attendance.waited_for("a", ordered=True, deferred=False)
    assert not attendance.waited_for("b", ordered=True, deferred=False)


def long(world: Any, *sites: str, rounds: int = 4, **options: Any) -> None:
    """A study of fast sites with a deadline of an hour."""
    world.join(*sites)
    given = {f"aggregation__{name}": value for name, value in options.items()}
    world.publish(rounds=rounds, **{"aggregation__deadline_s": 3600, **given})
    world.rounds().approvals.gather(len(sites))


def seconds(world: Any) -> list[float]:
    return [facts["seconds"] for facts in world.events("round closed")]


def test_a_site_that_becomes_slow_costs_what_its_past_allows(world: Any) -> None:
    long(world, "a", "b", "c")
    world.fleet.slow = {"a": 10.0, "b": 10.0, "c": 20.0}

    def later(order: Any, good: Any) -> Any:
        if order.round == 2:
            world.fleet.slow["c"] = 1e5
        return good

    world.hospitals["a"].replies["train"] = later
    world.run()
    took = seconds(world)
    assert took[0] == took[1] == pytest.approx(20, abs=1)
    assert took[2] == pytest.approx(3 * 20.25 + FLOOR_S, abs=1.5)
    assert took[3] == pytest.approx(10, abs=1), "it is waited for once"
    assert [facts["dropped"] for facts in world.events("round closed")] == [
        {},
        {},
        {"c": "no-answer"},
        {"c": "still-busy"},
    ]
    for facts in world.events("reply accepted"):
        assert facts["bytes"] > 4 * 9
        assert facts["seconds"] == pytest.approx(10 if facts["site"] != "c" else 20, abs=1)


def test_what_is_learnt_survives_a_restart(world: Any) -> None:
    long(world, "a", "b", "c", rounds=2)
    study = world.consortium.study("demo")

    def stop(order: Any, good: Any) -> Any:
        if order.round == 2:
            study.want("stopped")
            world.fleet.deaf = {"c"}
        return good

    world.hospitals["a"].replies["train"] = stop
    with pytest.raises(Exception, match="was stopped"):
        world.run()
    world.hospitals["a"].replies.clear()
    world.run()
    assert seconds(world)[1] == pytest.approx(FLOOR_S, abs=2)


@pytest.mark.parametrize("how", ["away", "deaf"])
def test_a_dead_site_costs_one_deadline_in_a_whole_study(world: Any, how: str) -> None:
    long(world, "a", "b", "c", rounds=6)
    setattr(world.fleet, how, {"c"})
    began = world.clock.now
    world.run(poll_s=2.0)
    assert 3600 <= world.clock.now - began < 3610
    dropped = [facts["dropped"]["c"] for facts in world.events("round closed")]
    assert dropped == ["no-answer", *["no-answer" if how == "away" else "still-busy"] * 5]
    assert len(world.hospitals["c"].trained) == 0


@pytest.mark.parametrize("how", ["away", "deaf"])
def test_a_dead_site_is_ordered_again_when_it_is_back(world: Any, how: str) -> None:
    long(world, "a", "b", "c", rounds=5)
    setattr(world.fleet, how, {"c"})
    world.fleet.slow = {"a": 30.0, "b": 30.0}

    def back(order: Any, good: Any) -> Any:
        if order.round == 2:
            getattr(world.fleet, how).clear()
        return good

    world.hospitals["a"].replies["train"] = back
    world.run(poll_s=2.0)
    parts = [facts["took_part"] for facts in world.events("round closed")]
    assert parts[1] == ["a", "b"] or how == "away"
    assert parts[2:] == [["a", "b", "c"]] * 3


def test_a_round_without_its_quorum_waits_until_the_protocols_deadline(world: Any) -> None:
    long(world, "a", "b", rounds=2)
    world.fleet.slow = {"a": 1.0, "b": 1.0}

    def later(order: Any, good: Any) -> Any:
        world.fleet.slow["b"] = 2000.0  # far longer than its past allows
        return good

    world.hospitals["a"].replies["train"] = later
    world.run(poll_s=1.0)
    assert seconds(world)[1] == pytest.approx(2000, abs=2)
    assert not world.events("round failed")


def test_a_slow_site_is_waited_for_once_its_time_is_known(world: Any) -> None:
    """What came late was dropped, but it says how long the site takes."""
    long(world, "a", "b", "c", rounds=8)
    world.fleet.slow = {"a": 100.0, "b": 100.0, "c": 10.0}

    def slower(order: Any, good: Any) -> Any:
        if order.round == 1:
            world.fleet.slow["c"] = 600.0
        return good

    world.hospitals["a"].replies["train"] = slower
    world.run()
    (late,) = world.events("reply late")
    assert (late["site"], late["base_round"], late["order"]) == ("c", 2, "train")
    assert late["seconds"] == pytest.approx(600, abs=1)
    parts = [len(facts["took_part"]) for facts in world.events("round closed")]
    assert parts[0] == 3
    assert parts[1] == 2
    assert parts[-1] == 3
    assert len(world.hospitals["c"].trained) == sum(
        "c" in facts["took_part"] for facts in world.events("round closed")
    ) + len(world.events("reply late")), "no work was ordered twice"
