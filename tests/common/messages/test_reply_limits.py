"""The largest honest answer fits into its limit, and not many of its size do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MessageType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from common.messages.compression import encode
from common.messages.reply_limits import REPORT_BYTES, reply_limit, study_reply_limit
from common.messages.wire_format import Report, pack
from common.study import network_shapes
from common.study.protocol import MessageOptions
from common.study.trained_parameters import update_shapes
from tests.consortia import tiny_protocol

LONGEST: dict[str, Any] = {
    "reason": "\x01" * 2000,
    "approval": "\x01" * 20_000,
    "renewal": "\x01" * 10_000,
    "withdrawn": tuple(range(1, 10_001)),
    "site_head": "f" * 64,
    "coordinator_head": "f" * 64,
    "kit_sha256": "f" * 64,
}


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages only inside a task."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
@pytest.mark.parametrize("trainable", [["all"], ["low_rank"], ["norms"]])
def test_the_largest_honest_answer_fits(encoding: str, trainable: list[str]) -> None:
    protocol = tiny_protocol(
        network={"size": "small"},
        training={"trainable": trainable},
        messages={"encoding": encoding},
    )
    shapes = update_shapes(
        network_shapes.shapes(protocol.network), protocol.network.name, protocol.training
    )
    update = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    body, _ = encode(update, protocol.messages, rng=np.random.default_rng(0))
    report = Report(
        kind="train", study=protocol.study, round=10_000, status="done", code="a" * 60, **LONGEST
    )
    limit = study_reply_limit(protocol)
    assert limit == reply_limit(shapes, protocol.messages)
    message = Message(pack(report, body), dst_node_id=2**62, message_type=MessageType.TRAIN)
    objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
    assert len(objects) <= limit.objects
    assert sum(map(len, objects.values())) <= limit.bytes
    assert len(body) <= limit.body_bytes
    for data in objects.values():
        kind = data.split(b" ", 1)[0]
        most = {b"ArrayChunk": limit.body_bytes, b"ConfigRecord": REPORT_BYTES}
        assert len(data) <= most.get(kind, limit.form_bytes)


def test_an_answer_without_arrays_is_small() -> None:
    assert reply_limit(None, MessageOptions()).bytes < 2 * 2**20


def test_a_limit_is_little_more_than_what_is_due() -> None:
    limit = reply_limit({"w": (1000, 1000)}, MessageOptions())
    assert 4e6 < limit.body_bytes < limit.bytes < 4e6 + 2 * 2**20
