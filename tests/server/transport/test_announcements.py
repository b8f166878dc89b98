"""What a site announces is one reply of few objects, and touches nobody's orders."""

from __future__ import annotations

import hashlib

import pytest
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message, ObjectTree
from hypothesis import given
from hypothesis import strategies as st

from server.transport.announcements import OrderNames
from tests.supernodes import pulled


def name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tree(text: str, *below: ObjectTree) -> ObjectTree:
    return ObjectTree(object_id=name(text), children=below)


def announced(*trees: ObjectTree, messages: int = 1) -> bytes:
    return PushMessagesRequest(
        messages_list=[Message()] * messages, message_object_trees=trees
    ).SerializeToString()


def order(*trees: ObjectTree) -> bytes:
    return PullMessagesResponse(
        messages_list=[Message()], message_object_trees=trees
    ).SerializeToString()


HONEST = tree("reply", tree("records", tree("report"), tree("arrays", tree("chunk"))))


def test_an_honest_reply_is_passed_on() -> None:
    orders = OrderNames()
    assert orders.delivered(order(tree("order", tree("weights"))))
    assert orders.refusal(announced(HONEST), most_objects=5) == ""


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (announced(HONEST, HONEST), "one reply"),
        (announced(HONEST, messages=2), "one reply"),
        (announced(messages=1), "one reply"),
        (b"", "one reply"),
        (b"\xff" * 40, "cannot be read"),
        (announced(tree("reply", *(tree(str(number)) for number in range(50)))), "more than 16"),
    ],
)
def test_what_is_no_reply_is_not_passed_on(body: bytes, why: str) -> None:
    assert why in OrderNames().refusal(body, most_objects=16)


def test_a_tree_that_is_too_deep_is_not_passed_on() -> None:
    deep = tree("leaf")
    for number in range(95):
        deep = ObjectTree(object_id=name(str(number)), children=[deep])
    assert OrderNames().refusal(announced(deep), most_objects=16)


@pytest.mark.parametrize("stolen", ["order", "weights"])
@pytest.mark.parametrize("where", ["root", "below"])
def test_an_object_of_an_order_is_announced_by_nobody(stolen: str, where: str) -> None:
    """With other children than it has, it could not be sent to anybody any more."""
    orders = OrderNames()
    orders.delivered(order(tree("order", tree("weights"))))
    poison = tree(stolen, tree("another"))
    body = announced(poison if where == "root" else tree("reply", poison))
    assert "object of an order" in orders.refusal(body, most_objects=16)


def test_old_orders_are_forgotten_first() -> None:
    orders = OrderNames(kept=2)
    for text in ("first", "second", "first", "third"):
        orders.delivered(order(tree(text)))
    refused = {
        text: bool(orders.refusal(announced(tree(text)), most_objects=9))
        for text in ("first", "second", "third")
    }
    assert refused == {"first": True, "second": False, "third": True}


@pytest.mark.parametrize("messages", [0, 1, 3])
def test_an_answer_that_brings_an_order_is_known(messages: int) -> None:
    assert OrderNames().delivered(pulled(messages)) == bool(messages)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_to_their_end(data: bytes) -> None:
    orders = OrderNames()
    assert orders.delivered(data) in {True, False}
    assert isinstance(orders.refusal(data, most_objects=16), str)
