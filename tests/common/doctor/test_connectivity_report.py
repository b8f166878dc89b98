"""Each way in which the way to the coordinator can be broken, on real sockets."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from common.doctor.connectivity_report import duration, of_clock, of_days, of_door
from common.doctor.findings import Finding
from common.doctor.tls_probe import reach
from server.consortium import provisioning
from server.consortium.provisioning import Consortium
from tests import faulty_doors
from tests.certificates import expired

Open = Callable[[Path], AbstractContextManager[int]]


def ask(consortium: Consortium, port: int, **options: object) -> list[Finding]:
    """Go the way as a site does, which waits for half a second at each step."""
    shown = {"host": "127.0.0.1", "authority": consortium.folder / "ca.crt", **options}
    host = str(shown.pop("host"))
    found = reach(host, port, patience_s=0.5, **shown)  # type: ignore[arg-type]
    return of_door(found, whose="this site's kit", now=dt.datetime.now(dt.UTC))


def said(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(one.level, one.about) for one in findings]


def test_a_good_door_is_well(consortium: Consortium) -> None:
    with faulty_doors.tls(consortium.folder) as port:
        found = ask(consortium, port)
    assert said(found) == [("ok", "name"), ("ok", "port"), ("ok", "tls"), ("ok", "clock")]
    assert "824 days" in found[2].what


@pytest.mark.parametrize(
    ("door", "about", "words", "do"),
    [
        (faulty_doors.closed, "port", "refuses connections", "Ask the coordinator"),
        (faulty_doors.swallowing, "port", "swallows connections", "firewall"),
        (faulty_doors.silent, "tls", "nothing comes", "pass TLS unopened"),
        (faulty_doors.plain, "tls", "No TLS is spoken", "Ask the coordinator"),
    ],
)
def test_a_door_that_is_none_is_named_soon(
    consortium: Consortium,
    door: Callable[[], AbstractContextManager[int]],
    about: str,
    words: str,
    do: str,
) -> None:
    began = time.monotonic()
    with door() as port:
        found = ask(consortium, port)
    assert time.monotonic() - began < 3.0
    assert said(found)[-1] == ("problem", about)
    assert words in found[-1].what
    assert do in found[-1].do


def test_a_name_that_nobody_knows(consortium: Consortium) -> None:
    found = ask(consortium, 4433, host="coordinator.invalid")
    assert said(found) == [("problem", "name")]
    assert "coordinator.invalid" in found[0].what


def test_a_resolver_that_does_not_answer_is_not_waited_for(consortium: Consortium) -> None:
    def sleeping(host: str, port: int) -> tuple[str, ...]:
        time.sleep(2.0)
        return ()

    began = time.monotonic()
    found = ask(consortium, 4433, host="slow.example.org", resolve=sleeping)
    assert time.monotonic() - began < 1.5
    assert "no answer within" in found[0].what


def test_another_authority_is_told_from_a_wrong_name(
    consortium: Consortium, tmp_path: Path
) -> None:
    other = provisioning.init(tmp_path / "proxy", name="Proxy", host="127.0.0.1", port=1)
    with faulty_doors.tls(other.folder) as port:
        found = ask(consortium, port)
    assert said(found)[-1] == ("problem", "tls")
    assert "CN=Proxy gliofed CA" in found[-1].what
    assert "proxy opens TLS" in found[-1].do
    with faulty_doors.tls(consortium.folder) as port:
        found = ask(consortium, port, host="fl.example.org", resolve=lambda *_: ("127.0.0.1",))
    assert said(found)[-1] == ("problem", "tls")
    assert "localhost, 127.0.0.1, not for fl.example.org" in found[-1].what


def test_an_expired_certificate(consortium: Consortium) -> None:
    (consortium.folder / "server.crt").write_bytes(expired(consortium.folder))
    with faulty_doors.tls(consortium.folder) as port:
        found = ask(consortium, port)
    assert ("problem", "tls") in said(found)
    assert any("expired on" in one.what and "rotate-certificate" in one.do for one in found)
    assert said(found)[-1] == ("ok", "clock")


@pytest.mark.parametrize(
    ("ahead_s", "level", "words"),
    [
        (-2.0, "ok", "the coordinator's, within 2 s."),
        (90.0, "warning", "1 min 30 s ahead of"),
        (-3 * 3600 - 300.0, "problem", "3 h 5 min behind"),
        (40 * 86_400.0, "problem", "40 days 0 h ahead of"),
        (None, "warning", "did not say"),
    ],
)
def test_a_wrong_clock_is_named_with_how_far(ahead_s: float | None, level: str, words: str) -> None:
    found = of_clock(ahead_s)
    assert found.level == level
    assert words in found.what


def test_the_clock_of_a_real_door_is_read(consortium: Consortium) -> None:
    with faulty_doors.tls(consortium.folder, ahead_s=3630.0) as port:
        found = ask(consortium, port)
    assert (found[-1].level, found[-1].about) == ("problem", "clock")
    assert "1 h 0 min behind" in found[-1].what
    with faulty_doors.tls(consortium.folder, date=False) as port:
        assert said(ask(consortium, port))[-1] == ("warning", "clock")


def test_a_clock_that_is_years_wrong_is_told_from_a_bad_certificate(
    consortium: Consortium,
) -> None:
    late = dt.datetime.now(dt.UTC) + dt.timedelta(days=1000)
    with faulty_doors.tls(consortium.folder) as port:
        way = reach("127.0.0.1", port, authority=consortium.folder / "ca.crt", now=lambda: late)
    found = of_door(way, whose="this site's kit", now=late)
    assert said(found)[2:] == [("ok", "tls"), ("problem", "tls"), ("problem", "clock")]
    assert "By the clock of this machine" in found[3].what
    assert "1000 days 0 h ahead of" in found[4].what


@pytest.mark.parametrize(("days", "level"), [(100, "ok"), (29, "warning"), (-1, "problem")])
def test_days_left(days: int, level: str) -> None:
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert of_days("tls", "It", now + dt.timedelta(days=days), now, renew="Renew.").level == level


def test_durations() -> None:
    told = [duration(seconds) for seconds in (4, 65, 3700, 180_000)]
    assert told == ["4 s", "1 min 5 s", "1 h 1 min", "2 days 2 h"]
