"""Whatever comes as an order, the worker lives, says so in the journal, and answers if it can.

Raw Flower objects: a real order whose bytes, names, trees and texts are changed by seed. Half of
those whose text is changed are signed by the coordinator, who may be hostile as well.
"""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import context_to_proto, message_to_proto
from flwr.proto.fab_pb2 import Fab
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectResponse,
)
from flwr.proto.run_pb2 import Run
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PullTaskInputResponse

from client import app as flower_app
from client import worker
from client.site.folder import Site
from client.worker import Worker
from common.messages.signatures import new_nonce, signed
from common.messages.wire_format import MESSAGE_TYPES, Content
from common.study.protocol import StudyProtocol
from server.consortium.provisioning import Consortium
from tests.client.test_worker import OURS, Ended, made_message
from tests.consortia import approve, order
from tests.flower_objects import Deflated, deflated, made, name_of

KINDS: Final = ("offer", "initial", "describe", "train", "evaluate")
VALUES: Final[tuple[Any, ...]] = (
    *(None, True, -1, 0, 1, 10**30, 1e308, "", "x" * 70_000, "\x1b[2K\n", "../../x", "NaN"),
    *([], [[]] * 50, {}, {"a": {"b": {}}}, [None], "é\udc80", "2099-01-01", ["x"] * 3000),
)
MEMORY_MIB: Final = 300
"""By which the process may grow: an order of 64 KiB has no use for more."""

Change = Callable[[random.Random, Deflated], Deflated]


def _flipped(rng: random.Random, given: Deflated) -> Deflated:
    """Bits of an object change; its name stays, or follows."""
    name = rng.choice(sorted(given.objects))
    data = bytearray(given.objects[name])
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return Deflated(given.root, given.tree, {**given.objects, name: bytes(data)})


def _cut(rng: random.Random, given: Deflated) -> Deflated:
    name = rng.choice(sorted(given.objects))
    data = given.objects[name]
    return given._replace(objects={**given.objects, name: data[: rng.randrange(len(data) + 1)]})


def _lost(rng: random.Random, given: Deflated) -> Deflated:
    """An object is named and is not there."""
    name = rng.choice(sorted(given.objects))
    return given._replace(objects={n: d for n, d in given.objects.items() if n != name})


def _treeless(rng: random.Random, given: Deflated) -> Deflated:
    """The tree lacks what the root names, or names what is not there."""
    children = [] if rng.random() < 0.5 else [ObjectTree(object_id="0" * 64)]
    return given._replace(tree=ObjectTree(object_id=given.root, children=children))


def _deep(rng: random.Random, given: Deflated) -> Deflated:
    tree = given.tree
    for _ in range(rng.choice((3, 50, 90))):
        tree = ObjectTree(object_id=given.root, children=[tree])
    return given._replace(tree=tree)


def _other_kind(rng: random.Random, given: Deflated) -> Deflated:
    kinds = (
        "Message",
        "RecordDict",
        "ConfigRecord",
        "ArrayRecord",
        "Array",
        "ArrayChunk",
        "Nobody",
    )
    kind = rng.choice(kinds)
    body = rng.randbytes(rng.choice((0, 1, 40, 2000)))
    length = rng.choice((None, "-1", "9" * 30, "x"))
    children = rng.choice(([], [given.root], ["0" * 64], sorted(given.objects)))
    data = made(kind, children, body, length=length)
    root = rng.choice((given.root, name_of(data)))
    tree = ObjectTree(object_id=root, children=given.tree.children)
    return Deflated(root, tree, {**given.objects, root: data})


def _noise(rng: random.Random, given: Deflated) -> Deflated:
    data = rng.randbytes(rng.choice((0, 1, 100, 65_536)))
    return given._replace(objects={**given.objects, given.root: data})


def _same(rng: random.Random, given: Deflated) -> Deflated:
    del rng
    return given


BYTES: Final[tuple[Change, ...]] = (
    *(_flipped, _cut, _lost, _treeless, _deep, _other_kind, _noise, _same),
)


class Hostile(NamedTuple):
    """What makes orders: the coordinator's key, a real order of each kind, the site's name."""

    consortium: Consortium
    real: dict[str, Content]
    site: str

    def content(self, rng: random.Random, kind: str) -> Content:
        """Return an order of ``kind`` with another text, other records, or a real one."""
        text = str(self.real[kind].config_records["gliofed"]["json"])
        choice = rng.random()
        if choice < 0.5:
            value = json.loads(text)
            for _ in range(rng.randint(1, 3)):
                value[rng.choice((*value, "kit", "charters", "account", "x"))] = rng.choice(VALUES)
            text = json.dumps(value)
        elif choice < 0.7:
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice('{}[]",:\\0') + text[place + rng.randint(0, 3) :]
        content = RecordDict({"gliofed": ConfigRecord({"json": text})})
        if rng.random() < 0.2:
            content["more"] = rng.choice((ArrayRecord(), MetricRecord({"x": 1.0})))
        if rng.random() < 0.1:
            del content["gliofed"]
        if "gliofed" in content and rng.random() < 0.7:
            key = self.consortium.identity
            content = signed(content, key, kind="order", site=self.site, nonce=new_nonce())
        return content


class RawSuperNode:
    """Hands out raw orders; the worker reads them with Flower's own code."""

    def __init__(self, orders: Iterator[tuple[str, Deflated, Any]]) -> None:
        self.orders = orders
        self.now: tuple[str, Deflated, Any] | None = None
        self.given = self.answered = self.ended = 0

    def acquire(self, _: object) -> Any:
        self.now = next(self.orders, None)
        if self.now is None:
            raise Ended
        self.given += 1
        return type("Answer", (), {"token": "t", "HasField": lambda *_: True})()

    def client(self) -> Any:
        context = Context(run_id=22, node_id=11, node_config={}, state=RecordDict(), run_config={})
        fab = Fab(hash_str="x", content=OURS)
        given = PullTaskInputResponse(
            context=context_to_proto(context), run=Run(run_id=22), fab=fab, task_id=5
        )
        calls = {
            "close": lambda _: None,
            "AcquireTask": lambda _, request: self.acquire(request),
            "SendTaskHeartbeat": lambda *_: None,
            "PullTaskInput": lambda *_: given,
            "PullMessages": lambda *_: self.messages(),
            "PullObject": lambda _, request: self.object(request.object_id),
            "ConfirmMessageReceived": lambda *_: ConfirmMessageReceivedResponse(),
        }
        return type("Client", (), calls)()

    def messages(self) -> PullAppMessagesResponse:
        assert self.now is not None
        _, raw, proto = self.now
        return PullAppMessagesResponse(messages_list=[proto], message_object_trees=[raw.tree])

    def object(self, name: str) -> PullObjectResponse:
        assert self.now is not None
        data = self.now[1].objects.get(name)
        if data is None:
            return PullObjectResponse(object_found=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=data)


def orders(hostile: Hostile, count: int, *, seed: int) -> Iterator[tuple[str, Deflated, Any]]:
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")  # noqa: S311
        kind = rng.choice(KINDS)
        message = made_message(hostile.content(rng, kind), MESSAGE_TYPES[kind])  # type: ignore[index]
        message.metadata.__dict__["_message_id"] = message.object_id
        raw = deflated(message)
        proto = message_to_proto(remove_content_from_message(message))
        yield kind, rng.choice(BYTES)(rng, raw), proto


@pytest.mark.parametrize(
    ("count", "seed"),
    # 100,000 in all, a quarter of an hour.
    [(300, 20), *(pytest.param(25_000, seed, marks=pytest.mark.slow) for seed in range(4))],
)
def test_no_order_ends_the_worker(
    site: Site,
    consortium: Consortium,
    protocol: StudyProtocol,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    seed: int,
) -> None:
    approve(site, consortium, protocol)
    real: dict[str, Content] = {
        kind: order(consortium.identity, protocol, kind, number=1)  # type: ignore[arg-type]
        for kind in KINDS
    }
    node = RawSuperNode(orders(Hostile(consortium, real, site.name), count, seed=seed))
    monkeypatch.setattr(Worker, "_client", lambda *_, **__: node.client())
    monkeypatch.setattr("client.worker.time.sleep", lambda _: None)
    monkeypatch.setattr(flower_app, "_sites", {})

    def push(*_: Any) -> None:
        node.answered += 1

    def finish(*_: Any) -> None:
        node.ended += 1

    monkeypatch.setattr(worker, "push_message", push)
    monkeypatch.setattr(worker, "push_task_output", finish)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Ended):
        Worker(site).run()
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert node.given == count
    assert node.ended > count / 2, "each but those that Flower itself does not give"
    refused = site.journal.events("order refused", "order failed", "declined", "sent")
    assert len(refused) >= node.ended / 2
    assert node.answered > count / 10
    assert grown_mib < MEMORY_MIB
    assert not site.journal.events("training")
