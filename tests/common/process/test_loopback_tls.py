"""Two processes of one user know each other; every other user of the machine is kept out."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from common.errors import StateError
from common.process.loopback_tls import HOST, LoopbackAddress
from common.web.http_server import in_place_of_uvicorn


async def _answers(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"an order"})


def made(folder: Path) -> LoopbackAddress:
    return LoopbackAddress(folder, 0, name="SuperNode", restart="gliofed-site run").create()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackAddress]:
    """A program that serves as Flower's SuperNode does, with a certificate and asking for none."""
    at, listening = made(tmp_path_factory.mktemp("site") / "runtime").bound()
    program = in_place_of_uvicorn(at.server_context(), listening)
    options = {"host": HOST, "port": 9, "ssl_certfile": "x", "ssl_keyfile": "y", "workers": 1}
    server = program.Server(program.Config(app=_answers, **options))
    thread = Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield at
    server.should_exit = True
    thread.join()


def asked(at: LoopbackAddress, verify: ssl.SSLContext | bool, scheme: str = "https") -> str:
    return httpx.get(f"{scheme}://{at.address}/", verify=verify, trust_env=False, timeout=5).text


def _nothing_shown(at: LoopbackAddress, _: Path) -> str:
    return asked(at, ssl.create_default_context(cafile=str(at.certificate)))


def _another_certificate(at: LoopbackAddress, tmp_path: Path) -> str:
    context = ssl.create_default_context(cafile=str(at.certificate))
    other = made(tmp_path / "other")
    context.load_cert_chain(other.certificate, other.key)
    return asked(at, context)


def _one_that_it_signed(at: LoopbackAddress, tmp_path: Path) -> str:
    """By a key that is not the certificate's: what is self-made under the same name."""
    other = made(tmp_path / at.folder.name)
    context = ssl.create_default_context(cafile=str(at.certificate))
    context.load_cert_chain(other.certificate, other.key)
    return asked(at, context)


def _no_tls(at: LoopbackAddress, _: Path) -> str:
    return asked(at, False, "http")


def test_the_other_end_is_served(served: LoopbackAddress) -> None:
    assert asked(served, served.client_context()) == "an order"


@pytest.mark.parametrize(
    "stranger", [_nothing_shown, _another_certificate, _one_that_it_signed, _no_tls]
)
def test_a_stranger_is_not(
    served: LoopbackAddress, tmp_path: Path, stranger: Callable[[LoopbackAddress, Path], str]
) -> None:
    with pytest.raises((httpx.TransportError, ssl.SSLError)):
        stranger(served, tmp_path)


def test_who_stands_in_the_servers_place_is_not_spoken_to(
    served: LoopbackAddress, tmp_path: Path
) -> None:
    """Another user has taken the port, and shows a certificate of the same name."""
    mine = made(tmp_path / "runtime")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        asked(replace(mine, port=served.port), mine.client_context())


def test_only_the_owner_reads_the_key(tmp_path: Path) -> None:
    at = made(tmp_path / "runtime")
    assert at.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in at.folder.iterdir()} == {0o600}


def test_a_taken_port_is_left_for_another_and_noted(tmp_path: Path) -> None:
    at = made(tmp_path / "runtime")
    with socket.create_server((HOST, at.port)):
        now, listening = at.known().bound()
    with listening:
        assert now.port == listening.getsockname()[1] != at.port
        assert at.known() == now


def test_each_start_makes_another_key(tmp_path: Path) -> None:
    first = made(tmp_path / "runtime").certificate.read_bytes()
    assert made(tmp_path / "runtime").certificate.read_bytes() != first


def test_a_program_that_serves_in_another_way_fails(tmp_path: Path) -> None:
    at, listening = made(tmp_path / "runtime").bound()
    with listening:
        with pytest.raises(AttributeError):
            in_place_of_uvicorn(at.server_context(), listening).main()
        with pytest.raises(OSError, match="in use"):
            socket.create_server((HOST, at.port), reuse_port=False)


def test_what_is_missing_is_said_with_what_to_do(tmp_path: Path) -> None:
    at = LoopbackAddress(tmp_path / "runtime", 0, name="SuperNode", restart="gliofed-site run")
    with pytest.raises(StateError, match="where the SuperNode listens") as unknown:
        at.known()
    assert "gliofed-site run" in unknown.value.do
    at.create().key.unlink()
    with pytest.raises(StateError, match="cannot be read") as damaged:
        at.client_context()
    assert damaged.value.code == unknown.value.code == "not-serving"
