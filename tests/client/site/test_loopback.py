"""Nothing that is on this machine is spoken to through a proxy, whatever the environment says.

Each client of the hospital's side speaks to a server here while every variable that can name a
proxy names a closed port. A module that begins to speak to somebody fails a test until it has a
row.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

import grpc
import httpx
import pytest
import requests
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.clinic.pacs.dicomweb import fetched, session
from client.clinic.service.remote_segmentation import service
from client.clinic.watch.orthanc import Orthanc
from client.cohort.case_discovery import read_cohort
from client.runtime.supernode import going_through
from client.site.folder import Site
from client.worker import Worker
from common.doctor.tls_probe import reach
from common.errors import CaseError, FederationError
from common.process.loopback_tls import free_port
from tests import doors

ROOT: Final = Path(__file__).parents[3]
SPEAKING: Final = frozenset(
    {"httpx", "requests", "grpc", "tritonclient", "dicomweb_client", "pynetdicom", "socket"}
    | {"urllib.request", "http.client", "ftplib", "smtplib", "aiohttp", "websockets", "urllib3"}
)
SILENT: Final = {
    "client.views.diagnosis": "goes its way by common.doctor.tls_probe",
    "client.clinic.service.access": "makes credentials",
    "client.clinic.service.grpc_server": "serves",
    "client.clinic.service.tensors": "makes and reads messages",
    "client.clinic.pacs.dimse": "by sockets of its own, which know of no proxy",
    "client.review.page_process": "serves",
    "common.process.loopback_tls": "listens, looks for a free port, and makes certificates",
    "common.web.http_server": "serves",
    "common.web.prometheus": "serves",
}
"""What holds a library that could speak, and does not speak by HTTP or gRPC."""


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(json.dumps({"Last": 7, "Changes": [], "Done": True}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def grpc_port() -> Iterator[int]:
    """A gRPC server that knows no method."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


@pytest.fixture
def hospital(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a hospital whose proxy is away and which exempts nothing."""
    closed = f"http://127.0.0.1:{free_port()}"
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, closed)
        monkeypatch.setenv(name.upper(), closed)
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


def _worker(port: int, site: Site) -> object:
    """Its SuperNode, which knows no call here, is known by a certificate."""
    del port
    with (
        doors.runtime(site),
        Worker(site)._client(RuntimeTokenHttpInterceptor("token"), name="test") as client,
        pytest.raises(httpx.HTTPStatusError, match="404"),
    ):
        client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    return True


def _supernode(port: int, site: Site) -> object:
    """As in a demo, whose coordinator is on this machine."""
    assert site.proxy({"HTTPS_PROXY": "http://proxy:1"}) is None
    made = going_through(FleetHttpClient.__init__, None)
    client = type("Client", (FleetHttpClient,), {"__init__": made})(f"http://127.0.0.1:{port}")
    with client:
        return client.DeactivateNode(DeactivateNodeRequest(node_id=1))


def _orthanc(port: int, site: Site) -> object:
    Orthanc(f"http://127.0.0.1:{port}", site.folder / "place.json")
    return json.loads((site.folder / "place.json").read_text()) == {"last": 7}


def _pacs(port: int, site: Site) -> object:
    with (
        pytest.raises(CaseError, match="has no MR series"),
        fetched(f"http://localhost:{port}/dicom-web", "1.2.3"),
    ):
        pass
    return session(f"http://127.0.0.1:{port}").get(f"http://127.0.0.1:{port}/", timeout=5).ok


def _reach(port: int, site: Site) -> object:
    found = reach("127.0.0.1", port, authority=site.folder / "ca.crt", patience_s=2.0)
    return not found.port_problem


CLIENTS: dict[str, Callable[[int, Site], object]] = {
    "client.worker": _worker,
    "client.runtime.supernode": _supernode,
    "client.clinic.pacs.dicomweb": _pacs,
    "client.clinic.watch.orthanc": _orthanc,
    "common.doctor.tls_probe": _reach,
}
GRPC = "client.clinic.service.remote_segmentation"


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_reaches_this_machine_itself(
    hospital: None, port: int, site: Site, client: str
) -> None:
    assert CLIENTS[client](port, site)


def test_a_clinic_reaches_a_service_of_this_machine_itself(
    hospital: None, grpc_port: int, cohort: Path
) -> None:
    case = read_cohort(cohort).cases[0]
    with (
        pytest.raises(FederationError, match="UNIMPLEMENTED"),  # it was asked
        service(f"127.0.0.1:{grpc_port}") as segment,
    ):
        segment(case)


def test_without_our_care_each_library_asks_the_proxy(
    hospital: None, port: int, grpc_port: int
) -> None:
    url = f"http://127.0.0.1:{port}/"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    with pytest.raises(requests.exceptions.ProxyError):
        requests.get(url, timeout=5)
    channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}")
    with pytest.raises(grpc.RpcError) as refused, channel:
        channel.unary_unary("/test/Method")(b"", timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]


def imported(path: Path) -> set[str]:
    """Return the modules that the file at ``path`` imports, with those above them."""
    names: set[str] = set()
    text = path.read_text()
    if not any(name in text for name in SPEAKING):
        return names
    for node in ast.walk(ast.parse(text)):
        found: list[Any] = []
        if isinstance(node, ast.Import):
            found = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
        for name in found:
            parts = name.split(".")
            names |= {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return names


def test_who_can_speak_has_a_row() -> None:
    speaking = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for side in ("client", "common")
        for path in (ROOT / side).rglob("*.py")
        if imported(path) & SPEAKING  # a search for the words alone would find docstrings
    }
    known = {*CLIENTS, GRPC, *SILENT}
    assert speaking <= known, "speaks to somebody, and no row says that it asks no proxy"
