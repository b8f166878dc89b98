"""The installed ClientApp answers every kind of order, and lets the participation do it."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from client.runtime.order_handler import Participation
from client.site.folder import Site
from common.messages.wire_format import (
    MESSAGE_TYPES,
    Content,
    OrderKind,
    Report,
    pack,
    peek_order,
    unpack_report,
)
from common.study.protocol import StudyProtocol
from server.consortium.provisioning import Consortium
from tests.consortia import signed_order


@pytest.mark.parametrize("kind", MESSAGE_TYPES)
def test_each_kind_of_order_reaches_the_participation(
    site: Site,
    consortium: Consortium,
    protocol: StudyProtocol,
    monkeypatch: pytest.MonkeyPatch,
    kind: OrderKind,
) -> None:
    opened: list[Path] = []
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)

    def answer(self: Participation, content: Content) -> Content:
        opened.append(self._site.folder)
        return pack(
            Report(kind=peek_order(content).kind, study="one", round=0, status="done"), None
        )

    monkeypatch.setattr(Participation, "answer", answer)
    content = signed_order(consortium.identity, site, protocol, kind)
    message = Message(content, dst_node_id=1, message_type=MESSAGE_TYPES[kind])
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"site": str(site.folder)},
        state=RecordDict(),
        run_config={},
    )
    reply = app(message, context)
    report, _ = unpack_report(reply.content, template=None, max_norm=1.0)
    assert report.kind == kind
    assert opened == [site.folder]
