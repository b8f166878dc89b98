"""What a site may announce to the SuperLink: one reply, of few objects, none of them an order's.

Before a site pushes the objects of a reply it announces their tree, and the SuperLink makes a row
of its database for each name in it, in one transaction that everybody waits for. A name that is
announced with other children than its object has makes the push of that object fail, whoever pushes
it: whoever announces what the coordinator is about to send again stops the orders of everybody. So
a tree is counted and its names are compared here, before it is passed on.

Source: ``preregister`` of Flower 1.41's object stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from google.protobuf.message import DecodeError

MOST_BYTES: Final = 2**16
"""Of an announcement: more than the tree of any reply, and than the message without its content."""

_KEPT: Final = 50_000
"""Names of orders: of a hundred orders of a hundred sites, five objects each."""


class OrderNames:
    """The names of the objects of orders that were delivered lately."""

    def __init__(self, *, kept: int = _KEPT) -> None:
        self._kept = kept
        self._names: dict[str, None] = {}

    def delivered(self, answer: bytes) -> bool:
        """Note what an answer to ``pull-messages`` brings; return whether it brings a message."""
        try:
            found = PullMessagesResponse.FromString(answer)
        except DecodeError:
            return False
        for name in _names(found.message_object_trees):
            self._names.pop(name, None)
            self._names[name] = None
        while len(self._names) > self._kept:
            del self._names[next(iter(self._names))]
        return bool(found.messages_list)

    def refusal(self, body: bytes, *, most_objects: int) -> str:
        """Return why an announcement is not passed on, or an empty text."""
        try:
            said = PushMessagesRequest.FromString(body)
        except DecodeError:
            return "it cannot be read"
        if len(said.messages_list) != 1 or len(said.message_object_trees) != 1:
            return "it is not of one reply"
        for count, name in enumerate(_names(said.message_object_trees), start=1):
            if count > most_objects:
                return f"it names more than {most_objects} objects"
            if name in self._names:
                return "it names an object of an order"
        return ""


def _names(trees: Iterable[Any]) -> Iterator[str]:
    """Yield the name of each object of trees; the reader bounds how deep they are."""
    left = list(trees)
    while left:
        tree = left.pop()
        yield str(tree.object_id)
        left.extend(tree.children)
