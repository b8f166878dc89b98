from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Callable
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import node_auth_http_interceptor as flower_auth
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory

from client.runtime.supernode import Clock, _tell, noting, receive_whole, signed_in_time
from common.records.journal import Journal

# A SuperNode whose loop ends in one of the ways it can while its server thread goes on.
PROGRAM = """
import threading, time, unittest.mock
import client.runtime.supernode as node

def serve(runtime):
    threading.Thread(target=time.sleep, args=(600,)).start()
    {ending}

node.serve = serve
node.leaving = lambda folder: None
node.Site = unittest.mock.MagicMock()
node.main()
"""


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("return", 1, ""),
        ("raise SystemExit(0)", 0, ""),
        ("raise SystemExit(7)", 7, ""),
        ("raise SystemExit", 1, ""),
        ("raise RuntimeError('the link is gone')", 1, "the link is gone"),
    ],
)
def test_nothing_of_a_supernode_outlives_its_loop(ending: str, code: int, said: str) -> None:
    program = PROGRAM.format(ending=ending)
    done = subprocess.run(
        [sys.executable, "-c", program, "site"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stderr


@pytest.mark.parametrize("call", ["pull_object", "confirm_message_received"])
@pytest.mark.parametrize("corrected", [True, False])
def test_an_order_whose_run_ends_while_it_arrives_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, call: str, corrected: bool
) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    message = Message(
        RecordDict({"a": ConfigRecord({"b": 1})}), dst_node_id=1, message_type="train"
    )
    message.metadata.__dict__["_message_id"] = message.object_id
    tree = get_object_tree(message)
    stores = ObjectStoreFactory()
    state = NodeStateFactory(objectstore_factory=stores).state()
    state.set_node_id(1)
    run = Run.create_empty(message.metadata.run_id)
    state.store_run(run)

    def ended(*_: Any) -> bytes:
        raise RunNotRunningException

    calls: dict[str, Any] = {
        "pull_object": lambda *_: b"content",
        "confirm_message_received": lambda *_: None,
    }
    monkeypatch.setattr(stores.store(), "put", lambda *_: None)
    calls[call] = ended
    flower = start_client_internal._pull_and_store_message
    receive = receive_whole(flower) if corrected else flower
    received = receive(
        state=state,
        object_store=stores.store(),
        node_config={},
        receive=lambda: (remove_content_from_message(message), tree),
        get_run=lambda _: SimpleNamespace(),
        get_fab=lambda *_: SimpleNamespace(),
        trusted_entities=None,
        **calls,
    )
    assert received is None
    waiting = [task for task in state.get_tasks() if task.status.status != "finished"]
    # When Flower mends this, the correction can go.
    assert bool(waiting) is not corrected
    assert bool(state.get_messages_legacy()) is not corrected


class Coordinator:
    """Refuses what is not signed within Flower's window of its own time."""

    def __init__(self, *, ahead_s: float, date: bool = True, refuses: bool = False) -> None:
        self._ahead = dt.timedelta(seconds=ahead_s)
        self._date = date
        self._refuses = refuses
        self.signed: list[str] = []

    def __call__(self, context: Any) -> httpx.Response:
        now = dt.datetime.now(dt.UTC) + self._ahead
        text = context.request.headers[flower_auth.TIMESTAMP_HEADER]
        self.signed.append(text)
        age = (now - dt.datetime.fromisoformat(text)).total_seconds()
        good = -5 < age < 305 and not self._refuses
        headers = {"date": format_datetime(now, usegmt=True)} if self._date else {}
        return httpx.Response(200 if good else 401, headers=headers)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[[Coordinator, Clock], int]:
    key = ec.generate_private_key(ec.SECP384R1())
    signer = flower_auth.NodeAuthHttpInterceptor(key, key.public_key())

    def one(coordinator: Coordinator, clock: Clock) -> int:
        monkeypatch.setattr(flower_auth, "now", clock.now)
        context = SimpleNamespace(request=httpx.Request("POST", "https://gateway/v1/fleet/x"))
        intercept = signed_in_time(flower_auth.NodeAuthHttpInterceptor.intercept, clock)
        return intercept(signer, context, coordinator).status_code

    return one


@pytest.mark.parametrize("ahead_s", [-3600, -8, 0, 200, 3600])
def test_a_wrong_clock_costs_one_refused_call(
    call: Callable[[Coordinator, Clock], int], ahead_s: int
) -> None:
    said: list[float] = []
    clock, coordinator = Clock(said.append), Coordinator(ahead_s=-ahead_s)
    assert [call(coordinator, clock) for _ in range(3)] == [200] * 3
    refused = not -305 < ahead_s < 5
    assert len(coordinator.signed) == 3 + refused
    assert [round(s) for s in said] == pytest.approx([ahead_s] * refused, abs=1)


@pytest.mark.parametrize("date", [True, False])
def test_a_call_that_is_refused_for_another_reason_is_not_tried_again(
    call: Callable[[Coordinator, Clock], int], date: bool
) -> None:
    said: list[float] = []
    coordinator = Coordinator(ahead_s=0, date=date, refuses=True)
    assert call(coordinator, Clock(said.append)) == 401
    assert (len(coordinator.signed), said) == (1, [])


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 23 Nov 2026 10:00:00 -0000"])
def test_what_is_no_time_is_not_believed(date: str) -> None:
    said: list[float] = []
    assert not Clock(said.append).learn(httpx.Response(401, headers={"date": date}))
    assert said == []


@pytest.mark.parametrize(("ahead_s", "words"), [(8, "8 s ahead of"), (-3600, "3600 s behind")])
def test_a_wrong_clock_is_told_in_the_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ahead_s: float, words: str
) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    _tell(journal, ahead_s)
    assert [e.facts for e in journal.events("clock differs")] == [{"ahead_s": ahead_s}]
    assert f"{words} the coordinator's" in capsys.readouterr().err
    _tell(Journal(tmp_path), ahead_s)  # cannot be written; the call is worth more than the note


@pytest.mark.parametrize(("status", "dated"), [(200, True), (401, False), (503, False)])
def test_a_call_that_is_answered_well_is_dated(tmp_path: Path, status: int, dated: bool) -> None:
    contact = tmp_path / "contact"
    intercept = noting(lambda *_: httpx.Response(status), contact)
    assert intercept(None, None, None).status_code == status
    assert contact.exists() == dated
    noting(lambda *_: httpx.Response(200), tmp_path / "no" / "folder")(None, None, None)
