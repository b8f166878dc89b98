from __future__ import annotations

import urllib.request

from prometheus_client import generate_latest

from client.page.prometheus import SiteFigures
from client.page.site_status import Readings
from client.site import stop
from client.site.folder import Site
from common.process.loopback_tls import free_port
from common.records.atomic_files import write_json
from common.web.prometheus import expose, registry
from tests.consortia import STUDY


def lines(readings: Readings) -> dict[str, float]:
    text = generate_latest(registry(SiteFigures(readings.now))).decode()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_a_site_in_numbers(trained: Site, readings: Readings, patients: list[str]) -> None:
    write_json(trained.checked, {"usable": 6, "refused": 1})
    found = lines(readings)
    label = f'order="train",outcome="done",study="{STUDY}"'
    assert found[f"gliofed_orders_total{{{label}}}"] == 1
    assert found[f"gliofed_order_seconds_total{{{label}}}"] > 0
    assert found[f"gliofed_sent_bytes_total{{{label}}}"] > 10_000
    assert found[f'gliofed_orders_total{{order="train",outcome="rounds",study="{STUDY}"}}'] == 1
    assert 0 < found[f'gliofed_epsilon{{study="{STUDY}"}}'] < 8
    assert found[f'gliofed_epsilon_cap{{study="{STUDY}"}}'] == 8
    assert found['gliofed_cases{state="refused"}'] == 1
    assert found['gliofed_gpu_memory_used_bytes{gpu="0"}'] == 20 * 2**30
    assert found["gliofed_disk_free_bytes"] == 3e11
    assert (found["gliofed_site_stopped"], found["gliofed_site_readable"]) == (0, 1)
    assert "gliofed_last_contact_seconds" not in found
    assert not [name for name in found if not name.startswith("gliofed_")]
    assert not [name for name in found if any(one in name for one in patients)]


def test_a_stopped_site(trained: Site, readings: Readings) -> None:
    stop.stop(trained, by="Bo", reason="secret")
    assert lines(readings)["gliofed_site_stopped"] == 1


def test_a_damaged_journal_and_a_folder_that_is_gone(trained: Site, readings: Readings) -> None:
    path = trained.journal.path
    path.write_bytes(path.read_bytes().replace(b"joined", b"joineD", 1))
    found = lines(readings)
    assert found["gliofed_site_readable"] == 0
    assert found["gliofed_disk_bytes"] == 1e12
    (trained.folder / "site.toml").unlink()
    assert lines(readings) == {"gliofed_site_readable": 0}


def test_the_port(site: Site, readings: Readings) -> None:
    port = free_port()
    expose(SiteFigures(readings.now), port=port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert b"gliofed_site_running 0.0" in answer.read()
