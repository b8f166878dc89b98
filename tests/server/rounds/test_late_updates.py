"""Updates that come after their round: dropped, or folded in with less weight."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConsentError
from common.messages.wire_format import Content, Order
from common.records.journal import Entry
from server.rounds.late_updates import discount, forgotten
from server.rounds.orders import StoppedError


@given(st.integers(0, 1000))
def test_the_later_the_less(staleness: int) -> None:
    assert discount(staleness) == pytest.approx((1 + staleness) ** -0.5)
    assert 0 < discount(staleness + 1) < discount(staleness) <= discount(0) == 1.0


def fact(event: str, **facts: Any) -> Entry:
    return Entry(1, "", event, facts, "")


CLOSED = fact("round closed", round=2, under_way={"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("after", "left"),
    [
        ([], {"a": 1, "b": 2}),
        ([fact("reply accepted", site="a")], {"b": 2}),
        ([fact("reply late", site="a"), fact("order lost", site="b")], {}),
        ([fact("round failed", round=3, under_way={"b": 2})], {"b": 2}),
        ([fact("late orders forgotten", sites={"a": 1, "b": 2})], {}),
        ([fact("round closed", round=3)], {}),  # of an older journal
    ],
)
def test_what_was_under_way_is_in_the_journal(after: list[Entry], left: dict[str, int]) -> None:
    assert forgotten([CLOSED, *after]) == left


def three(world: Any, *, rounds: int = 4, evaluate_every: int = 1, **options: Any) -> None:
    world.join("a", step=1.0)
    world.join("b", step=2.0)
    world.join("c", step=6.0)
    given = {f"aggregation__{name}": value for name, value in options.items()}
    world.publish(
        rounds=rounds, evaluate_every=evaluate_every, **{"aggregation__deadline_s": 100, **given}
    )
    world.rounds().approvals.gather(3)


def slow_once(world: Any, site: str, seconds: float, *, number: int = 1) -> None:
    """Let ``site`` take so long for one round, and ten seconds for all others, as the rest."""
    world.fleet.slow = dict.fromkeys(world.hospitals, 10.0)
    send = world.fleet.send

    def slow(name: str, kind: Any, content: Content, **about: Any) -> str:
        text = str(content.config_records["gliofed"]["json"])
        order = Order.model_validate_json(text)
        late = (name, kind, order.round) == (site, "train", number)
        world.fleet.slow[name] = seconds if late else 10.0
        return str(send(name, kind, content, **about))

    world.fleet.send = slow


def parts(world: Any) -> list[list[str]]:
    return [facts["took_part"] for facts in world.events("round closed")]


def test_a_late_update_is_folded_into_the_round_that_is_open(world: Any) -> None:
    three(world, late_rounds=2)
    slow_once(world, "c", 115.0)
    world.run()
    assert parts(world) == [["a", "b"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]
    (late,) = [f for f in world.events("reply accepted", site="c") if "staleness" in f]
    assert late["base_round"] == 1
    assert late["staleness"] == late["round"] - 1
    assert late["weight"] == pytest.approx((1 + late["staleness"]) ** -0.5)
    assert late["seconds"] == pytest.approx(115, abs=1)
    # Means of 1 and 2 in rounds without c, of 1, 2 and 6 in rounds with it; the late 6 counts less.
    weight = late["weight"]
    whole, stale = (1 + 2 + 6) / 3, (1 + 2 + 6 * weight) / (2 + weight)
    without = sum("c" not in took for took in parts(world))
    expected = without * 1.5 + stale + (3 - without) * whole
    assert float(world.weights()["conv_final.0.weight"][0]) == pytest.approx(expected, rel=1e-6)
    opened = {facts["round"]: facts for facts in world.events("round opened")}
    assert opened[2]["busy"] == {"c": 1}
    assert opened[2]["ordered"] == ["a", "b"]
    assert opened[2]["sites"] == ["a", "b", "c"]
    assert world.events("round closed")[0]["under_way"] == {"c": 1}
    trained = [r for kind, r in world.hospitals["c"].asked if kind == "train"]
    assert trained == sorted(set(trained)), "no order came twice"
    assert late["round"] not in trained, "a site that is busy is not ordered again"


@pytest.mark.parametrize(("allowed", "used"), [(0, False), (1, False), (2, True)])
def test_an_update_that_comes_too_late_is_dropped_and_said(
    world: Any, allowed: int, used: bool
) -> None:
    three(world, late_rounds=allowed, rounds=6)
    slow_once(world, "c", 117.0)
    world.run()
    late = [f for f in world.events("reply accepted", site="c") if "staleness" in f]
    dropped = world.events("reply late")
    assert (len(late), len(dropped)) == ((1, 0) if used else (0, 1))
    (facts,) = late or dropped
    assert (facts["base_round"], facts["staleness"]) == (1, 2)
    assert facts["seconds"] == pytest.approx(117, abs=1)
    assert facts["bytes"] > 0


def test_a_late_update_is_checked_by_its_own_order(world: Any) -> None:
    three(world, late_rounds=3)
    slow_once(world, "c", 105.0)

    def lie(order: Order, good: Content) -> Content:
        if order.round != 1:
            return good
        text = str(good.config_records["gliofed"]["json"]).replace('"round":1', '"round":2')
        good.config_records["gliofed"]["json"] = text
        return good

    world.hospitals["c"].replies["train"] = lie
    world.run()
    (refused,) = world.events("reply refused")
    assert (refused["site"], refused["round"], refused["code"]) == ("c", 1, "update-form")
    assert parts(world)[-1] == ["a", "b", "c"], "it is free for the open round"


def test_a_late_refusal_frees_the_site(world: Any) -> None:
    three(world, late_rounds=3)
    slow_once(world, "c", 105.0)

    def refuse(order: Order, good: Content) -> Content:
        from common.messages.wire_format import pack, refusal

        if order.round > 1:
            return good
        return pack(refusal(order, ConsentError("no", code="policy-cap")), None)

    world.hospitals["c"].replies["train"] = refuse
    world.run()
    (declined,) = world.events("site declined")
    assert (declined["round"], declined["code"]) == (1, "policy-cap")
    assert parts(world)[-1] == ["a", "b", "c"]


def test_an_order_that_expires_is_lost_and_given_anew(world: Any) -> None:
    three(world, rounds=30)
    world.fleet.slow = dict.fromkeys("ab", 30.0)
    world.fleet.deaf = {"c"}
    world.run()
    lost = world.events("order lost")
    assert {(facts["site"], facts["reason"]) for facts in lost} == {("c", "expired")}
    assert "c/" in "".join(world.fleet.forgotten)
    opened = world.events("round opened")
    assert sum("c" in facts["ordered"] for facts in opened) <= 3


def test_a_buffer_closes_a_round_and_the_rest_comes_late(world: Any) -> None:
    names = [f"site-{number}" for number in range(6)]
    for number, name in enumerate(names):
        world.join(name, step=float(number))
    world.publish(
        rounds=8,
        aggregation__deadline_s=1000,
        aggregation__late_rounds=4,
        aggregation__buffer=2,
        evaluate_every=8,
    )
    world.rounds().approvals.gather(6)
    world.fleet.slow = {name: 10.0 * (1 + number) for number, name in enumerate(names)}
    world.run()
    closed = world.events("round closed")
    assert all(len(facts["took_part"]) >= 2 for facts in closed)
    assert max(facts["seconds"] for facts in closed) < 60
    everyone = {site for facts in closed for site in facts["took_part"]}
    assert everyone == set(names), "the slowest are heard as well"
    stale = [facts["staleness"] for facts in world.events("reply accepted") if "staleness" in facts]
    assert stale
    assert max(stale) <= 4
    for facts in world.events("reply accepted"):
        assert facts["weight"] == discount(facts.get("staleness", 0))


def test_a_coordinator_that_starts_again_says_what_it_forgot(world: Any) -> None:
    three(world, late_rounds=3)
    world.fleet.deaf = {"c"}
    study = world.consortium.study("demo")

    def stop(order: Order, good: Content) -> Content:
        if order.round == 2:
            study.want("stopped")
        return good

    world.hospitals["a"].replies["train"] = stop
    world.hospitals["b"].lost = 0
    world.fleet.slow = {"b": 1.0}
    with pytest.raises(StoppedError):
        world.run()
    assert len(world.fleet.forgotten) == 2, "nothing of it is kept"
    world.hospitals["a"].replies.clear()
    world.fleet.deaf.clear()
    world.run()
    (said,) = world.events("late orders forgotten")
    assert said["sites"] == {"c": 1}
    assert "ordered anew" in said["reason"]
    assert parts(world)[1] == ["a", "b", "c"]


def test_an_attempt_after_a_missed_quorum_takes_what_was_ordered_before(world: Any) -> None:
    world.join("a", step=1.0)
    world.join("b", step=3.0)
    world.publish(rounds=1, aggregation__deadline_s=100)
    world.rounds().approvals.gather(2)
    world.fleet.slow = {"b": 150.0}
    world.run()
    assert len(world.events("round failed")) == 1
    (facts,) = world.events("round closed")
    assert facts["took_part"] == ["a", "b"]
    assert [number for kind, number in world.hospitals["b"].asked if kind == "train"] == [1]
    assert not [f for f in world.events("reply accepted") if "staleness" in f]
    assert np.allclose(world.weights()["conv_final.0.weight"], 2.0)
    assert math.isclose(world.events("reply accepted", site="b")[0]["seconds"], 150, abs_tol=1)
