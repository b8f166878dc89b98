"""What `serve` looks at before it starts anything, what it starts, and what it says meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.errors import StateError
from common.process.loopback_tls import free_port
from server.commands import supervisor
from server.consortium import certificates, key_rotation, provisioning
from server.consortium.provisioning import Consortium
from server.consortium.superlink_address import Hub
from server.reporting.dashboard.listen_address import Place
from server.transport import flower_fleet, gateway
from tests import doors, faulty_doors
from tests.certificates import expired, expiring


@pytest.fixture
def own(tmp_path: Path) -> Consortium:
    return provisioning.init(tmp_path / "own", name="Own", host="127.0.0.1", port=free_port())


def test_ports_that_are_free_are_no_news(own: Consortium) -> None:
    supervisor.probe(own, dashboard=Place("127.0.0.1", free_port()), metrics_port=free_port())


TAKEN: dict[str, tuple[Callable[[int], dict[str, Any]], str]] = {
    "gateway": (lambda _: {}, "gateway"),
    "dashboard": (lambda port: {"dashboard": Place("127.0.0.1", port)}, "dashboard"),
    "metrics": (lambda port: {"metrics_port": port}, "metrics' page"),
}


@pytest.mark.parametrize("what", TAKEN)
def test_a_port_that_is_taken_is_said_before_anything_starts(
    own: Consortium, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(supervisor, "_DYING_S", 0.0)
    asked, name = TAKEN[what]
    with faulty_doors.listening(own.settings.port if what == "gateway" else 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(StateError) as refused:
            supervisor.probe(own, **asked(port))
    assert refused.value.code == "port"
    assert refused.value.message == (
        f"The {name} cannot listen at 127.0.0.1:{port}: another process has that port."
    )
    assert "--listen" in refused.value.do or "give `serve` another one" in refused.value.do


def test_the_ports_of_a_serve_that_was_just_killed_are_waited_for(
    own: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_doors.listening(own.settings.port) as listener:
        monkeypatch.setattr(supervisor.time, "sleep", lambda _s: listener.close())
        supervisor.probe(own)


def test_each_process_learns_the_private_port_from_one_place(own: Consortium) -> None:
    made = supervisor.children(own)
    assert [child.name for child in made] == ["superlink", "gateway", "executor"]
    port = str(own.hub.port)
    assert not any(port in word for child in made for word in child.command)
    watches = {child.name: child.watches for child in made}
    assert own.hub.noted in watches["gateway"]
    assert own.hub.noted in watches["executor"]
    # Else a renewed certificate would interrupt the rounds.
    watched = [path for paths in watches.values() for path in paths]
    assert not {own.folder / "server.crt", own.folder / "ca.crt"} & set(watched)
    supervisor.children(own)
    assert own.hub.reached_s_ago() is None


def test_an_expired_certificate_is_said_and_served_so_that_it_can_be_renewed(
    own: Consortium,
) -> None:
    """A container that does not start is one in which nothing can be renewed."""
    (own.folder / "server.crt").write_bytes(expired(own.folder))
    assert supervisor.children(own)
    for _ in range(2):  # as often as it is started
        said: list[str] = []
        supervisor.CertificateWatch(own, say=said.append)()
        assert "expired on 20" in said[0]
        assert "rotate-certificate" in said[0]
    assert len(own.journal.events("certificate expired")) == 1


@pytest.mark.parametrize(("place", "again"), [("8470", False), ("192.0.2.1:8470", True)])
def test_a_dashboard_by_tls_takes_a_new_certificate(
    own: Consortium, place: str, again: bool
) -> None:
    *_, dashboard = supervisor.children(own, dashboard=place)
    assert (own.folder / "server.crt" in dashboard.watches) is again


def test_the_days_are_said_once_a_day_and_the_last_one_is_in_the_journal(own: Consortium) -> None:
    said: list[str] = []
    clock = [0.0]
    watch = supervisor.CertificateWatch(own, say=said.append, clock=lambda: clock[0])
    certificate = own.folder / "server.crt"

    def hours(count: int) -> list[str]:
        said.clear()
        for _ in range(count):
            clock[0] += 3600
            watch()
        return said

    assert hours(30) == []
    certificate.write_bytes(expiring(own.folder, days=7))
    assert len(hours(48)) == 2
    assert "rotate-certificate" in said[0]
    certificate.write_bytes(expired(own.folder))
    assert len(hours(1)) == 1
    assert len(hours(30)) == 1
    (entry,) = own.journal.events("certificate expired")
    assert entry.facts["since"] == certificates.serving_until(own.folder).isoformat()
    key_rotation.renew_certificate(own, by="Ada")
    assert hours(30) == []


def test_a_certificate_that_cannot_be_read_ends_nothing(own: Consortium) -> None:
    said: list[str] = []
    (own.folder / "server.crt").write_bytes(b"")
    supervisor.CertificateWatch(own, say=said.append)()
    assert "cannot be read" in said[0]


def test_calls_to_flower_ask_no_proxy(
    own: Consortium, proxied: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that is out of reach would show as a ConnectError."""
    with doors.hub(own):
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            flower_fleet.start_run(own)
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            flower_fleet.presence(own)
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            flower_fleet.run_app(own, 1, lambda *_: None, patience_s=5.0)
        monkeypatch.setattr(flower_fleet, "_acquire", lambda *_, **__: "token")
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            flower_fleet.run_app(own, 1, lambda *_: None, patience_s=5.0)


def test_the_gateways_calls_ask_no_proxy(
    own: Consortium, proxied: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[httpx.AsyncClient] = []

    def application(upstream: httpx.AsyncClient, **_: Any) -> None:
        made.append(upstream)

    async def ask() -> int:
        async with made[0] as upstream:
            return (await upstream.get("/")).status_code

    monkeypatch.setattr(gateway, "application", application)
    monkeypatch.setattr(gateway.http_server, "run", lambda _, sockets: sockets[0].close())
    with doors.hub(own):
        gateway.serve(own)
        assert asyncio.run(ask()) == 404


def test_the_executor_is_heard_of_only_while_it_reaches_the_superlink(own: Consortium) -> None:
    hub = Hub.make(own.folder / "flower")

    class Client:
        def __init__(self, error: Exception | None) -> None:
            self.error = error

        def SendTaskHeartbeat(self, _: object) -> None:  # noqa: N802
            if self.error:
                raise self.error

    down: Any = Client(httpx.ConnectError("refused"))
    up: Any = Client(None)
    flower_fleet._beat(down, hub)
    assert hub.reached_s_ago() is None
    flower_fleet._beat(up, hub)
    assert hub.reached_s_ago() is not None
