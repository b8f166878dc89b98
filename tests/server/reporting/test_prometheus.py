from __future__ import annotations

from typing import Any

from prometheus_client import generate_latest

from common.errors import ConsentError, PrivacyError
from common.web.prometheus import registry
from server.reporting.live_status import Readings
from server.reporting.prometheus import Consortium
from server.rounds.fleet import Presence


def lines(world: Any) -> dict[str, float]:
    readings = Readings(world.consortium, lambda: {"a": Presence(True, "")})
    text = generate_latest(registry(Consortium(readings.now))).decode()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_a_study_in_numbers(three: Any) -> None:
    three.rounds().offer({})
    three.hospitals["c"].refuses = PrivacyError("no", code="privacy-cap")
    three.run()
    found = lines(three)
    assert found['gliofed_site_online{site="a"}'] == 1
    assert found['gliofed_site_online{site="b"}'] == 0
    assert found['gliofed_study_rounds_closed{study="demo"}'] == 2
    assert found['gliofed_study_state{state="finished",study="demo"}'] == 1
    assert found['gliofed_study_epsilon{site="a",study="demo"}'] == 2
    assert found['gliofed_study_dice{region="ET",site="b",study="demo"}'] == 0.25
    assert found['gliofed_study_left_out_total{code="privacy-cap",site="c",study="demo"}'] == 2
    accepted = three.events("reply accepted", site="a")
    sent = sum(one["bytes"] for one in accepted)
    assert found['gliofed_study_received_bytes_total{site="a",study="demo"}'] == sent
    assert found["gliofed_journal_readable"] == 1
    assert not [name for name in found if not name.startswith("gliofed_")]


def test_a_site_that_its_hospital_stopped(three: Any) -> None:
    three.rounds().offer({})
    three.hospitals["c"].refuses = ConsentError("Stopped.", code="site-stopped")
    three.run()
    found = lines(three)
    assert found['gliofed_site_paused{site="c"}'] == 1
    assert found['gliofed_site_paused{site="a"}'] == 0


def test_a_damaged_journal_is_a_number(three: Any) -> None:
    path = three.consortium.journal.path
    path.write_bytes(path.read_bytes().replace(b"founded", b"foundeD", 1))
    assert lines(three) == {"gliofed_journal_readable": 0}
