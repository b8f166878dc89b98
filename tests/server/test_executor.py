"""Whatever happens to the executor's threads, they live on, and health and doctor tell of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from common.errors import FederationError, StateError
from common.trust.enrolment import Request, sign_request
from common.trust.identity import Identity
from server import executor
from server.consortium.watched_threads import REGISTERING, ROUNDS, SILENT_S
from server.reporting.diagnosis import of_threads
from server.reporting.health import check
from server.transport import flower_fleet
from tests.server.reporting.test_health import served
from tests.server.transport.test_flower_fleet import FakeControl, _key_of


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> FakeControl:
    fake = FakeControl()
    monkeypatch.setattr(flower_fleet, "_control", lambda _consortium: fake)
    return fake


def poison(world: Any, name: str) -> None:
    """Let a site be admitted with what is no node key, as earlier versions let it."""
    identity = Identity.create(world.folder / f"{name}.key")
    wanted = Request(
        site=name,
        identity_key=identity.public,
        node_key="ecdsa-sha2-nistp384 AAAA",
        version="0.1.0",
    )
    world.consortium.sites.add(sign_request(wanted, identity))


def test_a_site_without_a_key_keeps_nobody_out(world: Any, control: FakeControl) -> None:
    """What is no key ended the thread for ever: the next hospital was never let in."""
    world.consortium.threads.begin()
    poison(world, "bad")
    known: dict[bytes, str] = {}
    world.join("a")
    error = executor.register_once(world.consortium, known)
    assert getattr(error, "code", "") == "key"
    assert control.nodes == {_key_of(world, "a"): "a"}
    world.join("b")
    executor.register_once(world.consortium, known)
    assert sorted(control.nodes.values()) == ["a", "b"]
    (trouble,) = world.consortium.threads.troubles()
    assert "The thread that registers hospitals failed 0 s ago" in trouble
    assert "is no node key: bad" in trouble
    world.consortium.sites.revoke("bad", by="Ada", why="no key")
    assert executor.register_once(world.consortium, known) is None
    assert world.consortium.threads.troubles() == []


@pytest.mark.parametrize("wrong", [KeyError("x"), RecursionError(), MemoryError(), OSError("full")])
def test_no_error_ends_the_registering(
    world: Any, monkeypatch: pytest.MonkeyPatch, wrong: Exception
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise wrong

    world.consortium.threads.begin()
    monkeypatch.setattr(executor, "register_sites", fails)
    assert executor.register_once(world.consortium, {}) is wrong
    (trouble,) = world.consortium.threads.troubles()
    assert type(wrong).__name__ in trouble


@pytest.mark.parametrize(
    "wrong",
    [KeyError("x"), httpx.ConnectError("refused"), FederationError("no"), RecursionError()],
)
def test_no_error_ends_the_rounds(
    consortium: Any, monkeypatch: pytest.MonkeyPatch, wrong: Exception
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise wrong

    monkeypatch.setattr(executor, "start_run", lambda _consortium: 7)
    monkeypatch.setattr(executor, "run_app", fails)
    assert executor.serve_once(consortium).startswith(type(wrong).__name__)


def silence(consortium: Any) -> None:
    before = time.time() - SILENT_S - 5
    os.utime(consortium.threads.folder / REGISTERING, (before, before))


def fail(consortium: Any) -> None:
    consortium.threads.failing(ROUNDS, "KeyError: '7f\x1b[2J'")


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (silence, r"The thread that registers hospitals has done nothing for 6\d s\."),
        (fail, r"The thread that gives orders failed 0 s ago: KeyError: '7f�\[2J'"),
    ],
)
def test_health_and_doctor_name_a_thread_that_is_dead_or_fails(
    consortium: Any, happens: Callable[[Any], None], said: str
) -> None:
    consortium.threads.begin()
    with served(consortium):
        assert check(consortium).level == "ok"
        happens(consortium)
        with pytest.raises(StateError, match=said) as raised:
            check(consortium)
    assert raised.value.code == "thread"
    (found,) = of_threads(consortium.threads.troubles(), log=consortium.folder / "log")
    assert (found.level, found.what) == ("problem", raised.value.message)


def test_an_interruption_that_is_over_is_no_trouble_any_more(consortium: Any) -> None:
    consortium.threads.begin()
    fail(consortium)
    before = time.time() - SILENT_S - 5
    os.utime(consortium.threads.folder / ROUNDS, (before, before))
    assert consortium.threads.troubles() == []


def test_a_disk_that_is_full_shows_as_silence(consortium: Any) -> None:
    consortium.threads.well(REGISTERING)  # there is no folder: nothing is raised
    assert consortium.threads.troubles() == []
