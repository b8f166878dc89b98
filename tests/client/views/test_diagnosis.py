"""`gliofed-site doctor`: each fault of a site is provoked, and said."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from client.commands import site as site_commands
from client.site import keys
from client.site.folder import Site
from client.site.settings import Machine
from client.views import diagnosis
from client.views.compute_check import Trial
from client.views.diagnosis import Devices, of_devices, of_release
from common.doctor.findings import Finding
from common.records.atomic_files import held, write_json
from server.consortium import provisioning
from server.consortium.provisioning import Consortium
from tests import consortia, faulty_doors
from tests.client.conftest import Run


@pytest.fixture(autouse=True)
def _trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that went well: a real one takes seconds, and ``test_readiness`` has it."""
    monkeypatch.setattr(diagnosis, "try_out", lambda _folder: Trial(0, "", 1.0))


@pytest.fixture
def served(consortium: Consortium, site: Site) -> AbstractContextManager[int]:
    return faulty_doors.tls(consortium.folder, port=consortium.settings.port)


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    from common.process.loopback_tls import free_port

    folder = tmp_path / "coordinator"
    return provisioning.init(folder, name="Northern", host="127.0.0.1", port=free_port())


def levels(found: list[Finding]) -> dict[str, str]:
    """Return the worst level of each thing that was looked at."""
    rank = ("ok", "warning", "problem")
    worst: dict[str, str] = {}
    for one in found:
        worst[one.about] = max(worst.get(one.about, "ok"), one.level, key=rank.index)
    return worst


def test_a_site_that_runs_is_well(
    site: Site, served: AbstractContextManager[int], command: Run
) -> None:
    with served, held(site.lock, what="it runs"):
        told = command(site_commands.main, "doctor", site.folder, "--json")
    assert told.json["ok"] is True
    assert told.code == 0
    assert {one["level"] for one in told.json["findings"]} <= {"ok", "warning"}
    about = {one["about"] for one in told.json["findings"]}
    assert about >= {"kit", "name", "port", "tls", "clock", "disk", "memory", "gpu", "versions"}
    assert about >= {"keys", "owner", "environment", "data", "journal", "model", "unit", "running"}


def _unreadable(site: Site) -> None:
    consortia.edit(site, str(site.data), str(site.folder / "nowhere"))


def _empty(site: Site) -> None:
    (site.folder / "empty").mkdir()
    consortia.edit(site, str(site.data), str(site.folder / "empty"))


def _changed_journal(site: Site) -> None:
    path = site.folder / "journal.jsonl"
    path.write_text(path.read_text().replace("Northern", "Southern"))


FAULTS: dict[str, tuple[Callable[[Site], object], str, str]] = {
    "an open key": (lambda s: (s.folder / "keys/node.key").chmod(0o640), "keys", "chmod 600"),
    "a key that is gone": (lambda s: (s.folder / "keys/patients.key").unlink(), "keys", "backup"),
    "another node key": (
        lambda s: keys.new_node_key(s.folder / "keys/node.key"),
        "keys",
        "no other in",
    ),
    "data that is nowhere": (_unreadable, "data", ""),
    "data without a case": (_empty, "data", ""),
    "a changed journal": (_changed_journal, "journal", "backup"),
    "a ledger that is gone": (lambda s: (s.folder / "ledger.sqlite").unlink(), "journal", ""),
    "a damaged kit": (lambda s: (s.folder / "kit.json").write_text("{"), "kit", "again"),
    "a coordinator two versions on": (
        lambda s: write_json(s.folder / "flower" / "coordinator.json", {"version": "0.9.0"}),
        "versions",
        "refused",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_problem_beside_the_rest(
    site: Site, served: AbstractContextManager[int], fault: str
) -> None:
    provoke, about, do = FAULTS[fault]
    provoke(site)
    with served:
        found = diagnosis.diagnose(Site.open(site.folder), patience_s=1.0)
    problems = [one for one in found if one.level == "problem"]
    assert about in {one.about for one in problems}
    assert any(do in one.do for one in problems)
    assert len(found) > 10  # the other looks went on


def test_a_site_that_has_not_joined_and_does_not_run(site: Site) -> None:
    (site.folder / "kit.json").unlink()
    found = levels(diagnosis.diagnose(site))
    assert (found["kit"], found["running"]) == ("warning", "warning")
    assert "port" not in found


def test_a_coordinator_that_is_not_served(site: Site, command: Run) -> None:
    told = command(site_commands.main, "doctor", site.folder)
    assert told.code == 1
    assert "refuses connections" in told.out


@pytest.mark.parametrize(
    ("wanted", "found", "level", "words"),
    [
        (Machine(), Devices("2.13.0", "", ""), "ok", "computes on the CPU with 4 threads"),
        (Machine(), Devices("2.13.0", "", "", cores=8), "ok", "(cores: 8); `threads` in site.toml"),
        (Machine(threads=6), Devices("2.13.0", "", "", cores=64), "ok", "6 threads (cores: 64)."),
        (Machine(precision="bfloat16"), Devices("2.13.0", "", ""), "warning", "in float32: this"),
        (
            Machine(precision="bfloat16"),
            Devices("2.13.0", "", "", cpu_bfloat16=True),
            "ok",
            "(cores: 1).",
        ),
        (
            Machine(device="cpu"),
            Devices("2.13.0", "12.8", "570", ("H100",), (8,)),
            "ok",
            'site.toml says device = "cpu"',
        ),
        (Machine(), Devices("2.13.0", "", "570.1"), "warning", "uses no GPU"),
        (Machine(device="cuda"), Devices("2.13.0", "", "570.1"), "problem", "for CPUs"),
        (Machine(device="cuda"), Devices("2.13.0", "12.8", "470.1"), "problem", "CUDA 12.8"),
        (Machine(device="cuda"), Devices("2.13.0", "12.8", ""), "problem", "does not find"),
        (Machine(gpus=2), Devices("2.13.0", "12.8", "570", ("H100",), (8,)), "problem", "2 GPUs"),
        (
            Machine(gpus=1),
            Devices("2.13.0", "12.8", "570", ("H100",), (80 * 10**9,)),
            "ok",
            "H100, 80.0 GB free",
        ),
    ],
)
def test_devices(wanted: Machine, found: Devices, level: str, words: str) -> None:
    said = of_devices(wanted, found)
    assert said.level == level
    assert words in said.what


def test_releases() -> None:
    assert of_release("0.1.0", "").level == "ok"
    assert of_release("0.1.0", "0.2.0").level == "ok"
    assert "The site must upgrade" in of_release("0.1.0", "0.3.0").what
