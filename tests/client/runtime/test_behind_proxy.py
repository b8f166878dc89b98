"""A hospital whose network is left through a proxy alone: settings, SuperNode and doctor.

The coordinator's name resolves nowhere but at the proxy. SuperNode and doctor must go one way.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.commands import supervisor
from client.runtime.supernode import explaining, going_through, leaving
from client.site.folder import Site
from client.views import diagnosis
from client.views.compute_check import Trial
from client.views.diagnosis import of_contact, of_worker
from common.doctor.findings import Finding
from common.doctor.machine_checks import of_no_proxy, of_taken_way
from common.errors import StateError
from common.records.atomic_files import held, read_json, write_json, write_secret
from server.consortium import provisioning
from server.consortium.provisioning import Consortium
from tests import consortia, proxies
from tests.proxies import PASSWORD, USER, ConnectProxy, serving

OUTSIDE = "fl.example.test:9443"


@pytest.fixture(autouse=True)
def _trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that went well: a real one takes seconds, and ``test_readiness`` has it."""
    monkeypatch.setattr(diagnosis, "try_out", lambda _folder: Trial(0, "", 1.0))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    return proxies.authority(tmp_path_factory.mktemp("hospital"))


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    host, _, port = OUTSIDE.partition(":")
    return provisioning.init(tmp_path / "coordinator", name="N", host=host, port=int(port))


class Nothing(BaseHTTPRequestHandler):
    """Answers 404, as the gateway does to a stranger."""

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def door(consortium: Consortium) -> Iterator[dict[str, proxies.Target]]:
    """The coordinator, as the proxy knows it."""
    folder = consortium.folder
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "keys" / "server.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield {OUTSIDE: ("127.0.0.1", server.server_address[1])}
    server.shutdown()
    thread.join()
    server.server_close()


def settle(site: Site, **values: str) -> Site:
    """Write ``[network]`` of site.toml as a person would."""
    for name, value in values.items():
        consortia.edit_to(site.folder, f'\n{name} = ""\n', f'\n{name} = "{value}"\n')
    return Site.open(site.folder)


def with_password(site: Site, url: str, password: str = PASSWORD) -> Site:
    write_secret(site.folder / "keys" / "proxy.password", f"{password}\n".encode())
    return settle(site, proxy_password_file="keys/proxy.password", proxy_user=USER, proxy=url)


@dataclass(frozen=True)
class World:
    """What a proxy needs, and how a site is settled for it."""

    site: Site
    authority: Path
    tls: ssl.SSLContext


Settle = Callable[[World, ConnectProxy], Site]

BEHIND: dict[str, tuple[dict[str, Any], Settle]] = {
    "open, in site.toml": ({}, lambda w, p: settle(w.site, proxy=p.url)),
    "open, in the environment": ({}, lambda w, _: w.site),
    "with a password": (
        {"user": USER, "password": PASSWORD},
        lambda w, p: with_password(w.site, p.url),
    ),
    "with its own CA": (
        {"tls": True},
        lambda w, p: settle(w.site, proxy_ca=str(w.authority), proxy=p.url),
    ),
}


def call(site: Site, authority: Path) -> Exception:
    """Call the coordinator as the SuperNode does; return what comes of it."""
    proxy = site.proxy(os.environ)
    client = type(
        "Client", (FleetHttpClient,), {"__init__": going_through(FleetHttpClient.__init__, proxy)}
    )
    with (
        client.from_server_address(OUTSIDE, False, authority.read_bytes(), []) as made,
        pytest.raises((httpx.HTTPError, ssl.SSLError)) as caught,
    ):
        made.DeactivateNode(DeactivateNodeRequest(node_id=1))
    return caught.value


def problems(found: list[Finding]) -> list[str]:
    return [f"{one.what} {one.do}" for one in found if one.level == "problem"]


@pytest.mark.parametrize("kind", BEHIND)
def test_supernode_and_doctor_go_through_the_proxy(
    site: Site,
    consortium: Consortium,
    door: dict[str, proxies.Target],
    hospital: tuple[Path, ssl.SSLContext],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    options, settled = BEHIND[kind]
    authority, tls = hospital
    made = ConnectProxy(door, **{**options, **({"tls": tls} if "tls" in options else {})})
    with serving(made) as proxy:
        if "environment" in kind:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        north = settled(World(site, authority, tls), proxy)
        answer = call(north, consortium.folder / "ca.crt")
        assert isinstance(answer, httpx.HTTPStatusError)
        assert answer.response.status_code == 404  # of the door behind it
        found = diagnosis.diagnose(north, patience_s=2.0)
    assert proxy.asked == [f"CONNECT {OUTSIDE} HTTP/1.1"] * 2
    assert problems(found) == []
    assert {"proxy", "tls", "clock"} <= {one.about for one in found}
    assert "name" not in {one.about for one in found}  # it is the proxy's to resolve
    assert PASSWORD not in str(found)


def test_a_wrong_password_is_one_problem(
    site: Site, consortium: Consortium, door: dict[str, proxies.Target]
) -> None:
    with serving(ConnectProxy(door, user=USER, password=PASSWORD)) as proxy:
        north = with_password(site, proxy.url, "wr0ng")
        answer = call(north, consortium.folder / "ca.crt")
        found = diagnosis.diagnose(north, patience_s=2.0)
    assert isinstance(answer, httpx.ProxyError)
    assert str(answer) == "407 Proxy Authentication Required"
    (said,) = problems(found)
    assert "does not take the user and the password that are set" in said
    assert "wr0ng" not in str(found)


def test_a_proxy_that_opens_tls_gets_nothing(
    site: Site,
    consortium: Consortium,
    door: dict[str, proxies.Target],
    hospital: tuple[Path, ssl.SSLContext],
) -> None:
    with serving(ConnectProxy(door, opens=hospital[1])) as proxy:
        north = settle(site, proxy=proxy.url)
        answer = call(north, consortium.folder / "ca.crt")
        found = diagnosis.diagnose(north, patience_s=2.0)
    assert isinstance(answer, httpx.ConnectError)
    assert "certificate verify failed" in str(answer)
    (said,) = problems(found)
    assert "opens TLS: the certificate that comes is not signed by the authority" in said


def test_no_proxy_exempts_the_coordinator_and_doctor_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{USER}:{PASSWORD}@proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", "example.test")
    assert site.proxy(os.environ) is None
    found = diagnosis.diagnose(site, patience_s=0.5)
    assert any("which NO_PROXY exempts" in one.what for one in found)
    assert any("if this network is left through a proxy" in one.do.lower() for one in found)
    assert PASSWORD not in str(found)


UNUSABLE: dict[str, tuple[dict[str, str], str]] = {
    "no scheme": ({"proxy": "proxy:3128"}, "write scheme, host and port: http://proxy:3128"),
    "no port": ({"proxy": "http://proxy"}, "write scheme, host and port: http://proxy:80"),
    "SOCKS": ({"proxy": "socks5://proxy:1080"}, "of the kind socks5"),
    "no host": ({"proxy": "http://:3128"}, "proxy names no proxy"),
    "a password in the open": (
        {"proxy": f"http://{USER}:{PASSWORD.replace('@', '%40')}@proxy:3128"},
        "the password into a file",
    ),
    "a user without a password": (
        {"proxy_user": USER, "proxy": "http://proxy:3128"},
        "proxy_user and proxy_password_file go together",
    ),
    "an authority for nothing": (
        {"proxy_ca": "ca.pem", "proxy": "http://proxy:3128"},
        "spoken to by TLS",
    ),
    "a user of no proxy": ({"proxy_user": USER}, "are of a proxy"),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_settings_that_make_no_sense_are_named(site: Site, fault: str) -> None:
    values, words = UNUSABLE[fault]
    for name, value in values.items():
        consortia.edit_to(site.folder, f'{name} = ""', f'{name} = "{value}"')
    with pytest.raises(StateError) as caught:
        Site.open(site.folder)
    assert words in str(caught.value)
    assert "network" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_password_is_a_secret_file(site: Site) -> None:
    north = with_password(site, "http://proxy:3128")
    path = north.folder / "keys" / "proxy.password"
    proxy = north.proxy({})
    assert proxy is not None
    assert (proxy.user, proxy.password) == (USER, PASSWORD)
    path.chmod(0o640)
    with pytest.raises(StateError, match=r"Others than its owner .* chmod 600"):
        north.proxy({})
    assert any(f"chmod 600 {path}" in one for one in problems(diagnosis.diagnose(north)))
    path.unlink()
    with pytest.raises(StateError, match="cannot be read: No such file"):
        supervisor.children(north)


def test_an_authority_that_is_missing_is_named(site: Site) -> None:
    north = settle(site, proxy_ca="hospital.pem", proxy="https://proxy:3128")
    with pytest.raises(StateError, match=r"authority .* is missing"):
        north.proxy({})


def test_settings_come_before_the_environment(site: Site) -> None:
    north = settle(site, proxy="http://proxy:3128")
    proxy = north.proxy({"HTTPS_PROXY": "http://other:1", "NO_PROXY": "*"})
    assert str(proxy) == "http://proxy:3128"


def test_no_command_holds_the_password_and_one_child_is_told_of_proxies(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://env:1")
    north = with_password(site, "http://proxy:3128")
    node, worker = supervisor.children(north)
    assert node.environment["HTTPS_PROXY"] == "http://env:1"
    assert "::1" in node.environment["NO_PROXY"].split(",")
    assert not any("proxy" in name.lower() for name in worker.environment)
    assert PASSWORD not in str([node, worker])
    assert north.folder / "keys" / "proxy.password" in node.watches


def test_the_supernode_writes_its_way_down_and_forgets_the_environment(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "http_proxy", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # restored after the test
    monkeypatch.setenv("HTTPS_PROXY", f"http://{USER}:{PASSWORD.replace('@', '%40')}@proxy:3128")
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy:1080")
    proxy = leaving(site.folder)
    assert proxy is not None
    assert proxy.password == PASSWORD
    assert not {"HTTPS_PROXY", "http_proxy", "ALL_PROXY"} & set(os.environ)
    assert read_json(site.way, what="way") == {"proxy": "http://proxy:3128"}


def test_doctor_names_a_way_that_is_not_the_supernodes(site: Site) -> None:
    write_json(site.way, {"proxy": ""})
    north = settle(site, proxy="http://proxy.invalid:3128")
    with held(site.lock, what="it runs"):
        found = diagnosis.diagnose(north, patience_s=0.5)
    (said,) = [one for one in found if "The SuperNode that runs goes without a proxy" in one.what]
    assert "start `gliofed-site run` anew" in said.do


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (httpx.ProxyError("502 Bad Gateway"), httpx.ConnectError, "The proxy says: 502"),
        (httpx.ProxyError("504 Gateway Timeout"), httpx.ConnectError, "The proxy says: 504"),
        (httpx.ProxyError("407 Authenticate"), httpx.ProxyError, "The proxy says: 407"),
        (httpx.ConnectError("[Errno 111] refused"), httpx.ConnectError, "[Errno 111] refused"),
        (httpx.ReadTimeout(""), httpx.ReadTimeout, "ReadTimeout"),
    ],
)
def test_why_a_call_failed_is_said_once(
    capsys: pytest.CaptureFixture[str],
    error: httpx.TransportError,
    raised: type[Exception],
    said: str,
) -> None:
    fails = [True, True, False, True]

    def intercept(*_: object) -> httpx.Response:
        if fails.pop(0):
            raise error
        return httpx.Response(200)

    wrapped = explaining(intercept)
    for _ in range(2):
        with pytest.raises(raised):
            wrapped(None, None, None)
    line = f"ERROR : The coordinator was not reached. {said}"
    assert capsys.readouterr().err.count(line) == 1
    assert wrapped(None, None, None).status_code == 200
    with pytest.raises(raised):
        wrapped(None, None, None)
    assert capsys.readouterr().err.count(line) == 1


WORDS = (
    'time=2026-01-01T00:00:00Z level=error process=worker event="The SuperNode does not answer."'
)


@pytest.mark.parametrize(
    ("found", "level", "words"),
    [
        (of_contact(ran_s=9e3, silent_s=4, words="x"), "ok", "last answered 4 s ago"),
        (of_contact(ran_s=20, silent_s=9e3, words="x"), "ok", "has only begun"),
        (of_contact(ran_s=20, silent_s=None, words="x"), "ok", "has never answered"),
        (
            of_contact(ran_s=9e3, silent_s=7e3, words="407 Authenticate"),
            "problem",
            "last answered 1 h 56 min ago, though the site runs. The SuperNode's last words: 407",
        ),
        (of_contact(ran_s=9e3, silent_s=None, words=""), "problem", "never answered, though"),
    ],
)
def test_contact(found: Finding, level: str, words: str) -> None:
    assert (found.level, found.about) == (level, "contact")
    assert words in found.what


@pytest.mark.parametrize(
    ("words", "ago_s", "levels"),
    [
        (WORDS, 30, ["problem"]),
        (WORDS.replace("error", "warning"), 30, ["warning"]),
        ('{"event": "The process ended by an error.", "level": "critical"}', 30, ["problem"]),
        (WORDS, 5000, []),  # of yesterday, or of the run before
        (WORDS, 2000, []),
        (WORDS.replace("error", "info"), 30, []),
        ("", 30, []),
    ],
)
def test_the_workers_last_words(words: str, ago_s: float, levels: list[str]) -> None:
    assert [one.level for one in of_worker(words, ago_s=ago_s, ran_s=1000)] == levels


@pytest.mark.parametrize(
    ("environment", "host", "reached", "level", "words"),
    [
        ({"HTTP_PROXY": "http://p:1"}, "fl.example.org", False, "warning", "is TLS, for which"),
        ({"HTTP_PROXY": "http://p:1"}, "fl.example.org", True, "ok", "is TLS, for which"),
        ({"HTTPS_PROXY": "http://p:1"}, "127.0.0.1", False, "ok", "this machine"),
        (
            {"HTTPS_PROXY": "http://p:1", "no_proxy": ".example.org"},
            "fl.example.org",
            False,
            "ok",
            "NO_PROXY exempts",
        ),
    ],
)
def test_variables_that_do_not_apply(
    environment: dict[str, str], host: str, reached: bool, level: str, words: str
) -> None:
    (found,) = of_no_proxy(environment, host=host, port=443, reached=reached)
    assert found.level == level
    assert words in found.what


def test_nothing_is_said_where_nothing_is_set() -> None:
    assert of_no_proxy({"NO_PROXY": "x", "HTTP_PROXY": ""}, host="x", port=1, reached=False) == []
    assert of_taken_way("http://proxy:1", "http://proxy:1") == []
