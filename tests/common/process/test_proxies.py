"""Which proxy applies, as curl reads the environment, and what children get of it."""

from __future__ import annotations

import pytest

from common.errors import StateError
from common.process import proxies
from common.process.proxies import exempts, from_environment, is_loopback, parse_proxy

SET = {"HTTPS_PROXY": "http://proxy:3128"}


@pytest.mark.parametrize(
    ("environment", "host", "found"),
    [
        ({}, "fl.example.org", None),
        (SET, "fl.example.org", "http://proxy:3128"),
        ({"https_proxy": "proxy"}, "fl.example.org", "http://proxy:80"),
        ({"https_proxy": "https://proxy"}, "fl.example.org", "https://proxy:443"),
        ({**SET, "https_proxy": "http://small:1"}, "fl.example.org", "http://small:1"),
        ({**SET, "https_proxy": " "}, "fl.example.org", "http://proxy:3128"),
        ({"ALL_PROXY": "http://all:1"}, "fl.example.org", "http://all:1"),
        ({**SET, "all_proxy": "http://all:1"}, "fl.example.org", "http://proxy:3128"),
        ({"HTTP_PROXY": "http://proxy:3128"}, "fl.example.org", None),  # for plain HTTP alone
        ({**SET, "NO_PROXY": "example.org"}, "fl.example.org", None),
        ({**SET, "NO_PROXY": "a", "no_proxy": "example.org"}, "fl.example.org", None),
        ({**SET, "NO_PROXY": "example.org"}, "fl.example.com", "http://proxy:3128"),
        (SET, "127.0.0.1", None),
        (SET, "127.9.9.9", None),
        (SET, "localhost", None),
        (SET, "::1", None),
        (SET, "[::1]", None),
    ],
)
def test_the_environment_is_read_as_curl_reads_it(
    environment: dict[str, str], host: str, found: str | None
) -> None:
    proxy = from_environment(environment, host=host, port=443)
    assert (None if proxy is None else str(proxy)) == found


@pytest.mark.parametrize(
    ("listed", "host", "exempted"),
    [
        ("*", "fl.example.org", True),
        ("example.org", "example.org", True),
        ("example.org", "FL.Example.org.", True),
        (".example.org", "fl.example.org", True),
        (".example.org", "example.org", True),
        ("example.org", "notexample.org", False),
        ("a.org b.org,c.org", "b.org", True),
        ("10.0.0.0/8", "10.20.30.40", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("fd00::/8", "fd00::1", True),
        ("fd00::1", "[fd00::1]", True),
        ("[fd00::1]:443", "fd00::1", True),
        ("fl.example.org:443", "fl.example.org", True),
        ("fl.example.org:9443", "fl.example.org", False),
        ("", "fl.example.org", False),
        (" , ,", "fl.example.org", False),
    ],
)
def test_who_is_exempted(listed: str, host: str, exempted: bool) -> None:
    assert exempts(listed, host, 443) is exempted


def test_credentials_are_read_and_never_shown() -> None:
    proxy = parse_proxy("http://anna:p%40ss@proxy.example.org:3128/", source="HTTPS_PROXY")
    assert (proxy.user, proxy.password) == ("anna", "p@ss")
    assert proxy.authorization == "Basic YW5uYTpwQHNz"
    assert str(proxy) == "http://proxy.example.org:3128"
    assert "p@ss" not in repr(proxy)
    assert str(parse_proxy("http://[fd00::1]:3128", source="x")) == "http://[fd00::1]:3128"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("socks5h://anna:s3cret@proxy:1080", "of the kind socks5h"),
        ("http://anna:s3cret@proxy:port", "HTTPS_PROXY names no proxy"),
        ("http://anna:s3cret@", "names no proxy"),
        ("http://anna:s3cret@proxy:3128/proxy.pac", "names no proxy"),
        ("http://anna:s3cret@proxy:0", "names no proxy"),
        ("http://[anna:s3cret", "names no proxy"),
    ],
)
def test_what_is_no_proxy_is_said_without_its_password(text: str, words: str) -> None:
    with pytest.raises(StateError, match=words) as raised:
        parse_proxy(text, source="HTTPS_PROXY")
    assert "s3cret" not in str(raised.value)


ALL = ("http_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "grpc_proxy")


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("", "127.0.0.1,localhost,::1"),
        ("localhost, .hospital.org", "localhost,.hospital.org,127.0.0.1,::1"),
        ("*", "*"),
    ],
)
def test_a_child_finds_no_proxy_and_the_one_that_leaves_is_given_it(
    listed: str, expected: str
) -> None:
    environment = {"HOME": "/root", "NO_PROXY": listed, **dict.fromkeys(ALL, "http://p:1")}
    child = proxies.without_proxies(environment)
    exempted = {"no_proxy": expected, "NO_PROXY": expected}
    assert child == {"HOME": "/root", **exempted}
    assert proxies.variables(environment) == {**dict.fromkeys(ALL, "http://p:1"), **exempted}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]"])
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "localhost.example.org", "fl.localhost", "", "fd00::1"]
)
def test_other_machines(host: str) -> None:
    assert not is_loopback(host)
