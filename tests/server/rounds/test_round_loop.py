from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from common.errors import (
    CaseError,
    ConsentError,
    FederationError,
    GliofedError,
    PrivacyError,
    StateError,
)
from common.messages.reply_limits import reply_limit
from common.messages.wire_format import Content, Order, Report, pack
from common.records.weights import digest, norm, save
from common.study import drawn_weights
from common.study.network_shapes import shapes
from common.study.protocol import MessageOptions
from server.rounds import round_loop
from server.rounds.fleet import Delivery, MemoryFleet
from server.rounds.orders import StoppedError
from server.rounds.round_loop import Rounds
from tests.cargo import arrays_of, with_arrays
from tests.server.conftest import start


def means(world: Any) -> list[float]:
    return [float(value.mean()) for value in world.weights().values()]


def dropped(world: Any, number: int = 1, event: str = "round closed") -> dict[str, str]:
    (facts,) = world.events(event, round=number)
    why: dict[str, str] = facts["dropped"]
    return why


def test_a_study_runs_to_its_end(three: Any) -> None:
    three.run()
    assert means(three) == [6.0, 6.0]
    assert three.names() == [
        "study published",
        "study started",
        "waiting for approvals",
        *["study approved"] * 3,
        *["round opened", *["reply accepted"] * 3, "round closed", "evaluated"] * 2,
        "study finished",
    ]
    (finished,) = three.events("study finished")
    assert finished["weights"] == digest(three.weights())
    closed = three.events("round closed")
    assert [facts["took_part"] for facts in closed] == [["a", "b", "c"]] * 2
    assert closed[1]["privacy_spent"]["b"]["steps"] == 2
    for facts in three.events("reply accepted"):
        step = three.hospitals[facts["site"]].step
        update = {name: np.full_like(v, step) for name, v in three.weights().items()}
        assert facts["update"] == digest(update)
        assert facts["norm"] == pytest.approx(norm(update))
        assert facts["case_count"] == "20-49"
    assert three.events("evaluated")[1]["dice"]["a"] == {"WT": 0.6, "ET": 0.25}


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn is a whole network, as outside these tests."""
    monkeypatch.setattr(round_loop, "draw", drawn_weights.draw)
    monkeypatch.setattr(round_loop, "drawn_digest", drawn_weights.drawn_digest)


def test_the_start_is_drawn_from_the_seed_and_no_site_is_asked(world: Any, whole: None) -> None:
    world.join("a", step=1e-3)
    world.publish(seed=7, rounds=1, network={"size": '"tiny"'}, aggregation__quorum=1)
    world.run()
    (started,) = world.events("study started")
    options = world.consortium.study("demo").protocol.network
    first = drawn_weights.draw(options, seed=7)
    assert {name: array.shape for name, array in first.items()} == shapes(options)
    assert started["source"] == "seed"
    assert started["weights"] == digest(first) == drawn_weights.drawn_digest(options, seed=7)
    assert world.events("round opened")[0]["base"] == digest(first)
    assert {kind for kind, _ in world.hospitals["a"].asked} == {"offer", "train", "evaluate"}


def test_a_start_that_a_site_chose_is_drawn_anew_unless_a_round_is_closed(three: Any) -> None:
    """Earlier versions let a site draw; it could choose what everybody trained from."""
    study, chosen = three.consortium.study("demo"), {"x": np.full((2, 2), 7.0, np.float32)}
    study.save(0, chosen)
    three.consortium.journal.append(
        "study started", study="demo", weights=digest(chosen), source="seed, made at a"
    )
    three.run()
    assert [facts["source"] for facts in three.events("study started")] == [
        "seed, made at a",
        "seed",
    ]
    assert means(three) == [6.0, 6.0]


def test_a_study_of_an_earlier_version_goes_on_from_its_closed_rounds(three: Any) -> None:
    chosen = {name: np.full_like(value, 7.0) for name, value in start().items()}
    three.run()
    journal = three.consortium.journal
    study = three.publish("older")
    study.save(0, chosen)
    identity = study.save(1, chosen)
    journal.append("study started", study="older", weights=identity, source="seed, made at a")
    closed = three.events("round closed", study="demo")[0]
    facts = {**closed, "study": "older", "weights": identity, "state": ""}
    journal.append("round closed", **facts)
    three.run("older")
    assert len(three.events("study started", study="older")) == 1
    assert three.events("study resumed", study="older")[0]["round"] == 1
    assert [float(v.mean()) for v in three.weights("older").values()] == [10.0, 10.0]


def test_given_starting_weights_are_used(world: Any) -> None:
    world.join("a", step=1.0)
    world.join("b", step=3.0)
    world.publish(initial={"x": np.full((2, 2), 5.0, np.float32)})
    world.run()
    assert world.events("study started")[0]["source"] == "study --initial"
    assert means(world) == [9.0]
    assert all(("initial", 0) not in hospital.asked for hospital in world.hospitals.values())


GIVEN = {"x": np.full((2, 2), 5.0, np.float32)}
OTHER = {"x": np.full((2, 2), 6.0, np.float32)}


@pytest.mark.parametrize(
    ("named", "there", "said"),
    [
        (GIVEN, None, "are not in"),
        (GIVEN, OTHER, "are not those that the protocol of other names"),
        (None, GIVEN, "names no starting weights"),
    ],
)
def test_a_study_starts_from_what_hospitals_approved_or_not_at_all(
    three: Any, world: Any, named: Any, there: Any, said: str
) -> None:
    study = world.publish("other", initial=named) if named else world.publish("other")
    study.initial.unlink(missing_ok=True)
    if there is not None:
        save(study.initial, there, {})
    with pytest.raises(StateError, match=said) as error:
        world.run("other")
    assert error.value.code == "initial"
    assert not world.events("study started", study="other")


def test_weights_come_from_the_protocol_and_not_from_replies(world: Any) -> None:
    world.join("a", step=1.0)
    world.join("b", step=5.0)
    world.publish(rounds=1, aggregation__weights="{ b = 3.0 }")

    def boast(order: Order, good: Content) -> Content:
        report = Report.model_validate_json(str(good.config_records["gliofed"]["json"]))
        big = report.model_copy(update={"case_count": "1000+"})
        return pack(big, arrays_of(good))

    world.hospitals["a"].replies["train"] = boast
    world.run()
    assert means(world) == [4.0, 4.0]
    assert [(f["site"], f["weight"]) for f in world.events("reply accepted")] == [
        ("a", 1.0),
        ("b", 3.0),
    ]


def test_only_the_trained_parameters_travel_back(world: Any) -> None:
    world.join("a", "b")
    head, body = "conv_final.2.weight", "convInit.weight"
    start = {head: np.zeros(3, np.float32), body: np.ones(3, np.float32)}
    world.publish(rounds=1, training__trainable='["head"]', initial=start)

    def only(order: Order, good: Content) -> Content:
        return with_arrays(good, {n: a for n, a in arrays_of(good).items() if n != body})

    world.hospitals["a"].replies["train"] = only
    world.hospitals["b"].replies["train"] = only
    world.run()
    assert world.weights()[head].tolist() == [1, 1, 1]
    assert world.weights()[body].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("error", "why", "reason"),
    [
        (ConsentError("The policy forbids it.", code="policy-cap"), "policy-cap", True),
        (PrivacyError("The budget is spent.", code="privacy-cap"), "privacy-cap", True),
        (CaseError("Patient 7 has no label.", code="case-label"), "case-label", False),
    ],
)
def test_a_site_that_declines_is_named_and_the_round_goes_on(
    three: Any, error: GliofedError, why: str, reason: bool
) -> None:
    three.rounds().approvals.gather(3)
    three.hospitals["c"].refuses = error
    three.run()
    assert dropped(three, 1) == dropped(three, 2) == {"c": why}
    assert means(three) == [3.0, 3.0]
    said = [facts for facts in three.events("site declined") if facts["order"] == "train"]
    assert [facts["reason"] for facts in said] == [error.message if reason else ""] * 2


def test_a_pending_site_is_not_ordered_and_said_once(three: Any) -> None:
    three.hospitals["c"].approves = False
    three.run()
    assert three.events("round closed")[-1]["took_part"] == ["a", "b"]
    assert {kind for kind, _ in three.hospitals["c"].asked} == {"offer"}
    told: dict[str, str] = {}
    before = len(three.events("site declined"))
    for _ in range(3):
        three.rounds().offer(told)
    assert len(three.events("site declined")) == before + 1


def test_the_study_waits_until_enough_sites_have_approved(world: Any) -> None:
    world.join("a")
    late = world.join("b", approves=False)
    world.publish(rounds=1)
    world.clock.after(50.0, lambda: setattr(late, "approves", True))
    world.run()
    assert world.names()[-1] == "study finished"
    assert len(world.events("study approved")) == 2
    assert len([f for f in world.events("site declined") if f["order"] == "offer"]) <= 2


def test_approvals_are_asked_for_once(three: Any) -> None:
    three.run()
    for hospital in three.hospitals.values():
        assert sum(kind == "offer" for kind, _ in hospital.asked) == 1


def test_a_revoked_site_is_neither_counted_nor_ordered(three: Any) -> None:
    three.rounds().approvals.gather(3)
    (three.consortium.folder / "sites" / "c.json").unlink()
    three.run()
    assert three.rounds().approvals.current() == {"a", "b"}
    assert {kind for kind, _ in three.hospitals["c"].asked} == {"offer"}


def test_a_site_that_was_not_admitted_is_not_asked(three: Any) -> None:
    (three.consortium.folder / "sites" / "c.json").unlink()
    three.rounds().offer({})
    assert three.hospitals["c"].asked == []


def test_a_lost_order_is_given_again(three: Any) -> None:
    three.rounds().approvals.gather(3)
    three.hospitals["b"].lost = 2
    three.run()
    lost = [facts for facts in three.events("order lost") if facts["order"] == "train"]
    assert [(f["site"], f["reason"]) for f in lost] == [("b", "lost")] * 2
    assert three.events("round closed")[0]["took_part"] == ["a", "b", "c"]


def test_an_order_that_is_always_lost_is_given_up(three: Any) -> None:
    three.rounds().approvals.gather(3)
    three.hospitals["c"].lost = 8
    three.run()
    assert dropped(three, 1) == {"c": "order-lost"}
    assert dropped(three, 2) == {}


def test_a_site_that_was_away_is_ordered_when_it_is_back(three: Any) -> None:
    three.rounds().approvals.gather(3)
    three.fleet.away = {"c"}
    three.clock.after(30.0, three.fleet.away.clear)
    three.run()
    assert three.events("round closed")[0]["took_part"] == ["a", "b", "c"]


def test_a_dead_site_is_waited_for_once(three: Any) -> None:
    three.rounds().approvals.gather(3)
    three.fleet.away = {"c"}
    began = three.clock.now
    three.run()
    assert dropped(three, 1) == dropped(three, 2) == {"c": "no-answer"}
    assert 100 <= three.clock.now - began < 110
    assert not [kind for kind, _ in three.hospitals["c"].asked if kind != "offer"]


def test_a_site_that_comes_back_takes_part_in_the_next_round(world: Any) -> None:
    world.join("a", "b", "c")
    world.publish(rounds=4)
    world.rounds().approvals.gather(3)
    world.fleet.away = {"c"}
    slow = world.hospitals["a"]

    def back(order: Order, good: Content) -> Content:
        if order.round == 3:
            world.fleet.away.clear()
        return good

    slow.replies["train"] = back
    world.run()
    parts = [facts["took_part"] for facts in world.events("round closed")]
    assert parts[0] == parts[1] == ["a", "b"]
    assert parts[3] == ["a", "b", "c"]


def test_a_site_that_does_not_answer_costs_the_deadline_only(three: Any) -> None:
    three.rounds().approvals.gather(3)
    three.fleet.deaf = {"c"}
    began = three.clock.now
    three.run()
    assert dropped(three, 1) == {"c": "no-answer"}
    assert means(three) == [3.0, 3.0]
    assert three.clock.now - began <= 4 * 101


def test_a_missed_quorum_fails_the_round_and_three_fail_the_study(world: Any) -> None:
    world.join("a", "b")
    world.publish()
    world.rounds().approvals.gather(2)
    world.hospitals["b"].refuses = PrivacyError("The budget is spent.", code="privacy-cap")
    with pytest.raises(FederationError, match=r"Round 1 .* missed its quorum 3 times") as caught:
        world.run()
    assert caught.value.code == "quorum"
    failed = world.events("round failed")
    assert [facts["round"] for facts in failed] == [1, 1, 1]
    assert failed[0]["took_part"] == ["a"]
    assert failed[0]["dropped"] == {"b": "privacy-cap"}
    assert not world.events("round closed")
    assert len(world.hospitals["a"].trained) == 1


def test_a_failed_round_is_tried_again(world: Any) -> None:
    world.join("a", "b")
    world.publish()
    world.rounds().approvals.gather(2)
    world.hospitals["b"].refuses = PrivacyError("no")
    world.clock.after(3.0, lambda: setattr(world.hospitals["b"], "refuses", None))
    world.run()
    assert len(world.events("round failed")) == 1
    assert len(world.events("round closed")) == 2


def test_a_study_stops_and_goes_on(three: Any) -> None:
    study = three.consortium.study("demo")

    def stop(order: Order, good: Content) -> Content:
        if order.round == 2:
            three.fleet.deaf = {"c"}
            study.want("stopped")
        return good

    three.hospitals["a"].replies["train"] = stop
    with pytest.raises(StoppedError):
        three.run()
    assert len(three.events("round closed")) == 1
    assert three.consortium.study("demo").wanted == "stopped"
    three.fleet.deaf.clear()
    three.hospitals["a"].replies.clear()
    three.run()
    assert len(three.events("study resumed")) == 1
    assert [facts["round"] for facts in three.events("round closed")] == [1, 2]
    assert means(three) == [6.0, 6.0]


def test_a_study_stops_while_it_waits_for_approvals(world: Any) -> None:
    world.join("a", "b", approves=False)
    study = world.publish()
    world.clock.after(10.0, lambda: study.want("stopped"))
    with pytest.raises(StoppedError, match="was stopped"):
        world.run()


def test_evaluations_come_when_they_are_due(world: Any) -> None:
    world.join("a", "b")
    world.publish(rounds=5, evaluate_every=2)
    world.run()
    assert [facts["round"] for facts in world.events("evaluated")] == [2, 4, 5]


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_checkpoint_that_is_not_the_journals_stops_the_study(three: Any, damage: str) -> None:
    three.run()
    study = three.consortium.study("demo")
    if damage == "missing":
        study.checkpoint(2).unlink()
    else:
        study.checkpoint(2).write_bytes(study.checkpoint(1).read_bytes())
    with pytest.raises(StateError, match=r"0002\.safetensors"):
        three.rounds().run()


def test_studies_do_not_mix(three: Any) -> None:
    three.publish("other", rounds=1)
    three.run()
    three.run("other")
    assert [facts["round"] for facts in three.events("round closed", study="other")] == [1]
    assert len(three.events("study approved", study="other")) == 3


def test_the_memory_fleet_gives_each_site_its_own_order() -> None:
    order = Order(kind="train", study="demo", round=1, protocol="{}")
    content = pack(order, {"a": np.ones(2, np.float32)})
    got: list[list[str]] = []

    def site(kind: str, given: Content) -> Content:
        got.append(list(arrays_of(given)))
        given.array_records["arrays"].clear()
        return given

    fleet = MemoryFleet({"a": site, "b": site})
    limit = reply_limit({"a": (2,)}, MessageOptions())
    tickets = [fleet.send(name, "train", content, ttl_s=1.0, limit=limit) for name in ("a", "b")]
    deliveries = [fleet.collect(ticket) for ticket in tickets]
    assert got == [["a"], ["a"]]
    assert all(isinstance(delivery, Delivery) for delivery in deliveries)


def test_a_round_that_fails_while_nobody_can_come_through_does_not_count(three: Any) -> None:
    """Three failures pause a study; here it is five, and the certificate's."""
    three.rounds().offer({})
    turns = itertools.cycle(["", "shut"])  # before a round, and once it has failed

    def closed() -> str:
        failed = len(three.events("round failed"))
        three.fleet.deaf = set() if failed == 5 else {"a", "b", "c"}
        return next(turns)

    study = three.consortium.study("demo")
    study.want("running")
    Rounds(
        study,
        three.fleet,
        journal=three.consortium.journal,
        sites=three.consortium.sites,
        closed=closed,
        clock=three.clock,
    ).run()
    assert len(three.events("round failed")) == 5
    assert three.names()[-1] == "study finished"
