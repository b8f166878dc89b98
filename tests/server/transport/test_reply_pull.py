"""Raw objects of Flower that a site may store as its reply: each ends in a refusal of that site."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.task_identity import TaskIdentity

from common.errors import UpdateError
from common.messages.reply_limits import ReplyLimit, reply_limit
from common.messages.wire_format import Order, Report, pack
from common.study.protocol import MessageOptions
from server.rounds.fleet import Delivery
from server.transport.reply_pull import Incoming
from tests.flower_objects import Deflated, deflated, made, name_of, tree_of

SHAPES = {"w": (1000,)}
LIMIT = reply_limit(SHAPES, MessageOptions())
ORDER = Order(kind="train", study="demo", round=1, protocol="{}")
REPORT = Report(kind="train", study="demo", round=1, status="done")


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages only inside a task."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def honest(count: int = 1000) -> Deflated:
    asked = Message(pack(ORDER, None), dst_node_id=11, message_type="train")
    content = pack(REPORT, {"w": np.ones(count, np.float32)})
    return deflated(Message(content, reply_to=asked))


def of_kind(reply: Deflated, kind: str) -> str:
    """Return the name of the one object of a class."""
    (found,) = [name for name, data in reply.objects.items() if data.startswith(kind.encode())]
    return found


def parts(content: bytes) -> tuple[str, list[str], bytes]:
    head, _, body = content.partition(b"\0")
    kind, children, _ = head.decode().split(" ")
    return kind, children.split(",") if children else [], body


def rebuilt(
    reply: Deflated, kind: str, change: Callable[[str, list[str], bytes], bytes]
) -> Deflated:
    """Return the reply with the object of a class changed, and all above it made to name it."""
    changed = {of_kind(reply, kind): change(*parts(reply.objects[of_kind(reply, kind)]))}
    objects: dict[str, bytes] = {}
    below: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for name, content in reply.objects.items():  # children first
        data = changed.get(name, content)
        for old, new in names.items():
            data = data.replace(old.encode(), new.encode())
        names[name] = name_of(data)
        objects[names[name]] = data
        _, children, _ = parts(content)
        below[names[name]] = [names[child] for child in children]
    root = names[reply.root]
    return Deflated(root, tree_of(root, below), objects)


class Store:
    """What a SuperLink has; counts what is pulled."""

    def __init__(self, reply: Deflated, *, absent: frozenset[str] = frozenset()) -> None:
        self.objects = reply.objects
        self.absent = absent
        self.pulled: list[str] = []
        self.pulled_bytes = 0

    def __call__(self, name: str) -> bytes | None:
        if name in self.absent:
            return None
        self.pulled.append(name)
        self.pulled_bytes += len(self.objects[name])
        return self.objects[name]


def read(reply: Deflated, limit: ReplyLimit = LIMIT) -> Delivery | None:
    return Incoming(reply.root, reply.tree, limit).proceed(Store(reply))


def test_an_honest_reply_is_what_flower_would_make_of_it() -> None:
    delivery = read(honest())
    assert delivery == Delivery(pack(REPORT, {"w": np.ones(1000, np.float32)}), "")


@pytest.mark.parametrize("size", [1, 999, 1000, 3000])
def test_chunks_are_joined_in_the_order_that_is_said(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", size)
    data = np.arange(1000, dtype=np.float32)
    data[200:400] = 0  # chunks that are alike are one object
    asked = Message(pack(ORDER, None), dst_node_id=11, message_type="train")
    reply = deflated(Message(pack(REPORT, {"w": data}), reply_to=asked))
    limit = LIMIT._replace(objects=10_000)
    assert read(reply, limit) == Delivery(pack(REPORT, {"w": data}), "")


def test_what_is_still_to_come_is_asked_for_again_and_the_rest_is_not() -> None:
    reply = honest()
    chunk = of_kind(reply, "ArrayChunk")
    store = Store(reply, absent=frozenset({chunk}))
    incoming = Incoming(reply.root, reply.tree, LIMIT)
    assert incoming.proceed(store) is None
    before = len(store.pulled)
    assert incoming.proceed(store) is None
    assert len(store.pulled) == before
    store.absent = frozenset()
    assert incoming.proceed(store) is not None
    assert store.pulled[before:] == [chunk]
    assert incoming.held_bytes == 0


Change = Callable[[Deflated], Deflated]


def array(about: Any) -> Change:
    """Let the array say something else about itself."""
    body = json.dumps(about).encode() if not isinstance(about, bytes) else about
    return lambda r: rebuilt(r, "Array ", lambda k, c, _: made(k, c, body))


def of_class(kind: str, other: str) -> Change:
    return lambda r: rebuilt(r, kind, lambda _, c, b: made(other, c, b))


def with_length(length: str) -> Change:
    return lambda r: rebuilt(r, "Message", lambda k, c, b: made(k, c, b, length=length))


def childless_tree(reply: Deflated) -> Deflated:
    """The root names a child that its tree lacks: 212 bytes that once stopped a consortium."""
    return reply._replace(tree=ObjectTree(object_id=reply.root))


def not_a_message(reply: Deflated) -> Deflated:
    root = of_kind(reply, "RecordDict")
    return reply._replace(root=root, tree=reply.tree.children[0])


def chunk_for_content(reply: Deflated) -> Deflated:
    chunk = of_kind(reply, "ArrayChunk")
    kind, _, body = parts(reply.objects[reply.root])
    root = made(kind, [chunk], body)
    name = name_of(root)
    tree = tree_of(name, {name: [chunk]})
    return Deflated(name, tree, {name: root, chunk: reply.objects[chunk]})


def names_itself(reply: Deflated) -> Deflated:
    """No digest can do that; a store that does not look at digests could hold it."""
    name = "ab" * 32
    _, _, body = parts(reply.objects[reply.root])
    return Deflated(name, ObjectTree(object_id=name), {name: made("Message", [name], body)})


def deep(reply: Deflated) -> Deflated:
    tree = ObjectTree(object_id="ab" * 32)
    for _ in range(90):
        tree = ObjectTree(object_id="ab" * 32, children=[tree])
    return reply._replace(tree=tree)


def wide(reply: Deflated) -> Deflated:
    children = [ObjectTree(object_id=f"{number:064x}") for number in range(100_000)]
    return reply._replace(tree=ObjectTree(object_id=reply.root, children=children))


def more_records(reply: Deflated) -> Deflated:
    config = of_kind(reply, "ConfigRecord")
    return rebuilt(
        reply,
        "RecordDict",
        lambda k, c, b: made(k, c, json.dumps({**json.loads(b), "more": config}).encode()),
    )


HOSTILE: dict[str, tuple[Change, str]] = {
    "a child that the tree lacks": (childless_tree, "reply-form"),
    "the root is no message": (not_a_message, "reply-form"),
    "a chunk in the place of the content": (chunk_for_content, "reply-form"),
    "an object that names itself": (names_itself, "reply-form"),
    "a deep tree": (deep, "reply-objects"),
    "a wide tree": (wide, "reply-objects"),
    "more records": (more_records, "reply-form"),
    "another class": (of_class("ConfigRecord", "MetricRecord"), "reply-form"),
    "an unknown class": (of_class("ConfigRecord", "object"), "reply-form"),
    "the class of a message below": (of_class("RecordDict", "Message"), "reply-form"),
    "a wrong length": (with_length("7"), "reply-form"),
    "a length of many digits": (with_length("9" * 5000), "reply-form"),
    "a negative length": (with_length("-1"), "reply-form"),
    "no length": (with_length(""), "reply-form"),
    "no head": (lambda r: rebuilt(r, "Message", lambda *_: b"no divider"), "reply-form"),
    "a head of one word": (lambda r: rebuilt(r, "Message", lambda *_: b"x\0y"), "reply-form"),
    "a head that is no text": (lambda r: rebuilt(r, "Message", lambda *_: b"\xff\0"), "reply-form"),
    "nothing": (lambda r: rebuilt(r, "Message", lambda *_: b""), "reply-form"),
    "a name that is none": (
        lambda r: rebuilt(r, "Message", lambda k, _, b: made(k, ["../../x"], b)),
        "reply-form",
    ),
    "the same child twice": (
        lambda r: rebuilt(r, "Message", lambda k, c, b: made(k, c * 2, b)),
        "reply-form",
    ),
    "no error and no content": (
        lambda r: rebuilt(r, "Message", lambda k, _, b: made(k, [], b)),
        "IndexError",
    ),
    "a record that is no JSON": (
        lambda r: rebuilt(r, "RecordDict", lambda k, c, _: made(k, c, b"{")),
        "reply-form",
    ),
    "a record of deep JSON": (
        lambda r: rebuilt(r, "RecordDict", lambda k, c, _: made(k, c, b"[" * 50_000)),
        "reply-form",
    ),
    "a record that is a list": (
        lambda r: rebuilt(r, "RecordDict", lambda k, c, _: made(k, c, b"[]")),
        "reply-form",
    ),
    "a report that is no protobuf": (
        lambda r: rebuilt(r, "ConfigRecord", lambda k, c, _: made(k, c, b"\xff" * 99)),
        "DecodeError",
    ),
    "a report beyond its limit": (
        lambda r: rebuilt(r, "ConfigRecord", lambda k, c, b: made(k, c, b + bytes(2**20))),
        "reply-size",
    ),
    "a chunk beyond the limit": (
        lambda r: rebuilt(r, "ArrayChunk", lambda k, c, b: made(k, c, b + bytes(2**20))),
        "reply-size",
    ),
    "a message beyond the limit": (
        lambda r: rebuilt(r, "Message", lambda k, c, b: made(k, c, b + bytes(2**20))),
        "reply-size",
    ),
    "an array without chunks said": (array({}), "reply-objects"),
    "an array that is no JSON": (array(b"\x00"), "reply-form"),
    "a chunk said to follow a million times": (
        array({"arraychunk_ids": [0] * 10**3}),
        "reply-objects",
    ),
    "a chunk said to follow again": (array({"arraychunk_ids": [0] * 8}), "reply-size"),
    "a chunk before the first": (array({"arraychunk_ids": [-1]}), "reply-form"),
    "a chunk after the last": (array({"arraychunk_ids": [1]}), "reply-form"),
    "a chunk by a text": (array({"arraychunk_ids": ["0"]}), "reply-form"),
    "chunks by a number": (array({"arraychunk_ids": 10**400}), "reply-objects"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_reply_of_another_form_is_refused_before_it_is_held(case: str) -> None:
    change, code = HOSTILE[case]
    reply = change(honest())
    store = Store(reply)
    with pytest.raises(Exception) as refused:  # noqa: PT011  of any kind: the boundary is elsewhere
        Incoming(reply.root, reply.tree, LIMIT).proceed(store)
    if isinstance(refused.value, UpdateError):
        assert refused.value.code == code
        assert refused.value.message
        assert refused.value.do
    else:
        assert type(refused.value).__name__ == code
    largest = max(map(len, reply.objects.values()))
    assert store.pulled_bytes <= LIMIT.bytes + largest


def test_a_small_report_cannot_bring_a_large_body() -> None:
    """An answer that may bring no arrays is not pulled beyond its report."""
    reply = honest(count=1_000_000)
    store = Store(reply)
    small = reply_limit(None, MessageOptions())
    with pytest.raises(UpdateError) as refused:
        Incoming(reply.root, reply.tree, small).proceed(store)
    assert refused.value.code == "reply-size"


def test_the_name_of_a_config_is_flowers() -> None:
    """The form that is looked for is the one that the installed Flower writes."""
    kinds = {content.split(b" ", 1)[0].decode() for content in honest().objects.values()}
    assert kinds == {
        "Message",
        "RecordDict",
        "ConfigRecord",
        "ArrayRecord",
        "Array",
        "ArrayChunk",
    }
    assert ConfigRecord({"json": "{}"}).deflate().startswith(b"ConfigRecord  ")
