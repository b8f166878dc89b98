"""Raw replies of an admitted site through gateway and SuperLink, as they are, to the fleet.

The site is in this process and speaks Flower's own calls with its own node key; the fleet is the
one of the executor, in a run of its own. Whatever the store takes of what the site pushes, the
fleet meets.
"""

from __future__ import annotations

import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.cli.build import build_fab_from_files
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    inflate_object_from_contents,
    iterate_object_tree,
    pull_objects,
)
from flwr.supernode.fleet_http_connection import http_request_response

from common.messages.reply_limits import reply_limit
from common.messages.wire_format import Order, Report, bundle_sources, pack
from common.study.protocol import MessageOptions
from server.reporting.health import check
from server.transport.flower_fleet import GridFleet, run_app
from tests.deployment.stack import Stack, alive, running_stack, until
from tests.deployment.test_run import start
from tests.flower_objects import Deflated, deflated
from tests.server.rounds.test_hostile_fuzz import KINDS, spoilt
from tests.server.transport.test_reply_pull import HOSTILE

pytestmark = pytest.mark.slow  # real processes, and some minutes of orders

ORDERS = 500
LIMIT = reply_limit({"w": (1000,)}, MessageOptions())
ORDER = Order(kind="train", study="demo", round=1, protocol="{}")
REPORT = Report(kind="train", study="demo", round=1, status="done")

PUSHED = (httpx.HTTPError, ObjectPushError, ValueError, RuntimeError)
"""What a site hears that pushes what the SuperLink does not take."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("hostile")) as stack:
        stack.enrol("liar", seed=0)
        stack.start("server")
        until(
            lambda: (stack.coordinator / "flower" / "hub" / "reached").exists(),
            timeout_s=120,
            what="the executor",
        )
        yield stack


def update(number: int) -> np.ndarray:
    return np.full(1000, number, np.float32)


class Liar:
    """An admitted site that answers each order by something else."""

    def __init__(self, stack: Stack) -> None:
        self.site = stack.opened("liar")
        self.rng = random.Random(20)  # noqa: S311  drawn again at each run
        self.update = 0
        self.answered: Counter[str] = Counter()
        self.honest = False
        self.ended = threading.Event()

    def run(self) -> None:
        key: Any = load_ssh_private_key(
            (self.site.folder / "keys" / "node.key").read_bytes(), password=None
        )
        authority = (self.site.folder / "ca.crt").read_bytes()
        address = self.site.kit.address
        with http_request_response(
            address, False, authority, (key, key.public_key()), max_retries=0
        ) as calls:
            _, receive, send, _, _, pull, push, confirm = calls
            while not self.ended.is_set():
                got = receive()
                if got is None:
                    time.sleep(0.02)
                    continue
                message, tree = got
                run = message.metadata.run_id
                names = [one.object_id for one in iterate_object_tree(tree)]
                contents = pull_objects(names, lambda name: pull(run, name))  # noqa: B023
                confirm(run, tree.object_id)
                order: Any = inflate_object_from_contents(tree.object_id, contents)
                order.metadata.__dict__["_message_id"] = message.metadata.message_id
                # Each answer has objects of its own: Flower keeps what was announced under a name.
                self.update += 1
                answer = Message(pack(REPORT, {"w": update(self.update)}), reply_to=order)
                stored = self._stored(deflated(answer))
                answer.metadata.__dict__["_message_id"] = stored.root
                try:
                    wanted, session = send(answer, stored.tree, 0.1)
                    for name, content in stored.objects.items():
                        if name in wanted and content is not None:
                            push(run, session, name, content)
                    self.answered["stored"] += 1
                except PUSHED as error:
                    self.answered[type(error).__name__] += 1

    def _stored(self, honest: Deflated) -> Deflated:
        if self.honest:
            return honest
        case = self.rng.choice([*HOSTILE, "spoilt", "spoilt"])
        if case != "spoilt":
            return HOSTILE[case][0](honest)
        wrong: list[tuple[str, int, Any]] = [
            (what, self.rng.randrange(6), value)
            for what, value in self.rng.sample(
                [
                    ("kind", self.rng.choice(KINDS)),
                    ("body", self.rng.randbytes(40)),
                    ("length", "7"),
                    ("drop", None),
                    ("add", "ab" * 32),
                    ("flip", self.rng.randrange(300)),
                    ("tree-gone", None),
                    ("big", None),
                    ("never", None),
                ],
                2,
            )
        ]
        return spoilt(honest, wrong)[0]


def test_five_hundred_raw_replies_through_the_processes(stack: Stack, tmp_path: Path) -> None:
    liar = Liar(stack)
    thread = threading.Thread(target=liar.run, daemon=True)
    fab, _ = build_fab_from_files(bundle_sources())
    run_id = start(stack, fab)
    met: Counter[str] = Counter()
    last: list[Any] = []

    def orders(grid: Any, _: object) -> None:
        fleet = GridFleet(grid, online_every_s=0.2)
        thread.start()
        until(lambda: "liar" in fleet.online(), timeout_s=60, what="the site online")
        for number in range(ORDERS + 1):
            liar.honest = number == ORDERS
            ticket = fleet.send("liar", "train", pack(ORDER, None), ttl_s=120, limit=LIMIT)
            until_s, delivery = time.monotonic() + 30.0, None
            while delivery is None and time.monotonic() < until_s:
                delivery = fleet.collect(ticket)
                time.sleep(0.01)
                if liar.answered.total() > number and not liar.honest:  # all that will be there is
                    until_s = min(until_s, time.monotonic() + 0.5)
            fleet.forget(ticket)
            if delivery is None:
                met["nothing"] += 1
            elif delivery.refused is not None:
                met[delivery.refused.code] += 1
            else:
                met[delivery.failure or "content"] += 1
            last[:] = [delivery]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run_app(stack.consortium, run_id, orders, patience_s=60)
    liar.ended.set()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sum(met.values()) == ORDERS + 1
    assert met["reply-form"] > ORDERS / 10, met
    assert met["reply-size"] > 0, met
    assert last[0].content == pack(REPORT, {"w": update(liar.update)}), "honest again"
    assert grown < 200 * 1024, f"{grown} KiB more"
    assert all(alive(stack.child("server", name)) for name in ("superlink", "gateway", "executor"))
    assert check(stack.consortium).level == "ok"
    told = (stack.folder / "server.log").read_text()
    assert " ended " not in told, told
