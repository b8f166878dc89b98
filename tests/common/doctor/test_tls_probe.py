"""Each way in which a proxy can stand on the way to the coordinator, on real sockets."""

from __future__ import annotations

import datetime as dt
import re
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from common.doctor.connectivity_report import of_door
from common.doctor.findings import Finding
from common.doctor.tls_probe import reach
from common.process.proxies import Proxy, parse_proxy
from server.consortium.provisioning import Consortium
from tests import faulty_doors, proxies
from tests.proxies import PASSWORD, USER, ConnectProxy, serving

NAME = "127.0.0.1"  # the consortium's, in its certificate
OUTSIDE = f"{NAME}:4433"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    return proxies.authority(tmp_path_factory.mktemp("hospital"), "proxy.test")


def ask(
    consortium: Consortium, proxy: Proxy, *, resolve: object = None, patience_s: float = 0.5
) -> list[Finding]:
    options: dict[str, object] = {} if resolve is None else {"resolve": resolve}
    found = reach(
        NAME,
        4433,
        authority=consortium.folder / "ca.crt",
        patience_s=patience_s,
        proxy=proxy,
        **options,  # type: ignore[arg-type]
    )
    return of_door(found, whose="this site's kit", now=dt.datetime.now(dt.UTC))


def levels(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(one.level, one.about) for one in findings]


def named(proxy: ConnectProxy, **changes: object) -> Proxy:
    made = parse_proxy(proxy.url, source="site.toml")
    return replace(made, **changes)  # type: ignore[arg-type]


WELL = [("ok", "proxy"), ("ok", "tls"), ("ok", "clock")]


def test_an_open_proxy_resolves_the_name_and_lets_pass(consortium: Consortium) -> None:
    def never(host: str, _: int) -> tuple[str, ...]:
        assert host == "proxy.test"  # never the coordinator's
        return ("127.0.0.1",)

    with (
        faulty_doors.tls(consortium.folder) as port,
        serving(ConnectProxy({OUTSIDE: ("127.0.0.1", port)})) as proxy,
    ):
        found = ask(consortium, named(proxy, host="proxy.test"), resolve=never)
    assert levels(found) == WELL
    assert found[0].what == (
        f"The proxy http://proxy.test:{proxy.port} (site.toml) lets 127.0.0.1 port 4433 pass."
    )
    assert proxy.asked == [f"CONNECT {OUTSIDE} HTTP/1.1"]


def test_a_proxy_with_a_password(consortium: Consortium) -> None:
    with faulty_doors.tls(consortium.folder) as port:
        ways = {OUTSIDE: ("127.0.0.1", port)}
        with serving(ConnectProxy(ways, user=USER, password=PASSWORD)) as proxy:
            found = ask(consortium, named(proxy, user=USER, password=PASSWORD))
    assert levels(found) == WELL
    assert PASSWORD not in str(found)


def test_a_proxy_that_is_spoken_to_by_tls(
    consortium: Consortium, hospital: tuple[Path, ssl.SSLContext]
) -> None:
    authority, tls = hospital
    with (
        faulty_doors.tls(consortium.folder, ahead_s=3630.0) as port,
        serving(ConnectProxy({OUTSIDE: ("127.0.0.1", port)}, tls=tls)) as proxy,
    ):
        found = ask(consortium, named(proxy, authority=authority))
    assert levels(found) == [("ok", "proxy"), ("ok", "tls"), ("problem", "clock")]


REFUSALS: dict[str, tuple[ConnectProxy, dict[str, object], str, str]] = {
    "407 without credentials": (
        ConnectProxy(user=USER, password=PASSWORD),
        {},
        "wants a user and a password, and none is set: HTTP/1.1 407 Proxy Authentication Required.",
        "proxy_password_file",
    ),
    "407 with wrong credentials": (
        ConnectProxy(user=USER, password=PASSWORD),
        {"user": USER, "password": "wr0ng"},
        "does not take the user and the password that are set: HTTP/1.1 407",
        "Correct them in site.toml",
    ),
    "407 of another kind": (
        ConnectProxy(user=USER, password=PASSWORD, scheme="NTLM"),
        {"user": USER, "password": PASSWORD + "x"},
        "wants NTLM, which gliofed does not speak: HTTP/1.1 407",
        "with Basic",
    ),
    "403": (
        ConnectProxy(),
        {},
        "refuses the way to 127.0.0.1 port 4433: HTTP/1.1 403 Forbidden.",
        "many allow port 443 alone",
    ),
    "a web server": (
        ConnectProxy(says="405 Method Not Allowed"),
        {},
        "refuses the way to 127.0.0.1 port 4433: HTTP/1.1 405 Method Not Allowed.",
        "CONNECT",
    ),
    "a closed port behind it": (
        ConnectProxy({OUTSIDE: ("127.0.0.1", 1)}),
        {},
        "could not reach 127.0.0.1 port 4433: HTTP/1.1 502 Bad Gateway.",
        "Ask the coordinator",
    ),
    "no answer behind it": (
        ConnectProxy(says="504 Gateway Timeout"),
        {},
        "could not reach 127.0.0.1 port 4433: HTTP/1.1 504 Gateway Timeout.",
        "by this port",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_proxy_that_does_not_let_pass(consortium: Consortium, refusal: str) -> None:
    made, credentials, words, do = REFUSALS[refusal]
    with serving(replace(made, asked=[])) as proxy:
        (found,) = ask(consortium, named(proxy, **credentials))
    assert (found.level, found.about) == ("problem", "proxy")
    assert words in found.what
    assert do in found.do
    assert f"http://127.0.0.1:{proxy.port}" in found.what
    assert not {PASSWORD, "wr0ng"} & {*found.what.split(), *found.do.split()}


@pytest.mark.parametrize(
    ("door", "scheme", "words"),
    [
        (faulty_doors.closed, "http", "refuses connections"),
        (faulty_doors.swallowing, "http", "does not answer within"),
        (faulty_doors.silent, "http", "takes the connection and says nothing"),
        (faulty_doors.plain, "http", "does not answer by HTTP|closes the connection"),
        (faulty_doors.plain, "https", "does not speak TLS"),
        (faulty_doors.silent, "https", "does not speak TLS"),
    ],
)
def test_a_proxy_that_is_none_is_named_soon(
    consortium: Consortium,
    door: Callable[[], AbstractContextManager[int]],
    scheme: str,
    words: str,
) -> None:
    began = time.monotonic()
    with door() as port:
        proxy = parse_proxy(f"{scheme}://127.0.0.1:{port}", source="HTTPS_PROXY")
        (found,) = ask(consortium, proxy)
    assert time.monotonic() - began < 3.0
    assert (found.level, found.about) == ("problem", "proxy")
    assert re.search(words, found.what)
    assert "HTTPS_PROXY" in found.do


def test_a_proxy_whose_name_nobody_knows(consortium: Consortium) -> None:
    (found,) = ask(consortium, parse_proxy("http://proxy.invalid:3128", source="site.toml"))
    assert (found.level, found.about) == ("problem", "proxy")
    assert "The name of the proxy http://proxy.invalid:3128 could not be resolved" in found.what


def test_a_tls_proxy_that_is_spoken_to_without(
    consortium: Consortium, hospital: tuple[Path, ssl.SSLContext]
) -> None:
    with serving(ConnectProxy(tls=hospital[1])) as proxy:
        (found,) = ask(consortium, named(proxy, scheme="http"))
    assert "without a word" in found.what or "by HTTP" in found.what
    assert "with TLS, write https://" in found.do


def test_a_tls_proxy_of_an_authority_that_is_not_trusted(
    consortium: Consortium, hospital: tuple[Path, ssl.SSLContext]
) -> None:
    authority, tls = hospital
    with serving(ConnectProxy(tls=tls)) as proxy:
        (found,) = ask(consortium, named(proxy))
        (other,) = ask(consortium, named(proxy, authority=consortium.folder / "ca.crt"))
        (name,) = ask(
            consortium,
            named(proxy, host="other.test", authority=authority),
            resolve=lambda *_: ("127.0.0.1",),
        )
    assert "is signed by CN=Hospital proxy CA, not by those that this system trusts" in found.what
    assert "proxy_ca" in found.do
    assert "not by proxy_ca in site.toml" in other.what
    assert "is not for other.test" in name.what


def test_a_proxy_that_opens_tls_is_named_with_who_signs(
    consortium: Consortium, hospital: tuple[Path, ssl.SSLContext]
) -> None:
    made = ConnectProxy({OUTSIDE: ("127.0.0.1", 1)}, opens=hospital[1])
    with serving(made) as proxy:
        found = ask(consortium, named(proxy))
    assert levels(found) == [("ok", "proxy"), ("problem", "tls")]
    assert f"The proxy {proxy.url} opens TLS" in found[1].what
    assert "by CN=Hospital proxy CA" in found[1].what
    assert "127.0.0.1 port 4433 unopened" in found[1].do


def test_a_proxy_that_lets_pass_and_then_says_nothing(consortium: Consortium) -> None:
    with (
        faulty_doors.silent() as port,
        serving(ConnectProxy({OUTSIDE: ("127.0.0.1", port)})) as proxy,
    ):
        found = ask(consortium, named(proxy))
    assert levels(found) == [("ok", "proxy"), ("problem", "tls")]
    assert "nothing comes" in found[1].what


def test_a_way_that_is_closed_as_soon_as_tls_begins(consortium: Consortium) -> None:
    with serving(ConnectProxy(says="200 Connection established")) as proxy:
        found = ask(consortium, named(proxy))
    assert levels(found) == [("ok", "proxy"), ("problem", "tls")]
    assert "closed as soon as TLS begins" in found[1].what
