"""Rules that refuse, and the orders of a rule that has something to tell the sites."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.errors import FederationError
from common.messages.wire_format import Content, Order, pack
from server.aggregation import RULES
from server.aggregation.fedavg import FedAvg
from server.aggregation.scaffold import control
from tests.server.conftest import report


class Picky(FedAvg):
    """Takes nothing of ``c``."""

    def fold(self, site: str, update: Any, *, weight: float, steps: int) -> None:
        if site == "c":
            raise FederationError("The update of c cannot be aggregated: it is from c.")
        super().fold(site, update, weight=weight, steps=steps)


def test_an_update_that_the_rule_refuses_drops_its_site(
    three: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, "fedavg", Picky)
    three.run()
    assert float(three.weights()["conv_final.0.weight"].mean()) == 3.0
    assert [facts["dropped"] for facts in three.events("round closed")] == [
        {"c": "update-rule"}
    ] * 2
    refused = three.events("reply refused")[0]
    assert (refused["code"], refused["reason"]) == (
        "update-rule",
        "The update of c cannot be aggregated: it is from c.",
    )
    assert {facts["site"] for facts in three.events("reply accepted")} == {"a", "b"}


@pytest.mark.parametrize("what", ["result", "state"])
def test_a_result_that_the_rule_refuses_fails_the_round(
    three: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    left = [1, 1]

    class Failing(FedAvg):
        def result(self) -> Any:
            return self._once("result", super().result())

        def state(self) -> Any:
            return self._once("state", super().state())

        def _once(self, which: str, value: Any) -> Any:
            if which == what and left:
                left.pop()
                raise FederationError("Array 'x' of the combined update is not finite.", do="Mend.")
            return value

    monkeypatch.setitem(RULES, "fedavg", Failing)
    three.run()
    failed = three.events("round failed")
    assert [facts["reason"] for facts in failed] == [
        "Array 'x' of the combined update is not finite. Mend."
    ] * 2
    assert failed[0]["took_part"] == ["a", "b", "c"]
    assert [facts["round"] for facts in three.events("round closed")] == [1, 2]
    for hospital in three.hospitals.values():
        assert len(hospital.trained) == 2


def test_a_rule_that_goes_on_refusing_ends_the_study(
    three: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(FedAvg):
        def result(self) -> Any:
            raise FederationError("There is no such mean.")

    monkeypatch.setitem(RULES, "fedavg", Failing)
    with pytest.raises(FederationError, match="There is no such mean") as caught:
        three.run()
    assert caught.value.code == "aggregation"
    assert not three.events("round closed")


def test_weights_that_are_finite_no_more_fail_the_round(world: Any) -> None:
    world.join("a", "b")
    start = {"conv_final.0.weight": np.full(3, 3e38, np.float32)}
    world.publish(rounds=1, aggregation__max_update_norm=1e300, initial=start)

    def huge(order: Order, _good: Content) -> Content:
        update = {n: np.full_like(v, 3e38) for n, v in world.hospitals["a"].weights.items()}
        return pack(report(order), update)

    for hospital in world.hospitals.values():
        hospital.replies["train"] = huge
    with pytest.raises(FederationError, match="not finite"):
        world.run()
    assert [facts["round"] for facts in world.events("round failed")] == [1, 1, 1]


def scaffold(world: Any, *, rounds: int) -> None:
    world.join("a", step=1.0)
    world.join("b", step=3.0)
    world.publish(
        rounds=rounds,
        aggregation__rule='"scaffold"',
        training__optimizer='"sgd"',
        training__momentum=0.0,
        training__learning_rate=0.5,
    )
    world.rounds().approvals.gather(2)


def test_scaffold_sends_its_control_beside_the_weights(world: Any) -> None:
    scaffold(world, rounds=3)
    seen: dict[int, Any] = {}

    def keep(order: Order, good: Content) -> Content:
        seen[order.round] = world.hospitals["b"].control
        return good

    world.hospitals["b"].replies["train"] = keep
    world.run()
    study = world.consortium.study("demo")
    assert seen[1] == {}
    for facts in world.events("round closed")[:-1]:
        state = study.load_state(facts["round"], facts["state"])
        expected = control(state, learning_rate=0.5)
        got = seen[facts["round"] + 1]
        assert got.keys() == expected.keys() == world.weights().keys()
        for name, value in expected.items():
            assert np.array_equal(got[name], value)
    # One step of mean 2 at a rate of 0.5: c is - 2 / 0.5.
    assert np.allclose(seen[2]["conv_final.0.weight"], -4.0)
    opened = {facts["round"]: facts["bytes"] for facts in world.events("round opened")}
    assert opened[2] == 2 * opened[1] == 2 * 4 * 9


def test_other_rules_send_weights_alone(three: Any) -> None:
    three.run()
    assert all(hospital.control == {} for hospital in three.hospitals.values())


def folded(world: Any, site: str) -> dict[int, int]:
    orders = [order for order in world.hospitals[site].orders if order.kind == "train"]
    return {order.round: order.folded_round for order in orders}


def test_each_site_is_told_which_of_its_updates_counted(world: Any) -> None:
    scaffold(world, rounds=5)

    def bad(order: Order, good: Content) -> Content:
        if order.round not in {2, 3}:
            return good
        return pack(report(order), {"conv_final.0.weight": np.full(3, np.nan, np.float32)})

    world.join("c", step=1.0)
    world.hospitals["c"].replies["train"] = bad
    world.rounds().offer({})
    world.run()
    assert folded(world, "a") == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4}
    assert folded(world, "c") == {1: 0, 2: 1, 3: 1, 4: 1, 5: 4}


def test_what_counted_is_known_after_a_restart_and_a_failed_round_is_not_it(world: Any) -> None:
    scaffold(world, rounds=3)
    study = world.consortium.study("demo")
    world.fleet.slow = {"a": 1.0, "b": 2.0}

    def stop(order: Order, good: Content) -> Content:
        if order.round == 2:
            study.want("stopped")
        return good

    world.hospitals["a"].replies["train"] = stop
    with pytest.raises(FederationError, match="was stopped"):
        world.run()
    assert [f["site"] for f in world.events("reply accepted", round=2)] == ["a"]
    world.hospitals["a"].replies.clear()
    world.run()
    assert folded(world, "a") == {1: 0, 2: 1, 3: 2}


def test_cosines_tell_who_goes_along(world: Any) -> None:
    world.join("a", "b", step=1.0)
    world.join("c", step=-1.0)
    world.publish(rounds=2)
    world.rounds().approvals.gather(3)
    world.run()
    said = {(f["round"], f["site"]): f["cosine"] for f in world.events("reply accepted")}
    assert {said[1, site] for site in "abc"} == {None}
    assert (said[2, "a"], said[2, "c"]) == (1.0, -1.0)
