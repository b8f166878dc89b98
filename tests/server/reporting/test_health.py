"""A health check says well only of a consortium that can give orders."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from common.errors import StateError
from common.records.atomic_files import held, write_bytes
from server.consortium import certificates
from server.consortium.provisioning import Consortium
from server.reporting.health import SILENT_S, check
from tests.certificates import expired, expiring
from tests.doors import door, hub

Part = Callable[[Consortium], AbstractContextManager[None]]


@contextmanager
def executor(consortium: Consortium) -> Iterator[None]:
    consortium.hub.reached()
    yield


PARTS: dict[str, Part] = {
    "supervisor": lambda one: held(one.lock, what="served"),
    "gateway": lambda one: door(one, one.settings.port),
    "superlink": hub,
    "executor": executor,
}


@contextmanager
def served(consortium: Consortium, *, without: str = "") -> Iterator[None]:
    with ExitStack() as running:
        for name, start in PARTS.items():
            if name == without == "superlink":
                with hub(consortium):  # it was there, and is gone
                    pass
            elif name != without:
                running.enter_context(start(consortium))
        yield


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("supervisor", "Nothing serves"),
        ("gateway", r"The gateway does not answer at 127.0.0.1:\d+ \(refused\)"),
        ("superlink", r"The SuperLink does not answer at 127.0.0.1:\d+ \(refused\)"),
        ("executor", "The executor has not reached the SuperLink yet"),
    ],
)
def test_a_part_that_is_absent_is_named(consortium: Consortium, absent: str, words: str) -> None:
    with served(consortium, without=absent), pytest.raises(StateError, match=words) as raised:
        check(consortium)
    assert raised.value.code == "not-serving"


def test_a_consortium_that_is_served_is_well(consortium: Consortium) -> None:
    with served(consortium):
        assert check(consortium).level == "ok"


def test_no_proxy_is_asked_for_this_machines_own_doors(
    consortium: Consortium, proxied: None
) -> None:
    with served(consortium):
        assert check(consortium).level == "ok"


def test_an_executor_that_lost_the_superlink_is_named_with_its_last_words(
    consortium: Consortium,
) -> None:
    with served(consortium):
        log = consortium.folder / "flower" / "log" / "executor.log"
        write_bytes(log, b"The run was interrupted.\nhttpx.ConnectError: refused\n")
        (reached,) = (consortium.folder / "flower" / "hub").glob("reached")
        before = time.time() - SILENT_S - 1
        os.utime(reached, (before, before))
        with pytest.raises(StateError, match=r"for 6\d s: no order can be given.*ConnectError"):
            check(consortium)


def test_another_program_at_the_gateways_port_is_named(consortium: Consortium) -> None:
    with served(consortium):
        certificates.make(consortium.folder, name="Another", host="localhost")
        with pytest.raises(StateError, match="another program answers there"):
            check(consortium)


def test_the_certificates_days_are_said_before_and_after_the_last(consortium: Consortium) -> None:
    certificate = consortium.folder / "server.crt"
    with served(consortium):
        certificate.write_bytes(expiring(consortium.folder, days=7))
        found = check(consortium)
        assert found.level == "warning"
        assert "rotate-certificate" in found.do
        certificate.write_bytes(expired(consortium.folder))
        with pytest.raises(StateError, match=r"expired on .* rotate-certificate") as raised:
            check(consortium)
    assert raised.value.code == "certificate"


@pytest.mark.parametrize("host", ["LOCALHOST", "::1", "0:0:0:0:0:0:0:1"])
def test_a_host_is_well_however_it_is_written(consortium: Consortium, host: str) -> None:
    """Where the gateway truly listens is in test_gateway.py."""
    from server.consortium.provisioning import ConsortiumSettings

    settings = ConsortiumSettings.model_validate({**consortium.settings.model_dump(), "host": host})
    assert settings.host in {"localhost", "::1"}
    assert Consortium(consortium.folder, settings).listening.here in {"127.0.0.1", "::1"}
