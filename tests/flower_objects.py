"""Flower's objects as the SuperLink keeps them: by digest, with a tree that says what is below."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree


class Deflated(NamedTuple):
    """A message: the name of its root, its tree, and its objects by name."""

    root: str
    tree: ObjectTree
    objects: dict[str, bytes]


def deflated(message: Message) -> Deflated:
    """Return a message as an honest site stores it."""
    objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
    return Deflated(message.object_id, get_object_tree(message), objects)


def made(kind: str, children: Sequence[str], body: bytes, *, length: str | None = None) -> bytes:
    """Return an object with any head that somebody may write."""
    said = str(len(body)) if length is None else length
    return f"{kind} {','.join(children)} {said}".encode() + b"\0" + body


def name_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tree_of(
    root: str, below: Mapping[str, Sequence[str]], *, above: frozenset[str] = frozenset()
) -> ObjectTree:
    """Return the tree of ``root``, where ``below`` names the children of each object.

    A name that stands above itself is a leaf there.
    """
    path = above | {root}
    children = [
        tree_of(child, below, above=path) for child in below.get(root, ()) if child not in path
    ]
    return ObjectTree(object_id=root, children=children)
