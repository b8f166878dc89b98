"""Sites that exist only to be counted: a fleet under a clock that nobody has to wait for.

A simulated site approves, answers each order with an update of the right names, shapes and
encoding, and takes as long as its speed says: download, steps, upload. The coordinator's line is
shared: orders leave and replies arrive one after the other at its rate, so that many sites queue
there as they would. What the coordinator does with a reply is real; what is in it is chance.

Updates are drawn once and sent by many sites: making a thousand of them would cost more than the
coordinator's work that is measured. Nothing here is a result about learning.

Out of scope: networks that lose packets, and sites that lie (``tests``).
"""

from __future__ import annotations

import hashlib
import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from common.messages.compression import encode
from common.messages.reply_limits import ReplyLimit
from common.messages.wire_format import Content, Order, OrderKind, Report, pack
from common.records.weights import Arrays, norm
from common.study.protocol import APPROVAL, StudyProtocol
from common.trust.identity import Identity, Statement
from server.rounds.fleet import Delivery

_DRAWN_UPDATES: Final = 4
_SHORTEST_SLEEP_S: Final = 1e-3
_LONGEST_SLEEP_S: Final = 5.0
"""Deadlines are found this late at most."""


@dataclass(frozen=True)
class Speeds:
    """How fast sites and lines are, and how many are slow or silent; shares are of the sites."""

    seconds_per_step: float
    evaluation_seconds: float
    mbit: float
    """Of a site's line, each way, in 1e6 bits a second."""
    server_mbit: float
    """Of the coordinator's line, each way, shared by all sites."""
    slow_share: float = 0.0
    slow_factor: float = 4.0
    """A slow site computes and transmits so many times slower than the others."""
    drop_share: float = 0.0
    """Chance of a site, in each round, to take its order and never answer it: a machine that hangs.
    It gets no other order before that one has expired."""


class Clock:
    """Seconds that pass only when somebody sleeps, at once, and towards the next event."""

    def __init__(self) -> None:
        self._now = 0.0
        self.next_event: Callable[[], float] = lambda: math.inf

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float, /) -> None:
        """Pass ``seconds``, or some more: before the next event nothing would be seen."""
        earliest = self._now + max(seconds, _SHORTEST_SLEEP_S)
        due = self.next_event()
        if math.isfinite(due):
            earliest = max(earliest, min(due, self._now + _LONGEST_SLEEP_S))
        self._now = earliest


class SimulatedFleet:
    """A ``Fleet`` of simulated sites; ``names`` are theirs, ``shapes`` those of their updates."""

    def __init__(
        self,
        names: Sequence[str],
        identities: Mapping[str, Identity],
        protocol: StudyProtocol,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        speeds: Speeds,
        clock: Clock,
    ) -> None:
        self._names = set(names)
        self._identities = identities
        self._protocol = protocol
        self._speeds = speeds
        self._clock = clock
        self._updates = _drawn(protocol, shapes)
        slow = round(speeds.slow_share * len(names))
        order = sorted(names, key=lambda name: self._chance("slow", name))
        self._factors = dict.fromkeys(order[:slow], speeds.slow_factor)
        self._heads: dict[str, str] = {}
        self._replies: dict[str, tuple[OrderKind, Content]] = {}
        self._events: list[tuple[float, int, str, str]] = []
        self._arrived: set[str] = set()
        self._forgotten: set[str] = set()
        self._line_free_s = {"down": 0.0, "up": 0.0}
        self.bytes_down: Counter[str] = Counter()
        """Of the orders, by kind."""
        self.bytes_up: Counter[str] = Counter()
        """Of the replies that arrived, by kind."""
        self.orders = 0
        """Given until now."""
        self.own_s = 0.0
        """What the simulated sites cost, which no coordinator pays."""
        clock.next_event = self._next_event

    def online(self) -> set[str]:
        return set(self._names)

    def send(
        self, site: str, kind: OrderKind, content: Content, *, ttl_s: float, limit: ReplyLimit
    ) -> str:
        del limit  # simulated sites keep to it
        began = time.perf_counter()
        self.orders += 1
        ticket = f"{site}/{self.orders}"
        order = Order.model_validate_json(str(content.config_records["gliofed"]["json"]))
        size = _bytes(content)
        self.bytes_down[kind] += size
        here = self._through("down", size, site, at=self._clock.monotonic())
        # The order's end is an event too: who waits for a silent site sees it pass in time.
        heapq.heappush(self._events, (self._clock.monotonic() + ttl_s, self.orders, "end", ticket))
        if not self._silent(order, site):
            self._replies[ticket] = kind, self._reply(site, order)
            ready = here + self._seconds(kind) * self._factors.get(site, 1.0)
            heapq.heappush(self._events, (ready, self.orders, "ready", ticket))
        self.own_s += time.perf_counter() - began
        return ticket

    def collect(self, ticket: str) -> Delivery | None:
        self._pass()
        if ticket not in self._arrived:
            return None
        self._arrived.discard(ticket)
        return Delivery(self._replies.pop(ticket)[1], "")

    def forget(self, ticket: str) -> None:
        self._forgotten.add(ticket)

    def _pass(self) -> None:
        """Let everything happen that is due by now."""
        now = self._clock.monotonic()
        while self._events and self._events[0][0] <= now:
            at, number, what, ticket = heapq.heappop(self._events)
            if what == "end":
                continue
            kind, content = self._replies[ticket]
            if what == "ready":
                site = ticket.partition("/")[0]
                there = self._through("up", _bytes(content), site, at=at)
                heapq.heappush(self._events, (there, number, "arrived", ticket))
                continue
            self.bytes_up[kind] += _bytes(content)
            if ticket in self._forgotten:
                del self._replies[ticket]
            else:
                self._arrived.add(ticket)

    def _next_event(self) -> float:
        self._pass()
        return self._events[0][0] if self._events else math.inf

    def _through(self, way: str, size: int, site: str, *, at: float) -> float:
        """Return when ``size`` bytes are over that left at ``at``; they occupy the shared line."""
        bits = 8e-6 * size
        begin = max(at, self._line_free_s[way])
        self._line_free_s[way] = begin + bits / self._speeds.server_mbit
        own = self._speeds.mbit / self._factors.get(site, 1.0)
        return begin + bits / min(own, self._speeds.server_mbit)

    def _seconds(self, kind: OrderKind) -> float:
        if kind == "train":
            return self._protocol.training.steps_per_round * self._speeds.seconds_per_step
        return self._speeds.evaluation_seconds if kind == "evaluate" else 0.0

    def _silent(self, order: Order, site: str) -> bool:
        if order.kind not in {"train", "evaluate"}:
            return False
        return self._chance(f"drop/{order.round}", site) < self._speeds.drop_share

    def _chance(self, what: str, site: str) -> float:
        """Return a number from 0 to 1 that the protocol's seed decides."""
        said = f"{self._protocol.seed}/{what}/{site}".encode()
        return int.from_bytes(hashlib.sha256(said).digest()[:8], "big") / 2**64

    def _reply(self, site: str, order: Order) -> Content:
        body, approval = None, ""
        if order.kind == "offer":
            approval = self._approval(site, order).dumps()
        elif order.kind == "train":
            place = int(self._chance(str(order.round), site) * len(self._updates))
            body = self._updates[place]
        report = Report(
            kind=order.kind,
            study=order.study,
            round=order.round,
            status="done",
            approval=approval,
            site_head=hashlib.sha256(f"{site}/{self.orders}".encode()).hexdigest(),
            coordinator_head=self._heads.get(site, ""),
        )
        self._heads[site] = order.coordinator_head
        return pack(report, body)

    def _approval(self, site: str, order: Order) -> Statement:
        value = {
            "study": order.study,
            "protocol": self._protocol.digest,
            "decision": "approve",
            "site": site,
        }
        return self._identities[site].sign(APPROVAL, value)


def _drawn(protocol: StudyProtocol, shapes: Mapping[str, tuple[int, ...]]) -> list[bytes]:
    """Return a few random updates of norm 1, or of half the largest that is taken, encoded."""
    rng = np.random.default_rng(protocol.seed)
    length = min(1.0, protocol.aggregation.max_update_norm / 2)
    bodies = []
    for _ in range(_DRAWN_UPDATES):
        update: Arrays = {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}
        factor = np.float32(length / norm(update))
        scaled = {name: value * factor for name, value in update.items()}
        bodies.append(encode(scaled, protocol.messages, rng=rng)[0])
    return bodies


def _bytes(content: Content) -> int:
    """Return about how many bytes travel: the JSON and the arrays, without what Flower adds."""
    text = len(str(content.config_records["gliofed"]["json"]).encode())
    record = content.array_records.get("arrays")
    return text + sum(len(array.data) for array in (record or {}).values())
