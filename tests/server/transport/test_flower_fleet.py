from __future__ import annotations

import hashlib
import threading
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Metadata,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from common.errors import FederationError
from common.messages.reply_limits import reply_limit
from common.messages.wire_format import MESSAGE_TYPES, Order, Report, pack
from common.study.protocol import MessageOptions
from server.rounds.fleet import Delivery, Presence
from server.transport import flower_fleet
from server.transport.flower_fleet import GridFleet, SuperLinkReplies
from tests.flower_objects import Deflated, deflated

LIMIT = reply_limit({"w": (1000,)}, MessageOptions())
ORDER = Order(kind="train", study="demo", round=1, protocol="{}")
REPORT = Report(kind="train", study="demo", round=1, status="done")


@dataclass
class FakeGrid:
    """A Grid with named nodes, and what the SuperLink has of their replies, by message id."""

    nodes: dict[str, int] = field(default_factory=dict)
    takes: bool = True
    asked: int = 0
    pushed: list[Message] = field(default_factory=list)
    replies: dict[str, Message] = field(default_factory=dict)
    started: dict[str, str] = field(default_factory=dict)
    stored: dict[str, Deflated] = field(default_factory=dict)
    arrivals: dict[str, list[tuple[str, Any]]] = field(default_factory=dict)
    freed: list[str] = field(default_factory=list)

    def get_nodes(self) -> list[Any]:
        self.asked += 1
        return [
            SimpleNamespace(
                name=name, node_id=number, last_activated_at=self.started.get(name, "once")
            )
            for name, number in self.nodes.items()
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self.pushed += messages
        return [f"ticket-{len(self.pushed)}" if self.takes else ""]

    def arrived(self, ticket: str) -> Sequence[tuple[str, Any]]:
        if ticket in self.arrivals:
            return self.arrivals.pop(ticket)
        if ticket not in self.replies:
            return []
        one = deflated(self.replies.pop(ticket))
        self.stored[one.root] = one
        return [(one.root, one.tree)]

    def content(self, name: str) -> bytes | None:
        found = [one.objects[name] for one in self.stored.values() if name in one.objects]
        if not found:
            raise LookupError(name)
        return next((content for content in found if content is not None), None)

    def free(self, root: str) -> None:
        self.freed.append(root)


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages only inside a task."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def fleet(grid: FakeGrid, *, every_s: float = 0.0) -> GridFleet:
    made: Any = grid
    return GridFleet(made, replies=grid, online_every_s=every_s)


def collected(sites: GridFleet, ticket: str) -> Delivery | None:
    """Collect until something came: pulls go on in the background."""
    for _ in range(200):
        found = sites.collect(ticket)
        if found is not None:
            return found
        time.sleep(0.005)
    return None


def test_sites_are_known_by_their_registered_names() -> None:
    grid = FakeGrid({"a": 11, "b": 22, "": 33})
    sites = fleet(grid)
    assert sites.online() == {"a", "b"}
    grid.nodes = {"b": 22}
    assert sites.online() == {"b"}


def test_the_superlink_is_not_asked_at_every_look() -> None:
    grid = FakeGrid({"a": 11})
    sites = fleet(grid, every_s=60.0)
    for _ in range(5):
        assert sites.online() == {"a"}
    assert grid.asked == 1


@pytest.mark.parametrize("kind", list(MESSAGE_TYPES))
def test_an_order_goes_to_its_site_with_its_type_and_time_to_live(kind: Any) -> None:
    grid = FakeGrid({"a": 11, "b": 22})
    sites = fleet(grid)
    sites.online()
    content = pack(ORDER, None)
    assert sites.send("b", kind, content, ttl_s=30.0, limit=LIMIT) == "ticket-1"
    (message,) = grid.pushed
    assert message.metadata.dst_node_id == 22
    assert message.metadata.message_type == MESSAGE_TYPES[kind]
    assert message.metadata.ttl == 30.0
    assert message.content == content


def test_an_order_that_flower_does_not_take_is_a_failure() -> None:
    grid = FakeGrid({"a": 11}, takes=False)
    sites = fleet(grid)
    sites.online()
    with pytest.raises(FederationError, match="order for a") as caught:
        sites.send("a", "train", pack(ORDER, None), ttl_s=1.0, limit=LIMIT)
    assert caught.value.code == "order-push"


def asked() -> Message:
    return Message(RecordDict(), dst_node_id=11, message_type=MessageType.TRAIN)


def test_a_reply_is_collected_once() -> None:
    grid = FakeGrid({"a": 11})
    sites = fleet(grid)
    assert sites.collect("ticket-1") is None
    grid.replies["ticket-1"] = Message(pack(REPORT, None), reply_to=asked())
    delivery = collected(sites, "ticket-1")
    assert delivery is not None
    assert delivery.failure == ""
    assert delivery.content == pack(REPORT, None)
    assert sites.collect("ticket-1") is None


@pytest.mark.parametrize("code", [0, 1, 3])
def test_an_error_of_flower_is_a_lost_order(code: int) -> None:
    grid = FakeGrid({"a": 11})
    grid.replies["ticket-1"] = Message(Error(code, "patient 7"), reply_to=asked())
    delivery = collected(fleet(grid), "ticket-1")
    assert delivery is not None
    assert delivery.content is None
    assert delivery.failure == f"flower-{code}"


def sent(grid: FakeGrid, sites: GridFleet) -> str:
    sites.online()
    return sites.send("a", "train", pack(ORDER, None), ttl_s=60, limit=LIMIT)


def test_what_was_sent_to_a_node_before_it_was_started_anew_is_lost() -> None:
    grid = FakeGrid({"a": 11})
    sites = fleet(grid)
    ticket = sent(grid, sites)
    assert sites.collect(ticket) is None
    grid.started["a"] = "again"
    sites.online()
    delivery = collected(sites, ticket)
    assert delivery == Delivery(None, "restarted")
    assert collected(sites, sent(grid, sites)) is None, "the new one is not lost"


def test_a_reply_that_broke_off_with_its_node_is_not_waited_for() -> None:
    done = threading.Event()

    class Stalling(FakeGrid):
        def arrived(self, ticket: str) -> Sequence[tuple[str, Any]]:
            done.wait(30)
            return super().arrived(ticket)

    grid: Any = Stalling({"a": 11})
    sites = GridFleet(grid, replies=grid, online_every_s=0.0, broken_off_s=0.1)
    ticket = sent(grid, sites)
    began = time.monotonic()
    while time.monotonic() - began < 0.3:
        assert sites.collect(ticket) is None, "nothing says that the node is gone"
    grid.started["a"] = "again"
    sites.online()
    assert sites.collect(ticket) is None, "it may be just about to come"
    assert collected(sites, ticket) == Delivery(None, "restarted")
    assert time.monotonic() - began < 5
    assert (sites._pulling, sites._sent) == ({}, {})
    done.set()


def test_a_reply_from_before_the_node_was_started_anew_counts() -> None:
    grid = FakeGrid({"a": 11})
    sites = fleet(grid)
    ticket = sent(grid, sites)
    grid.replies[ticket] = Message(pack(REPORT, None), reply_to=asked())
    grid.started["a"] = "again"
    sites.online()
    delivery = collected(sites, ticket)
    assert delivery is not None
    assert delivery.content == pack(REPORT, None)


def test_waiting_for_many_sites_takes_no_longer_than_for_one() -> None:
    done = threading.Event()

    class Stalling(FakeGrid):
        def arrived(self, ticket: str) -> Sequence[tuple[str, Any]]:
            done.wait(30)
            return super().arrived(ticket)

    sites = fleet(Stalling())
    began = time.monotonic()
    for number in range(40):
        assert sites.collect(f"ticket-{number}") is None
    took = time.monotonic() - began
    done.set()
    assert took < 1.0  # 40 glances would take 2


def test_what_is_forgotten_is_not_kept() -> None:
    grid = FakeGrid({"a": 11})
    sites = fleet(grid)
    ticket = sent(grid, sites)
    sites.collect(ticket)
    sites.forget(ticket)
    assert (sites._pulling, sites._sent) == ({}, {})


@pytest.mark.parametrize(
    ("status", "again"),
    [(401, False), (403, False), (404, False), (500, True), (502, True), (503, True)],
)
def test_a_refused_call_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, status: int, again: bool
) -> None:
    calls: list[int] = []
    request = httpx.Request("POST", "https://localhost")

    def call() -> str:
        calls.append(1)
        if len(calls) == 1:
            response = httpx.Response(status, request=request)
            raise httpx.HTTPStatusError("no", request=request, response=response)
        return "done"

    retries = flower_fleet._retries()
    retries.wait_function = lambda _seconds: None
    if again:
        assert retries.invoke(call) == "done"
    else:
        with pytest.raises(httpx.HTTPStatusError):
            retries.invoke(call)
    assert len(calls) == 1 + again


class FakeControl:
    """The SuperLink's control calls that are used."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, str] = {}
        self.gone: list[bytes] = []
        self.stopped: list[int] = []
        self.bundle = b""
        self.answers = True

    def __enter__(self) -> FakeControl:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def ListNodes(self, _: Any) -> Any:  # noqa: N802  Flower's name
        here = [(key, name, "online") for key, name in self.nodes.items()]
        gone = [(key, "", "unregistered") for key in self.gone]
        nodes = [
            SimpleNamespace(node_id=_node_id(key), name=name, public_key=key, status=status)
            for key, name, status in [*here, *gone]
        ]
        return SimpleNamespace(nodes_info=nodes)

    def RegisterNode(self, request: Any) -> None:  # noqa: N802  Flower's name
        assert request.public_key not in self.gone, "Flower takes a key once"
        self.nodes[request.public_key] = request.name

    def UnregisterNode(self, request: Any) -> None:  # noqa: N802  Flower's name
        key = next(key for key in self.nodes if _node_id(key) == request.node_id)
        del self.nodes[key]
        self.gone.append(key)

    def ListRuns(self, _: Any) -> Any:  # noqa: N802  Flower's name
        runs = {
            1: SimpleNamespace(run_id=1, status=SimpleNamespace(status="finished")),
            2: SimpleNamespace(run_id=2, status=SimpleNamespace(status="running")),
        }
        return SimpleNamespace(run_dict=runs)

    def StopRun(self, request: Any) -> None:  # noqa: N802  Flower's name
        self.stopped.append(request.run_id)

    def StartRun(self, request: Any) -> Any:  # noqa: N802  Flower's name
        self.bundle = request.fab.content
        return SimpleNamespace(HasField=lambda _name: self.answers, run_id=7)


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> FakeControl:
    fake = FakeControl()
    monkeypatch.setattr(flower_fleet, "_control", lambda _consortium: fake)
    return fake


def _node_id(key: bytes) -> int:
    return zlib.crc32(key)


def _key_of(world: Any, name: str) -> bytes:
    key = load_ssh_public_key(world.consortium.sites.get(name).node_key.encode())
    return bytes(public_key_to_bytes(key))


def test_each_admitted_site_is_registered_once(world: Any, control: FakeControl) -> None:
    known: dict[bytes, str] = {}
    flower_fleet.register_sites(world.consortium, known)
    assert control.nodes == {}
    world.join("a", "b")
    control.nodes[_key_of(world, "b")] = "b"
    for _ in range(2):
        flower_fleet.register_sites(world.consortium, known)
    assert control.nodes == known == {_key_of(world, name): name for name in "ab"}


def test_a_revoked_site_is_no_node_any_more(world: Any, control: FakeControl) -> None:
    world.join("a", "b")
    old, known = _key_of(world, "a"), dict[bytes, str]()
    flower_fleet.register_sites(world.consortium, known)
    world.consortium.sites.revoke("a", by="Ada", why="stolen")
    flower_fleet.register_sites(world.consortium, known)
    assert (list(control.nodes.values()), control.gone) == (["b"], [old])
    (world.folder / "a.key").unlink()
    world.join("a")  # admitted again, with other keys
    flower_fleet.register_sites(world.consortium, known)
    assert control.nodes[_key_of(world, "a")] == "a"


def test_a_node_that_nobody_admitted_is_removed_and_journalled(
    world: Any, control: FakeControl
) -> None:
    """Somebody came to Flower's control calls and registered a key under a hospital's name."""
    world.join("a")
    known: dict[bytes, str] = {}
    flower_fleet.register_sites(world.consortium, known)
    control.nodes[b"a stranger's"] = "a\x1b[2K"
    flower_fleet.register_sites(world.consortium, known)
    assert len(control.nodes) == 2, "without a comparison nothing is asked"
    flower_fleet.register_sites(world.consortium, known, compare=True)
    assert list(control.nodes.values()) == ["a"]
    (removed,) = world.consortium.journal.events("node removed")
    assert removed.facts["key"] == hashlib.sha256(b"a stranger's").hexdigest()
    assert "\x1b" not in removed.facts["name"]


def test_the_one_run_carries_no_code(world: Any, control: FakeControl) -> None:
    from common.messages.wire_format import check_bundle

    assert flower_fleet.start_run(world.consortium) == 7
    assert control.stopped == [2]
    check_bundle(control.bundle)


def test_a_run_that_does_not_start_is_a_failure(world: Any, control: FakeControl) -> None:
    control.answers = False
    with pytest.raises(FederationError, match="did not start a run"):
        flower_fleet.start_run(world.consortium)


def test_a_site_whose_upload_stalls_holds_nobody_up() -> None:
    done = threading.Event()

    class Stalling(FakeGrid):
        def arrived(self, ticket: str) -> Sequence[tuple[str, Any]]:
            if ticket == "ticket-1" and ticket in self.replies:
                done.wait(30)
            return super().arrived(ticket)

    grid = Stalling({"a": 11, "b": 22})
    sites = fleet(grid)
    assert sites.online() == {"a", "b"}
    for site in ("a", "b"):
        ticket = sites.send(site, "train", pack(ORDER, None), ttl_s=60, limit=LIMIT)
        order = grid.pushed[-1]
        order.metadata.__dict__["_message_id"] = ticket
        grid.replies[ticket] = Message(pack(REPORT, None), reply_to=order)
    assert sites.collect("ticket-1") is None
    delivery = collected(sites, "ticket-2")
    assert delivery is not None
    assert delivery.content is not None
    assert sites.collect("ticket-1") is None
    done.set()
    late = collected(sites, "ticket-1")
    assert late is not None
    assert late.content is not None


def test_presence_says_since_when_and_nothing_of_who_never_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def node(name: str, status: str, *times: object) -> SimpleNamespace:
        return SimpleNamespace(
            name=name,
            status=status,
            last_activated_at=times[0],
            last_deactivated_at=times[1],
            online_until=times[2],
        )

    nodes = [
        node("north", "online", "2026-01-02T03:04:05", "", 1767322000.0),
        node("south", "offline", "2026-01-02T03:04:05", "2026-01-02T04:00:00", 0.0),
        node("west", "registered", "", "", 0.0),
        node("north", "offline", "2025-01-01T00:00:00", "2025-01-01T01:00:00", 0.0),
    ]
    control = SimpleNamespace(ListNodes=lambda _: SimpleNamespace(nodes_info=nodes))
    monkeypatch.setattr(flower_fleet, "_control", lambda *_, **__: nullcontext(control))
    assert flower_fleet.presence(SimpleNamespace()) == {  # type: ignore[arg-type]
        "north": Presence(online=True, since="2026-01-02T03:04:05"),
        "south": Presence(online=False, since="2026-01-02T04:00:00"),
        "west": Presence(online=False, since=""),
    }


def uploading(grid: FakeGrid, ticket: str) -> Deflated:
    """Let a reply be announced of which the SuperLink has nothing yet."""
    one = deflated(Message(pack(REPORT, {"w": np.ones(1000, np.float32)}), reply_to=asked()))
    grid.stored[one.root] = one._replace(objects=dict.fromkeys(one.objects))  # type: ignore[arg-type]
    grid.arrivals[ticket] = [(one.root, one.tree)]
    return one


def test_no_thread_waits_for_uploads_that_stall() -> None:
    """With one thread, and more stalled uploads than threads, the others come through."""
    grid = FakeGrid({"a": 11, "b": 22})
    made: Any = grid
    sites = GridFleet(made, replies=grid, online_every_s=0.0, pulls=1)
    sites.online()
    stalled = [sites.send("a", "train", pack(ORDER, None), ttl_s=60, limit=LIMIT) for _ in range(9)]
    whole = [uploading(grid, ticket) for ticket in stalled]
    for ticket in stalled:
        assert sites.collect(ticket) is None
    good = sites.send("b", "train", pack(ORDER, None), ttl_s=60, limit=LIMIT)
    grid.replies[good] = Message(pack(REPORT, None), reply_to=asked())
    delivery = collected(sites, good)
    assert delivery is not None
    assert delivery.content == pack(REPORT, None)
    assert all(sites.collect(ticket) is None for ticket in stalled)
    assert all(pull.incoming.held_bytes == 0 for pull in sites._pulling.values() if pull.incoming)
    grid.stored[whole[0].root] = whole[0]  # this upload ends after all
    late = collected(sites, stalled[0])
    assert late is not None
    assert late.content is not None
    sites.forget(stalled[1])
    assert whole[1].root in freed(grid, whole[1].root)


def freed(grid: FakeGrid, root: str) -> list[str]:
    for _ in range(200):
        if root in grid.freed:
            break
        time.sleep(0.005)
    return grid.freed


def test_an_object_that_never_comes_is_a_lost_order() -> None:
    """The SuperLink gave the upload up: the site is ordered again."""
    grid = FakeGrid({"a": 11})
    ticket = "ticket-1"
    one = uploading(grid, ticket)
    sites = fleet(grid)
    assert collected(sites, ticket) is None
    grid.stored[one.root] = one._replace(objects={})
    delivery = collected(sites, ticket)
    assert delivery is not None
    assert (delivery.content, delivery.refused) == (None, None)
    assert delivery.failure == f"flower-{ErrorCode.MESSAGE_UNAVAILABLE}"


class FakeRuntime:
    """The SuperLink's runtime calls that are used, over a dictionary."""

    def __init__(self, one: Deflated) -> None:
        self.one = one
        self.there = True
        self.freed: list[str] = []

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:  # noqa: N802
        if list(request.message_ids) != ["ticket"]:
            return PullAppMessagesResponse()
        message = ProtoMessage(metadata=Metadata(message_id=self.one.root))
        return PullAppMessagesResponse(
            messages_list=[message], message_object_trees=[self.one.tree]
        )

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802
        assert (request.run_id, request.node.node_id) == (7, SUPERLINK_NODE_ID)
        content = self.one.objects.get(request.object_id)
        if content is None:
            return PullObjectResponse(object_found=False)
        return PullObjectResponse(
            object_found=True,
            object_available=self.there,
            object_content=content if self.there else b"",
        )

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> None:  # noqa: N802
        self.freed.append(request.message_object_id)


def test_replies_are_pulled_by_calls_that_the_installed_flower_has() -> None:
    """Ours go around ``HttpGrid.pull_messages``: a Flower that changes them fails here."""
    one = deflated(Message(pack(REPORT, None), reply_to=asked()))
    runtime = FakeRuntime(one)
    for call in ("PullMessages", "PullObject", "ConfirmMessageReceived", "GetNodes"):
        assert callable(getattr(RuntimeHttpClient, call))
    grid = HttpGrid(token="x")
    grid._client = runtime  # type: ignore[assignment]
    grid.set_run(Run.create_empty(7))
    replies = SuperLinkReplies(grid)
    assert replies.arrived("another") == []
    assert replies.arrived("ticket") == [(one.root, one.tree)]
    assert replies.content(one.root) == one.objects[one.root]
    runtime.there = False
    assert replies.content(one.root) is None
    with pytest.raises(LookupError):
        replies.content("ab" * 32)
    replies.free(one.root)
    assert runtime.freed == [one.root]
