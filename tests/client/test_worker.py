"""The worker in front of a SuperNode that is a list: whatever goes wrong, an answer goes back."""

from __future__ import annotations

import errno
import io
import time
import zipfile
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.cli.build import build_fab_from_files
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor

from client import app as flower_app
from client import worker
from client.site.folder import Site
from client.study import round_training
from client.worker import Worker
from common.messages.wire_format import (
    MESSAGE_TYPES,
    Content,
    Report,
    bundle_sources,
    unpack_report,
)
from common.records.atomic_files import read_json
from common.study.protocol import StudyProtocol
from server.consortium.provisioning import Consortium
from tests.consortia import approve, events, signed_order

SECRET = "patient Anna Tamm"
NODE, RUN = 11, 22
OURS = build_fab_from_files(bundle_sources())[0]


class Ended(BaseException):
    """The orders are used up, or the worker is killed."""


def made_message(content: Content, kind: str, *, name: str = "") -> Message:
    """Return an order as a SuperNode has it."""
    metadata = Metadata(
        run_id=RUN,
        message_id=name,
        src_node_id=1,
        dst_node_id=NODE,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=600.0,
        message_type=kind,
    )
    return Message(content=content, metadata=metadata)


class SuperNode:
    """The runtime calls of a SuperNode: hands out ``orders`` and keeps what comes back."""

    def __init__(self, fab: bytes = OURS) -> None:
        self.fab = fab
        self.orders: dict[str, Message] = {}
        self.pushed: list[tuple[str, Message]] = []
        self.ended: list[tuple[str, str]] = []
        self.beats = 0
        self.failures: list[Exception] = []
        self.push_failures: list[Exception] = []

    def give(self, token: str, kind: str, content: Content) -> None:
        self.orders[token] = made_message(content, MESSAGE_TYPES[kind], name=token)

    def client(self, token: str) -> Any:
        return SimpleNamespace(
            token=token,
            close=lambda: None,
            AcquireTask=self.acquire,
            SendTaskHeartbeat=self.beat,
        )

    def acquire(self, _: object) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        if not self.orders:
            raise Ended
        return SimpleNamespace(token=next(iter(self.orders)), HasField=lambda _: True)

    def beat(self, _: object) -> None:
        self.beats += 1

    def pull(self, client: Any) -> tuple[Message, Context, Any, Any]:
        message = self.orders.pop(client.token)
        context = Context(
            run_id=RUN, node_id=NODE, node_config={}, state=RecordDict(), run_config={}
        )
        return message, context, SimpleNamespace(run_id=RUN), SimpleNamespace(content=self.fab)

    def push(self, client: Any, message: Message, context: Any) -> None:
        if self.push_failures:
            raise self.push_failures.pop(0)
        assert (context.node_id, context.run_id) == (NODE, RUN)
        self.pushed.append((client.token, message))

    def finish(self, client: Any, _: object, status: str, details: str) -> None:
        assert details == ""
        self.ended.append((client.token, status))

    def reply(self) -> Message:
        (one,) = self.pushed
        return one[1]

    def code(self) -> str:
        """Return the code of the one failure that came back."""
        reply = self.reply()
        assert reply.has_error()
        assert SECRET not in str(reply)
        return str(reply.error.reason)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> SuperNode:
    node = SuperNode()

    def client(_: object, interceptor: Any, *, name: str) -> Any:
        token = getattr(interceptor, "token", None) or getattr(interceptor, "_token", "")
        return node.client(str(token))

    monkeypatch.setattr(Worker, "_client", client)
    monkeypatch.setattr(worker, "pull_task_input", node.pull)
    monkeypatch.setattr(worker, "push_message", node.push)
    monkeypatch.setattr(worker, "push_task_output", node.finish)
    monkeypatch.setattr("client.worker.time.sleep", lambda _: None)
    monkeypatch.setattr(flower_app, "_sites", {})
    return node


@pytest.fixture
def initial(site: Site, consortium: Consortium, protocol: StudyProtocol) -> Content:
    """An approved order for the starting weights."""
    approve(site, consortium, protocol)
    return signed_order(consortium.identity, site, protocol, "initial")


def work(site: Site) -> None:
    with pytest.raises(Ended):
        Worker(site).run()


def test_an_order_is_answered_by_the_installed_code(
    site: Site, node: SuperNode, initial: Content, protocol: StudyProtocol
) -> None:
    node.give("one", "initial", initial)
    work(site)
    reply = node.reply()
    assert not reply.has_error()
    report, arrays = unpack_report(reply.content, template=None, max_norm=1e6, any_arrays=True)
    assert (report.kind, report.status) == ("initial", "done")
    assert arrays.keys() == round_training.starting_weights(protocol).keys()
    assert [token for token, _ in node.ended] == ["one"]


@pytest.mark.parametrize("kind", ["offer", "initial", "train", "evaluate"])
def test_every_kind_of_order_reaches_the_site(
    site: Site, node: SuperNode, consortium: Consortium, protocol: StudyProtocol, kind: Any
) -> None:
    weights = round_training.starting_weights(protocol)
    content = signed_order(consortium.identity, site, protocol, kind, weights=weights)
    node.give("one", kind, content)
    work(site)
    record = node.reply().content.config_records["gliofed"]
    report = Report.model_validate_json(str(record["json"]))
    assert (report.kind, report.code) == (kind, "not-approved")


def bundle(**changes: bytes) -> bytes:
    """Return our bundle with files added or replaced."""
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(OURS)) as ours, zipfile.ZipFile(content, "w") as made:
        files = {name: ours.read(name) for name in ours.namelist()}
        for name, data in {**files, **changes}.items():
            made.writestr(name, data)
    return content.getvalue()


PROJECT = bundle_sources()["pyproject.toml"]
FOREIGN = {
    "code in it": bundle(**{"client/app.py": b"evil()"}),
    "another app": bundle(**{"pyproject.toml": PROJECT.replace(b"client.app", b"evil.app")}),
    "another text": bundle(**{"README.md": b"Trust me."}),
    "no bundle": b"",
    "no archive": bytes(100),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_bundle_is_refused_and_journalled(
    site: Site, node: SuperNode, initial: Content, name: str
) -> None:
    node.fab = FOREIGN[name]
    node.give("one", "initial", initial)
    work(site)
    assert node.code() == "bundle"
    (refused,) = events(site, "order refused")
    assert (refused["code"], refused["run"]) == ("bundle", RUN)


def test_what_is_no_order_leaves_as_a_code(site: Site, node: SuperNode) -> None:
    node.give("one", "train", RecordDict({}))
    work(site)
    assert node.code().startswith("update")
    assert len(events(site, "order refused")) == 1


def test_an_unforeseen_failure_leaves_as_a_code_and_its_kind_is_in_the_log(
    site: Site,
    node: SuperNode,
    consortium: Consortium,
    protocol: StudyProtocol,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr("client.app.Participation.answer", fail)
    for token in ("one", "two"):
        content = signed_order(consortium.identity, site, protocol, "initial")
        node.give(token, "initial", content)
    work(site)
    assert {str(reply.error.reason) for _, reply in node.pushed} == {"internal"}
    assert SECRET not in str(node.pushed)
    failed = events(site, "order failed")
    assert len(failed) == 2  # the worker went on to the second order
    assert (failed[0]["code"], failed[0]["error"]) == ("internal", "RuntimeError")
    assert SECRET not in site.journal.path.read_text()
    # Its text is left out by the form of the worker's log: ``common.process.logs``.
    assert [one.exc_info[0] for one in caplog.records if one.exc_info] == [RuntimeError] * 2


def test_a_supernode_that_is_away_is_waited_for(
    site: Site, node: SuperNode, initial: Content
) -> None:
    node.failures = [httpx.ConnectError("away"), RuntimeError("starting"), OSError("gone")]
    node.give("one", "initial", initial)
    work(site)
    assert len(node.pushed) == 1


def test_a_beat_to_a_supernode_that_is_away_is_lost_without_a_word(site: Site) -> None:
    site.runtime.create()
    client = Worker(site)._client(RuntimeTokenHttpInterceptor("token"), name="flwr-clientapp")
    worker._beat(client)
    client.close()


@pytest.mark.parametrize("theirs", ["99.0", "0.1.99", "0.2.0", "0.0.9", "0.3.0"])
def test_a_coordinator_of_another_version_is_answered_with_words(
    site: Site, node: SuperNode, initial: Content, theirs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "own", lambda: "0.1.3")
    line = next(line for line in PROJECT.splitlines() if line.startswith(b"version"))
    node.fab = bundle(**{"pyproject.toml": PROJECT.replace(line, f'version = "{theirs}"'.encode())})
    node.give("one", "initial", initial)
    work(site)
    report, _ = unpack_report(node.reply().content, template=None, max_norm=1e6, any_arrays=True)
    assert read_json(site.heard_version, what="version") == {"version": theirs}
    if theirs in {"0.1.99", "0.2.0", "0.0.9"}:  # at most one minor version away
        assert report.status == "done"
        return
    assert (report.status, report.code) == ("refused", "version")
    assert report.reason.startswith(f"The site runs gliofed 0.1.3, the coordinator {theirs}: ")
    assert "The site must upgrade" in report.reason
    (refused,) = events(site, "order refused")
    assert refused["code"] == "version"
    assert [fact["code"] for fact in events(site, "declined")] == ["version"]


def test_an_order_of_another_version_that_is_not_understood_leaves_as_its_code(
    site: Site, node: SuperNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "own", lambda: "99.0")
    node.give("one", "train", RecordDict({}))
    work(site)
    assert node.code() == "version"


def test_an_answer_goes_back_even_if_the_journal_cannot_be_written(
    site: Site,
    node: SuperNode,
    initial: Content,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("common.records.journal._write", full)
    node.fab = FOREIGN["code in it"]
    node.give("one", "initial", initial)
    work(site)
    assert node.code() == "bundle"
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_a_wrong_clock_makes_no_answer_look_expired(
    site: Site, node: SuperNode, initial: Content, hours: int
) -> None:
    node.give("one", "initial", initial)
    order = node.orders["one"].metadata
    order.created_at += hours * 3600  # the coordinator's clock, as it looks from here
    expires = order.created_at + order.ttl
    work(site)
    reply = node.reply().metadata
    assert order.created_at <= reply.created_at < order.created_at + 60
    assert reply.created_at + reply.ttl == pytest.approx(expires)


class Log:
    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    def error(self, event: str, **fields: Any) -> None:
        self.said.append((event, fields))

    info = error


def test_a_supernode_that_stays_silent_is_said_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, now = Log(), [0.0]
    monkeypatch.setattr(worker, "_WORDS", log)
    silence = worker.Silence(clock=lambda: now[0])
    request = httpx.Request("POST", "http://127.0.0.1")
    refused = httpx.HTTPStatusError("", request=request, response=httpx.Response(403))
    for now[0] in (0.0, 29.0):
        silence.goes_on(refused)
    silence.ended()  # a SuperNode that starts
    assert log.said == []
    for now[0] in (100.0, 120.0, 131.0, 200.0, 730.0, 732.0):
        silence.goes_on(refused if now[0] < 700 else httpx.ConnectError("away"))
    silence.ended()
    silence.ended()
    assert log.said == [
        (
            "The SuperNode does not answer.",
            {"seconds": 31, "error": "HTTPStatusError", "code": "http-403"},
        ),
        (
            "The SuperNode does not answer.",
            {"seconds": 632, "error": "ConnectError", "code": "connection"},
        ),
        ("The SuperNode answers again.", {}),
    ]
