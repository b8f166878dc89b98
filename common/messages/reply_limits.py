"""How large the answer to an order can be: reckoned before a byte of it is held.

All of it follows from the protocol: names and shapes of the arrays that a study's sites send, how
they are encoded, and the longest texts that a report may hold. Nothing that a sender says about the
size of its message enters. The executor compares with it what it pulls, the gateway what it lets
in.

Pure. Out of scope: what the bytes say (``common.messages.wire_format``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from common.messages.compression import encoded_bytes_limit
from common.study import network_shapes
from common.study.protocol import MessageOptions, StudyProtocol
from common.study.trained_parameters import update_shapes

REPORT_BYTES: Final = 2**19
"""More than the JSON of any report: every text of its longest, and each letter an escape."""

ERROR_BYTES: Final = 2**16
"""Of a message that says that Flower failed, and no more."""

_CHUNK_BYTES: Final = 2**20
"""Flower cuts arrays into chunks of 5 MiB, unless a site has it make smaller ones."""

_FORM_OBJECTS: Final = 8
"""Message, records and array around the chunks: five, and some room."""

_FORM_BYTES: Final = 2**14
"""Of each of them, without the names of the chunks."""

_NAME_BYTES: Final = 96
"""Of the name of an object, and of its place in an array."""


class ReplyLimit(NamedTuple):
    """What one answer may be at most."""

    body_bytes: int
    """Of its arrays as they travel; 0 if it brings none."""
    objects: int
    """Of Flower, of which it is made."""

    @property
    def form_bytes(self) -> int:
        """Of any of the objects that hold neither the report nor arrays."""
        return max(ERROR_BYTES, _FORM_BYTES + _NAME_BYTES * self.objects)

    @property
    def bytes(self) -> int:
        """Of all objects together."""
        return self.body_bytes + REPORT_BYTES + _FORM_OBJECTS * self.form_bytes


def reply_limit(
    template: Mapping[str, tuple[int, ...]] | None, options: MessageOptions
) -> ReplyLimit:
    """Return the limit of an answer that brings arrays of these shapes, or none."""
    body = encoded_bytes_limit(template, options) if template else 0
    return ReplyLimit(body, most_objects(body))


def most_objects(body_bytes: int) -> int:
    """Return of how many objects of Flower's a message with a body of so many bytes is at most."""
    return _FORM_OBJECTS + math.ceil(body_bytes / _CHUNK_BYTES)


def study_reply_limit(protocol: StudyProtocol) -> ReplyLimit:
    """Return the limit of the largest answer to any order of a study; raise ProtocolError."""
    shapes = network_shapes.shapes(protocol.network)
    sent = update_shapes(shapes, protocol.network.name, protocol.training)
    return reply_limit(sent, protocol.messages)
