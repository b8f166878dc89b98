"""What the facts about a machine mean: one row a fault."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from common.doctor import findings, machine_checks, machine_facts
from common.doctor.findings import Finding
from common.doctor.machine_checks import GB
from common.doctor.machine_facts import Place, Unit

HERE = Path("/srv/gliofed")


@pytest.mark.parametrize(
    ("found", "level", "words"),
    [
        (
            machine_checks.of_place(Place("the cache", HERE, 80 * GB)),
            "ok",
            "80.0 GB free for the cache",
        ),
        (machine_checks.of_place(Place("the cache", HERE, 2 * GB)), "warning", "Only 2.0 GB"),
        (machine_checks.of_place(Place("the cache", HERE, 10**8)), "problem", "Only 100 MB"),
        (
            machine_checks.of_place(Place("rounds", HERE, 9 * GB), needed=20 * GB),
            "problem",
            "9.0 GB",
        ),
        (machine_checks.of_place(Place("rounds", HERE, 0, full=True)), "problem", "is full"),
        (
            machine_checks.of_place(Place("rounds", HERE, 9 * GB, trouble="Read-only file system")),
            "problem",
            "Read-only file system",
        ),
        (machine_checks.of_memory(9 * GB, little=4 * GB, too_little=GB), "ok", "9.0 GB"),
        (machine_checks.of_memory(2 * GB, little=4 * GB, too_little=GB), "warning", "Only 2.0 GB"),
        (machine_checks.of_memory(10**8, little=4 * GB, too_little=GB), "problem", "Only 100 MB"),
        (machine_checks.of_owners([], owner="gliofed"), "ok", "belongs to gliofed"),
        (
            machine_checks.of_owners(["journal.jsonl", "keys"], owner="gliofed"),
            "problem",
            "journal.jsonl and 1 more do not belong to gliofed",
        ),
        (machine_checks.of_leftovers(0), "ok", "No half-written"),
        (machine_checks.of_leftovers(3), "warning", "3 half-written"),
        (machine_checks.of_libraries(["numpy"], {"numpy": "0.1"}), "warning", "(proven: 0.1)"),
        (
            machine_checks.of_libraries(["nowhere"], {"nowhere": "1"}),
            "warning",
            "nowhere is missing",
        ),
        (machine_checks.of_libraries(["numpy"], {}), "ok", "nothing is pinned"),
        (machine_checks.of_unit(None), "ok", "something else must start it"),
        (
            machine_checks.of_unit(Unit("a.service", "active", "enabled")),
            "ok",
            "starts with the machine",
        ),
        (machine_checks.of_unit(Unit("a.service", "failed", "enabled")), "problem", "is failed"),
        (machine_checks.of_unit(Unit("a.service", "active", "disabled")), "warning", "disabled"),
    ],
)
def test_each_fact_is_judged(found: Finding, level: str, words: str) -> None:
    assert found.level == level
    assert words in found.what
    assert bool(found.do) == (level != "ok")


def test_secret_files(tmp_path: Path) -> None:
    good, open_, lost = (tmp_path / name for name in ("good.key", "open.key", "lost.key"))
    for path, mode in ((good, 0o600), (open_, 0o644)):
        path.write_text("secret")
        path.chmod(mode)
    found = machine_checks.of_secrets(machine_facts.secret(path) for path in (good, open_, lost))
    assert [one.level for one in found] == ["problem", "problem"]
    assert "can be read by others (mode 644)" in found[0].what
    assert f"chmod 600 {open_}" in found[0].do
    assert "is missing" in found[1].what
    assert [one.level for one in machine_checks.of_secrets([machine_facts.secret(good)])] == ["ok"]
    unreadable = machine_facts.Secret(good, mode=0o600, readable=False)
    assert "cannot be read by this user" in machine_checks.of_secrets([unreadable])[0].what


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "No telemetry"),
        ({"FLWR_TELEMETRY_ENABLED": "0"}, "No telemetry"),
        ({"FLWR_TELEMETRY_ENABLED": "1"}, "FLWR_TELEMETRY_ENABLED is 1 here"),
    ],
)
def test_variables(environment: dict[str, str], words: str) -> None:
    (found,) = machine_checks.of_environment(environment)
    assert words in found.what


def test_a_full_disk_is_told_from_one_that_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine_facts.place("rounds", tmp_path / "made" / "later").trouble == ""
    assert list(tmp_path.iterdir()) == []  # the look leaves nothing behind

    def failing(number: int) -> object:
        def sync(descriptor: int) -> NoReturn:
            raise OSError(number, os.strerror(number))

        return sync

    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    assert machine_facts.place("rounds", tmp_path).full
    monkeypatch.setattr(os, "fsync", failing(errno.EROFS))
    assert machine_facts.place("rounds", tmp_path).trouble == "Read-only file system"


def test_strangers_and_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / ".partial-x1").write_text("half")
    assert machine_facts.leftovers(tmp_path) == 1
    assert machine_facts.strangers(tmp_path) == []
    if os.getuid() == 0:
        os.chown(tmp_path / "keys" / ".partial-x1", 12345, 12345)
        assert machine_facts.strangers(tmp_path) == ["keys/.partial-x1"]
    free, total = machine_facts.memory()
    assert 0 < free < total


def test_what_systemd_says_is_read() -> None:
    lines = ["LoadState=loaded", "ActiveState=failed", "UnitFileState=enabled", ""]
    assert machine_facts.read_unit("a.service", lines) == Unit("a.service", "failed", "enabled")
    assert (
        machine_facts.read_unit("a.service", ["LoadState=not-found", "ActiveState=inactive"])
        is None
    )


def test_one_problem_fails(capsys: pytest.CaptureFixture[str]) -> None:
    found = [findings.ok("disk", "Room."), findings.problem("tls", "It expired.", "Renew it.")]
    assert findings.failed(found)
    assert not findings.failed([*found[:1], findings.warning("clock", "It is late.", "NTP.")])
    findings.show("north", found, json=False)
    told = capsys.readouterr()
    assert "Renew it." in told.out
    assert "Problems: 1, warnings: 0." in told.err
    findings.show("north", found, json=True)
    assert '"ok": false' in capsys.readouterr().out
