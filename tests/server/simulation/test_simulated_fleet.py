from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.messages.reply_limits import reply_limit
from common.messages.wire_format import Content, Order, OrderKind, pack, unpack_report
from common.records.weights import norm
from common.study.protocol import APPROVAL, StudyProtocol
from common.trust.identity import Identity, Statement
from server.simulation.simulated_fleet import Clock, SimulatedFleet, Speeds
from tests.consortia import tiny_protocol

MEGABYTE = {"w": np.zeros(250_000, np.float32)}
SHAPES = {"w": (250_000,)}
SPEEDS = Speeds(seconds_per_step=2.0, evaluation_seconds=7.0, mbit=8.0, server_mbit=80.0)
"""A site takes a megabyte a second, the coordinator ten; a training takes 2 steps of 2 seconds."""


class Simulated:
    """A fleet, its clock and keys."""

    def __init__(self, *names: str, protocol: StudyProtocol | None = None, **speeds: float) -> None:
        self.clock = Clock()
        self.protocol = protocol or tiny_protocol()
        self.keys = {name: Identity(Ed25519PrivateKey.generate()) for name in names}
        self.fleet = SimulatedFleet(
            names,
            self.keys,
            self.protocol,
            SHAPES,
            speeds=Speeds(**{**vars(SPEEDS), **speeds}),
            clock=self.clock,
        )

    def order(self, kind: OrderKind, number: int = 1) -> Content:
        body = Order(kind=kind, study=self.protocol.study, round=number, protocol="x")
        return pack(body, MEGABYTE if kind in {"train", "evaluate"} else None)

    def send(self, site: str, kind: OrderKind = "train", number: int = 1) -> str:
        limit = reply_limit(SHAPES, self.protocol.messages)
        return self.fleet.send(site, kind, self.order(kind, number), ttl_s=1e5, limit=limit)

    def arrival(self, ticket: str, *, until: float = 1000.0) -> tuple[float, Content]:
        while self.clock.monotonic() < until:
            delivery = self.fleet.collect(ticket)
            if delivery is not None:
                assert delivery.content is not None
                return self.clock.monotonic(), delivery.content
            self.clock.sleep(0.01)
        raise TimeoutError

    def silent(self, sites: tuple[str, ...], number: int) -> set[str]:
        tickets = {site: self.send(site, "train", number) for site in sites}
        until = self.clock.monotonic() + 500
        while self.clock.monotonic() < until:
            self.clock.sleep(5.0)
        return {site for site, ticket in tickets.items() if self.fleet.collect(ticket) is None}


def test_a_site_downloads_trains_and_uploads() -> None:
    one = Simulated("a")
    at, content = one.arrival(one.send("a"))
    assert at == pytest.approx(1 + 4 + 1, abs=0.05)
    report, update = unpack_report(content, template=SHAPES, max_norm=1.1)
    assert (report.status, report.kind, report.round) == ("done", "train", 1)
    assert norm(update) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(("kind", "seconds"), [("evaluate", 1 + 7), ("offer", 0)])
def test_other_orders_bring_no_arrays(kind: OrderKind, seconds: float) -> None:
    one = Simulated("a")
    at, content = one.arrival(one.send("a", kind))
    assert at == pytest.approx(seconds, abs=0.05)
    assert "arrays" not in content


def test_an_approval_is_signed_by_the_site() -> None:
    one = Simulated("a")
    _, content = one.arrival(one.send("a", "offer"))
    report, _ = unpack_report(content, template=None, max_norm=1.0)
    statement = Statement.loads(report.approval)
    body = statement.opened(kind=APPROVAL, signer=one.keys["a"].public)
    assert (body["site"], body["protocol"]) == ("a", one.protocol.digest)


def test_sites_share_the_coordinators_line() -> None:
    names = tuple(f"s{place:02d}" for place in range(30))
    many = Simulated(*names, mbit=80.0)
    tickets = [many.send(name) for name in names]
    last = max(many.arrival(ticket)[0] for ticket in tickets)
    # 30 megabytes out at ten a second; the last trains; the others' updates are back by then.
    assert last == pytest.approx(3 + 4 + 0.1, abs=0.2)


def test_slow_sites_are_as_many_and_as_slow_as_said() -> None:
    names = tuple("abcdefghij")
    some = Simulated(*names, slow_share=0.3, slow_factor=3.0, server_mbit=8e5)
    times = sorted(some.arrival(some.send(name))[0] - start for name, start in _starts(some, names))
    assert times[:7] == pytest.approx([6] * 7, abs=0.1)
    assert times[7:] == pytest.approx([18] * 3, abs=0.1)


def _starts(some: Simulated, names: tuple[str, ...]) -> Any:
    return ((name, some.clock.monotonic()) for name in names)


def test_some_are_silent_in_a_round_and_others_in_the_next() -> None:
    names = tuple(f"s{place:03d}" for place in range(200))
    half = Simulated(*names, drop_share=0.3, server_mbit=8e5)
    first, second = half.silent(names, 1), half.silent(names, 2)
    assert 35 <= len(first) <= 85
    assert first != second
    assert Simulated(*names, drop_share=0.3, server_mbit=8e5).silent(names, 1) == first
    assert Simulated(*names, server_mbit=8e5).silent(names, 1) == set()


def test_bytes_are_counted_by_kind() -> None:
    one = Simulated("a", "b")
    sizes = [sum(len(a.data) for a in one.order("train").array_records["arrays"].values())]
    for name in "ab":
        one.arrival(one.send(name))
    assert 2 * sizes[0] < one.fleet.bytes_down["train"] < 2 * sizes[0] + 2000
    assert 2_000_000 < one.fleet.bytes_up["train"] < 2_010_000
    assert one.fleet.orders == 2


def test_updates_travel_as_the_protocol_says() -> None:
    one = Simulated("a", protocol=tiny_protocol(messages={"encoding": "int8"}))
    _, content = one.arrival(one.send("a"))
    options = one.protocol.messages
    assert 250_000 < one.fleet.bytes_up["train"] < 260_000
    _, update = unpack_report(content, template=SHAPES, max_norm=2.0, options=options)
    assert norm(update) == pytest.approx(1.0, rel=0.02)


def test_updates_are_not_longer_than_is_taken() -> None:
    one = Simulated("a", protocol=tiny_protocol(aggregation={"max_update_norm": 0.5}))
    _, content = one.arrival(one.send("a"))
    unpack_report(content, template=SHAPES, max_norm=0.5)


def test_the_clock_hurries_to_the_next_event_but_not_far() -> None:
    clock = Clock()
    clock.sleep(3.0)
    clock.sleep(0.0)
    assert 3.0 < clock.monotonic() < 3.01
    clock = Clock()
    clock.next_event = lambda: 2.0
    clock.sleep(0.25)
    assert clock.monotonic() == 2.0
    clock.next_event = lambda: 900.0
    clock.sleep(0.25)
    assert clock.monotonic() == 7.0
    clock.sleep(30.0)
    assert clock.monotonic() == 37.0


def test_what_nobody_collects_is_dropped() -> None:
    one = Simulated("a")
    ticket = one.send("a")
    one.fleet.forget(ticket)
    with pytest.raises(TimeoutError):
        one.arrival(ticket, until=60.0)
    assert one.fleet._replies == {}
    assert one.fleet.online() == {"a"}
