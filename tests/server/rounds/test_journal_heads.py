"""The heads of journals that go with orders and replies, as the coordinator sees them."""

from __future__ import annotations

from typing import Any

from common.errors import ConsentError
from server.reporting.study_report import study_report


def report(world: Any) -> dict[str, Any]:
    return study_report(
        world.consortium.study("demo"), world.consortium.journal, admitted=list(world.hospitals)
    )


def test_an_order_carries_both_heads(three: Any) -> None:
    three.hospitals["a"].head = "a" * 64
    three.run()
    heads = {entry.hash for entry in three.consortium.journal.entries()}
    for name, hospital in three.hospitals.items():
        trained = [order for order in hospital.orders if order.kind == "train"]
        assert all(order.coordinator_head in heads for order in hospital.orders)
        assert [order.site_head for order in trained] == (
            ["", "a" * 64] if name == "a" else [""] * 2
        )
    assert report(three)["journal_forks"] == {}


def test_heads_are_known_after_a_restart(three: Any) -> None:
    three.hospitals["b"].head = "b" * 64
    three.run()
    three.hospitals["b"].orders.clear()
    three.publish("second")
    three.run("second")
    assert {order.site_head for order in three.hospitals["b"].orders} == {"b" * 64}


def test_a_coordinators_own_fork_is_recorded_and_said(three: Any) -> None:
    three.hospitals["c"].knows = "f" * 64
    three.run()
    forks = three.events("journal fork")
    assert {(fact["site"], fact["head"]) for fact in forks} == {("c", "f" * 64)}
    assert "coordinator's journal" in report(three)["journal_forks"]["c"]


def test_a_sites_fork_is_recorded_and_said_until_it_is_mended(three: Any) -> None:
    three.hospitals["c"].refuses = ConsentError("It was cut.", code="journal-fork")
    three.run()
    assert "site's journal" in report(three)["journal_forks"]["c"]
    three.hospitals["c"].refuses = None
    three.publish("second")
    three.run("second")
    again = study_report(
        three.consortium.study("second"), three.consortium.journal, admitted=["a", "b", "c"]
    )
    assert again["journal_forks"] == {}
