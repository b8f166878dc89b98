"""Sites that join a study while it runs, leave it, are suspended, or have no time now."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import ConsentError, FederationError
from common.messages.wire_format import Content, Order, pack, refusal


def taking_back(order: Order, code: str) -> Content:
    return pack(refusal(order, ConsentError("The board said no.", code=code)), None)


@pytest.fixture
def five(world: Any) -> Any:
    """Five rounds of three sites, ten seconds each."""
    world.join("a", "b", "c")
    world.publish(rounds=5)
    world.rounds().approvals.gather(3)
    world.fleet.slow = dict.fromkeys("abc", 40.0)
    return world


def parts(world: Any) -> list[str]:
    return ["".join(facts["took_part"]) for facts in world.events("round closed")]


def test_an_approval_that_comes_in_a_round_counts_from_the_next(five: Any) -> None:
    late = five.join("d", approves=False)
    five.clock.after(55.0, lambda: setattr(late, "approves", True))
    five.run()
    assert parts(five) == ["abc", "abc", "abcd", "abcd", "abcd"]
    facts = list(five.consortium.journal.entries())
    (approved,) = [
        e.number for e in facts if e.event == "study approved" and e.facts["site"] == "d"
    ]
    second = [e.number for e in facts if e.event.startswith("round") and e.facts["round"] == 2]
    assert second[0] < approved < second[1]
    asked = sum(kind == "offer" for kind, _ in late.asked)
    assert 2 <= asked <= 4, "it is not asked again and again"
    assert len(five.events("site declined", site="d")) == 1


@pytest.mark.parametrize("code", ["refused-by-site", "not-approved"])
def test_an_approval_that_is_taken_back_holds_until_the_next(five: Any, code: str) -> None:
    hospital = five.hospitals["c"]

    def refuse(order: Order, good: Content) -> Content:
        return good if order.round < 2 else taking_back(order, code)

    hospital.replies["train"] = refuse
    hospital.replies["offer"] = lambda order, _good: taking_back(order, code)
    five.clock.after(85.0, hospital.replies.clear)
    five.run()
    assert parts(five) == ["abc", "ab", "ab", "abc", "abc"]
    (taken,) = five.events("approval taken back")
    assert (taken["site"], taken["round"], taken["code"]) == ("c", 2, code)
    assert "until it approves again" in taken["reason"]
    assert [facts["sites"] for facts in five.events("round opened")][2] == ["a", "b"]
    assert len(five.events("study approved", site="c")) == 2


def test_what_was_taken_back_is_known_after_a_restart(five: Any) -> None:
    hospital = five.hospitals["c"]
    hospital.refuses = ConsentError("no", code="refused-by-site")
    hospital.approves = False
    five.run()
    assert five.rounds().approvals.current() == {"a", "b"}
    hospital.approves = True
    five.rounds().offer({})
    assert five.rounds().approvals.current() == {"a", "b", "c"}


def test_a_study_without_enough_approvals_left_waits_for_them(five: Any) -> None:
    for name in "bc":
        five.hospitals[name].refuses = ConsentError("no", code="refused-by-site")
        five.hospitals[name].replies["offer"] = lambda o, _g: taking_back(o, "refused-by-site")

    def back() -> None:
        for name in "bc":
            five.hospitals[name].refuses = None
            five.hospitals[name].replies.clear()

    five.clock.after(300.0, back)
    five.run()
    assert five.names()[-1] == "study finished"
    assert five.events("waiting for approvals")[-1]["so_far"] == ["a"]
    assert len(five.events("approval taken back")) == 2


def test_a_suspended_site_gets_nothing_from_the_next_message_on(five: Any) -> None:
    sites = five.consortium.sites
    five.clock.after(60.0, lambda: sites.suspend("c", by="Ada", why="scaled updates"))
    five.clock.after(150.0, lambda: sites.restore("c", by="Ada"))
    five.run()
    assert parts(five)[0] == "abc"
    assert parts(five)[1] == "ab"
    assert parts(five)[-1] == "abc"
    assert five.events("round closed")[1]["dropped"] == {"c": "suspended"}
    (said,) = five.events("site suspended")
    assert (said["site"], said["by"], said["why"]) == ("c", "Ada", "scaled updates")
    assert five.events("site restored") == [{"site": "c", "by": "Ada"}]
    assert [ticket[0] for ticket in five.fleet.forgotten] == ["c"], "what was under way is dropped"
    assert len(five.events("study approved", site="c")) == 1, "its approval counts again"


def test_a_suspended_site_is_not_offered_anything(world: Any) -> None:
    world.join("a", "b", "c")
    world.consortium.sites.suspend("c", by="Ada", why="left")
    world.publish()
    world.run()
    assert world.hospitals["c"].asked == []
    assert world.rounds().approvals.current() == {"a", "b"}


def test_all_sites_suspended_fail_no_round(world: Any) -> None:
    world.join("a", "b")
    study = world.publish()
    world.rounds().approvals.gather(2)
    world.consortium.sites.suspend("b", by="Ada", why="left")
    world.clock.after(100.0, lambda: study.want("stopped"))
    with pytest.raises(FederationError, match="was stopped"):
        world.run()
    assert not world.events("round opened")


@pytest.mark.parametrize("code", ["policy-hours", "busy"])
def test_a_site_without_time_is_asked_again_and_the_journal_says_so_once(
    five: Any, code: str
) -> None:
    hospital = five.hospitals["c"]
    hospital.refuses = ConsentError("Only at night.", code=code)
    five.fleet.slow = dict.fromkeys("ab", 95.0)
    five.clock.after(50.0, lambda: setattr(hospital, "refuses", None))
    five.run()
    assert parts(five) == ["abc"] * 5
    (said,) = five.events("site declined")
    assert (said["site"], said["code"], said["reason"]) == ("c", code, "Only at night.")
    asked = [number for kind, number in hospital.asked if kind == "train"]
    assert asked == [1, 1, 2, 3, 4, 5]


def test_a_site_without_time_is_waited_for_once(five: Any) -> None:
    hospital = five.hospitals["c"]
    hospital.refuses = ConsentError("Only at night.", code="policy-hours")
    five.fleet.slow = {}
    five.clock.after(250.0, lambda: setattr(hospital, "refuses", None))
    five.run()
    took = [facts["seconds"] for facts in five.events("round closed")]
    assert took[0] == pytest.approx(100, abs=1)
    assert max(took[1:]) < 2
    assert five.events("round closed")[0]["dropped"] == {"c": "policy-hours"}


def test_nobody_waits_for_a_stopped_site_whom_the_quorum_does_not_need(five: Any) -> None:
    hospital = five.hospitals["c"]
    hospital.refuses = ConsentError("Stopped.", code="site-stopped")
    five.fleet.slow = {}

    def resumed(order: Order, good: Content) -> Content:
        if order.round == 3:
            hospital.refuses = None
        return good

    five.hospitals["a"].replies["train"] = resumed
    five.run()
    closed = five.events("round closed")
    assert closed[0]["dropped"] == {"c": "site-stopped"}
    assert closed[0]["seconds"] < 2
    assert parts(five)[:2] == ["ab", "ab"]
    assert parts(five)[-1] == "abc"


def test_a_stopped_site_that_the_quorum_needs_is_waited_for(world: Any) -> None:
    world.join("a", "b")
    world.publish(rounds=2, aggregation__deadline_s=300)
    hospital = world.hospitals["b"]
    hospital.refuses = ConsentError("Stopped.", code="site-stopped")
    world.clock.after(1000.0, lambda: setattr(hospital, "refuses", None))
    world.run()
    assert world.names()[-1] == "study finished"
    assert parts(world) == ["ab", "ab"]


def test_a_study_of_night_workers_lasts_through_the_day(world: Any) -> None:
    world.join("a", "b")
    world.publish(rounds=2, aggregation__deadline_s=300)
    world.rounds().approvals.gather(2)

    def night() -> None:
        for hospital in world.hospitals.values():
            hospital.refuses = None

    def noon() -> None:
        for hospital in world.hospitals.values():
            hospital.refuses = ConsentError("Only at night.", code="policy-hours")

    noon()
    world.clock.after(3000.0, night)

    def morning(order: Order, good: Content) -> Content:
        if order.round == 1:
            noon()
            world.clock.after(3000.0, night)
        return good

    world.hospitals["b"].replies["evaluate"] = morning
    world.run()
    assert world.names()[-1] == "study finished"
    waited = world.events("site declined", round=1, order="train")
    assert [facts["site"] for facts in waited[:2]] == ["a", "b"], "said once each"
    assert len(world.events("round failed")) > 3
    assert (
        "Missing: a (policy-hours), b (policy-hours)" in world.events("round failed")[0]["reason"]
    )
