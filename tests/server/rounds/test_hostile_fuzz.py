"""Any bytes as a site's reply: the fleet and the rounds live on, and each refusal names its site.

Every example goes the whole way: objects in a SuperLink's store, the fleet, the boundary, the
checks, the journal. What is drawn is an honest reply with one to three things wrong, at the level
of Flower's objects, of their trees, of records and of the report's JSON; or nothing but noise.
"""

from __future__ import annotations

import json
import resource
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from common.messages.reply_limits import reply_limit
from common.messages.wire_format import Report, pack
from server.rounds.deadlines import Deadlines
from server.rounds.order_state import Answer, Task
from server.rounds.orders import Orders
from tests.flower_objects import Deflated, made, name_of, tree_of
from tests.hostile_superlink import HostileSuperLink
from tests.server.conftest import SHAPES, World, start
from tests.server.transport.test_reply_pull import parts

KINDS = [
    "Message",
    "RecordDict",
    "ConfigRecord",
    "ArrayRecord",
    "Array",
    "ArrayChunk",
    "MetricRecord",
    "object",
    "",
]
STRANGE: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(10**400, -1, 0, 2**63, 1e308, "NaN", "\ud800", "", "\x1b[2J", "x" * 3000, [], {}),
        *([0] * 1000, {"a": [1]}, None, True, "9" * 5000, "done", "train", "f" * 64),
    ]
)
WRONG = [
    *("kind", "body", "report", "length", "drop", "add", "itself", "cut", "flip"),
    *("tree-gone", "tree-deep", "tree-wide", "absent", "never", "big", "noise"),
]
FIELDS = [*Report.model_fields, "more"]


def texts() -> st.SearchStrategy[bytes]:
    """Draw bodies: noise, JSON, and what is nearly either."""
    values = st.recursive(STRANGE, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
    named = st.dictionaries(st.sampled_from(["gliofed", "arrays", "safetensors"]), STRANGE)
    about = st.fixed_dictionaries({"arraychunk_ids": values, "dtype": values, "shape": values})
    said = st.one_of(values, named, about).map(lambda value: json.dumps(value).encode())
    return st.one_of(st.binary(max_size=200), said, st.just(b"[" * 20_000))


@st.composite
def reports(draw: Any) -> bytes:
    """Draw a record whose JSON is a report with strange values."""
    value: dict[str, Any] = {"kind": "train", "study": "demo", "round": 1, "status": "done"}
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=3)):
        value[name] = draw(STRANGE)
    if draw(st.booleans()):
        spent = dict.fromkeys(("noise_multiplier", "sampling_rate", "steps", "delta", "epsilon"))
        value["privacy_spent"] = {name: draw(STRANGE) for name in spent}
    text = json.dumps(value).replace("\\ud800", "?")
    record = ConfigRecord({"json": draw(st.sampled_from([text, text[:-1], "[" * 5000, "null"]))})
    return bytes(record.deflate())


@st.composite
def changes(draw: Any) -> list[tuple[str, int, Any]]:
    """Draw what goes wrong, at which object, and with which value."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        what = draw(st.sampled_from(WRONG))
        value: Any = {
            "kind": st.sampled_from(KINDS),
            "body": texts(),
            "report": reports(),
            "length": st.sampled_from(["", "-1", "9" * 5000, "0", "x"]),
            "cut": st.integers(0, 60),
            "flip": st.integers(0, 400),
            "noise": st.binary(max_size=300),
            "add": st.sampled_from(["ab" * 32, "../x", "", "G" * 64]),
            "tree-deep": st.integers(1, 30),
            "tree-wide": st.integers(1, 500),
        }.get(what, st.none())
        found.append((what, draw(st.integers(0, 5)), draw(value)))
    return found


def spoilt(reply: Deflated, wrong: list[tuple[str, int, Any]]) -> tuple[Deflated, set[str]]:
    """Return a reply with all that is ``wrong`` done to it, and the objects that never come."""
    order = list(reply.objects)
    by_place: dict[int, list[tuple[str, Any]]] = {}
    for what, place, value in wrong:
        by_place.setdefault(place % len(order), []).append((what, value))
    names: dict[str, str] = {}
    objects: dict[str, Any] = {}
    below: dict[str, list[str]] = {}
    never: set[str] = set()
    gone: set[str] = set()
    trees: list[tuple[str, int]] = []
    for place, old in enumerate(order):
        content = reply.objects[old]
        for was, now in names.items():
            content = content.replace(was.encode(), now.encode())
        kind, children, body = parts(content)
        length: str | None = None
        own = by_place.get(place, [])
        for what, value in own:
            if what == "kind":
                kind = value
            elif what == "body":
                body = value
            elif what == "length":
                length = value
            elif what == "drop":
                children = children[1:]
            elif what == "add":
                children = [*children, value]
            elif what == "big":
                body += bytes(2 * 2**20)
        content = made(kind, children, body, length=length)
        for what, value in own:
            if what in {"report", "noise"}:
                content = value
            elif what == "cut":
                content = content[:value]
            elif what == "flip" and content:
                at = value % len(content)
                content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        name = name_of(content)
        for what, value in own:
            if what == "itself":
                name = "cd" * 32
                content = made(kind, [name], body)
            elif what == "absent":
                never.add(name)
            elif what == "never":
                content = None  # type: ignore[assignment]
            elif what == "tree-gone":
                gone.add(name)
            elif what.startswith("tree-"):
                trees.append((what, value))
        names[old], objects[name] = name, content
        below[name] = [
            names[child] for child in parts(reply.objects[old])[1] if names[child] not in gone
        ]
    root = names[reply.root]
    tree = tree_of(root, below)
    for what, value in trees:
        for _ in range(value):
            if what == "tree-deep":
                tree = ObjectTree(object_id=root, children=[tree])
            else:
                tree.children.append(ObjectTree(object_id="ef" * 32))
    return Deflated(root, tree, objects), never


class Trial:
    """Orders to one site, again and again, whose store holds what is drawn."""

    def __init__(self, world: World) -> None:
        world.join("a")
        study = world.publish(aggregation__quorum=1)
        self.world = world
        self.superlink = HostileSuperLink(world.hospitals)
        self.fleet = self.superlink.fleet()
        self.orders = Orders(
            study,
            self.fleet,
            world.consortium.journal,
            sites=world.consortium.sites,
            deadlines=Deadlines(study.protocol.aggregation),
            clock=world.clock,
        )
        self.task = Task(
            kind="train",
            number=1,
            deadline_s=1.0,
            weights=start(),
            template=SHAPES,
        )
        self.limit = reply_limit(SHAPES, study.protocol.messages)
        self.accepted: list[Answer] = []
        self.seen = world.consortium.journal.path.stat().st_size

    def give(self, wrong: list[tuple[str, int, Any]]) -> str:
        """Give an order that is answered so; return what became of the site."""
        largest = 0

        def reply(order: Message, honest: Deflated) -> Deflated:
            nonlocal largest
            stored, never = spoilt(honest, wrong)
            largest = max((len(one) for one in stored.objects.values() if one), default=0)
            for name in never:
                stored.objects.pop(name, None)
                self.superlink.stored.pop(name, None)
            return stored

        self.superlink.hostile["a"] = reply
        for kept in (self.superlink.freed, self.superlink.orders, self.accepted):
            kept.clear()  # what this test itself would gather
        before = self.superlink.served_bytes
        dropped = self.orders.give(self.task, {"a"}, self.accepted.append)
        self.orders.forget()
        self.orders._under_way.clear()
        self.orders._attendance.done("a")
        served = self.superlink.served_bytes - before
        # An order that is lost is given up to eight times.
        assert served <= 9 * (self.limit.bytes + largest)
        self.superlink.stored.clear()
        return dropped.get("a", "done")

    def told(self) -> list[tuple[str, str]]:
        """Return event and code of what the journal says since this was asked last."""
        with self.world.consortium.journal.path.open("rb") as file:
            file.seek(self.seen)
            new = [json.loads(line) for line in file]
            self.seen = file.tell()
        assert {one["facts"].get("site", "a") for one in new} <= {"a"}
        return [(one["event"], str(one["facts"].get("code", ""))) for one in new]


@pytest.fixture
def trial(world: World, monkeypatch: pytest.MonkeyPatch) -> Trial:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return Trial(world)


def check(trial: Trial, wrong: list[tuple[str, int, Any]]) -> None:
    outcome, told = trial.give(wrong), trial.told()
    if outcome in {"done", "no-answer", "order-lost"}:
        assert all(event != "reply refused" for event, _ in told)
    elif told and told[-1][0] == "site declined":
        assert outcome
    else:
        assert told[-1] == ("reply refused", outcome), (outcome, told)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(wrong=changes())
def test_whatever_a_site_stores_ends_in_a_refusal_that_names_it(
    trial: Trial, wrong: list[tuple[str, int, Any]]
) -> None:
    check(trial, wrong)


def test_the_honest_reply_is_accepted(trial: Trial) -> None:
    assert trial.give([]) == "done"
    (answer,) = trial.accepted
    assert {name: array.shape for name, array in answer.arrays.items()} == SHAPES
    assert np.isfinite(answer.arrays["conv_final.0.weight"]).all()


@pytest.mark.slow  # 100,000 replies in all take about half an hour
@pytest.mark.parametrize("part", range(4))
def test_a_hundred_thousand_replies(trial: Trial, part: int) -> None:
    """Beside the refusals: the process's memory does not grow with what was sent."""
    count = 0

    @seed(part)
    @settings(
        max_examples=25_000,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(wrong=changes())
    def each(wrong: list[tuple[str, int, Any]]) -> None:
        nonlocal count
        count += 1
        trial.give(wrong)
        if count % 1000 == 0:
            trial.told()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    each()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert count >= 25_000
    assert grown < 300 * 1024, f"{grown} KiB more"
    assert pack(Report(kind="train", study="demo", round=1, status="done"), None)
