"""The installed ClientApp answers every kind of order, and lets the participation do it."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from client.runtime.order_handler import Participation
from client.site.folder import Site
from common.messages.wire_format import MESSAGE_TYPES, Content


@pytest.mark.parametrize("kind", MESSAGE_TYPES)
def test_each_kind_of_order_reaches_the_participation(
    site: Site, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    opened: list[Path] = []
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)

    def answer(self: Participation, content: Content) -> Content:
        opened.append(self._site.folder)
        return RecordDict({"said": ConfigRecord({"kind": str(content["kind"]["kind"])})})

    monkeypatch.setattr(Participation, "answer", answer)
    content = RecordDict({"kind": ConfigRecord({"kind": kind})})
    message = Message(content, dst_node_id=1, message_type=MESSAGE_TYPES[kind])  # type: ignore[index]
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"site": str(site.folder)},
        state=RecordDict(),
        run_config={},
    )
    reply = app(message, context)
    assert reply.content["said"]["kind"] == kind
    assert opened == [site.folder]
