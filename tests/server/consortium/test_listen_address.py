"""Where the gateway listens, and what is said when it cannot."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from common.errors import StateError
from common.process.loopback_tls import free_port
from server.consortium import listen_address
from server.consortium.listen_address import Listening, bound, interface, refusal
from tests import faulty_doors


@pytest.mark.parametrize(
    ("host", "address", "here"),
    [
        ("localhost", "127.0.0.1", "127.0.0.1"),
        ("LOCALHOST", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2", "127.0.0.2"),
        ("::1", "::1", "::1"),
        ("fed.example.org", "0.0.0.0", "127.0.0.1"),  # noqa: S104
        ("192.0.2.7", "0.0.0.0", "127.0.0.1"),  # noqa: S104
        ("2001:db8::7", "::", "::1"),
    ],
)
def test_a_private_consortium_stays_private(host: str, address: str, here: str) -> None:
    assert interface(host) == address
    assert Listening(address, 9443).here == here


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ("9443", "192.0.2.1:9443"),
        ("127.0.0.1:9443", "127.0.0.1:9443"),
        ("0.0.0.0:1", "0.0.0.0:1"),
        ("[::]:9443", "[::]:9443"),
        ("[2001:db8::7]:65535", "[2001:db8::7]:65535"),
    ],
)
def test_a_place_is_read_and_written_alike(said: str, where: str) -> None:
    read = Listening.read(said, default="192.0.2.1")
    assert str(read) == where
    assert Listening.read(str(read), default="") == read


@pytest.mark.parametrize(
    "said",
    ["", "0", "65536", "-1", "x", "fl.example.org:9443", "127.0.0.1:", "9443:127.0.0.1", "²"],
)
def test_no_place_is_refused(said: str) -> None:
    with pytest.raises(StateError, match="no address and port") as refused:
        Listening.read(said, default="127.0.0.1")
    assert refused.value.code == "listen"


def test_a_port_that_is_taken_is_named_with_who_knows_more() -> None:
    with faulty_doors.listening() as listener:
        port = listener.getsockname()[1]
        assert refusal("127.0.0.1", port) == "another process has that port"
        with pytest.raises(StateError) as refused:
            bound("gateway", "127.0.0.1", port, else_do="Elsewhere.")
    assert not refusal("127.0.0.1", port)
    error = refused.value
    assert error.message == (
        f"The gateway cannot listen at 127.0.0.1:{port}: another process has that port."
    )
    assert "ss -ltnp" in error.do
    assert error.do.endswith("Elsewhere.")


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(StateError, match=r"192\.0\.2\.1:\d+: this machine has no such address"):
        bound("gateway", "192.0.2.1", free_port(), else_do="")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "this user may not take a port below 1024"),
        (errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT)),
    ],
)
def test_what_else_is_in_the_way_is_named(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    """As root, or with IPv6, neither can be provoked."""

    def refuse(_address: str, _port: int) -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(listen_address, "_bound", refuse)
    with pytest.raises(StateError, match=words) as refused:
        bound("gateway", "0.0.0.0", 443, else_do="`address --listen`.")  # noqa: S104
    assert refused.value.do.endswith("`address --listen`.")


def test_every_address_means_both_families() -> None:
    try:
        listener = bound("gateway", "::", free_port(), else_do="")
    except StateError as error:
        pytest.skip(str(error))  # a machine without IPv6
    with listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=5):
        pass
