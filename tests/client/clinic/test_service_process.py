"""`gliofed-site serve` as a real process: killed in the middle, asked to end, and at an Orthanc."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient

from client.clinic.installed_models import activate
from client.clinic.watch.journal import Journal
from client.commands import site as site_commands
from client.site.folder import Site
from tests import children
from tests.client.clinic.pacs.test_dicomweb import archive, orthanc
from tests.consortia import World
from tests.scanners import write_study

__all__ = ["archive", "orthanc"]

Start = Callable[..., subprocess.Popen[str]]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def site(world: World) -> Site:
    activate(world.site, world.model(), {"cases": 1, "dice": {"WT": 0.1}})
    return world.site


@pytest.fixture
def start(site: Site) -> Iterator[Start]:
    """Return what starts a service on free ports; each ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "client.commands.site", "serve", str(site.folder)]
        command += ["--port", "0", "--metrics-port", "0", *map(str, words)]
        started.append(children.start(command, cwd=ROOT, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def until(true: Callable[[], Any], process: subprocess.Popen[str], *, for_s: float = 180) -> None:
    end = time.monotonic() + for_s
    while not true():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_killed_watch_segments_each_study_once(
    start: Start, site: Site, cohort: Path, tmp_path: Path
) -> None:
    given, out = tmp_path / "given", tmp_path / "out"
    cases = sorted(path for path in cohort.iterdir() if path.is_dir())[:3]
    for case in cases:
        shutil.copytree(case, given / case.name)
    (given / "nothing").mkdir()
    names = sorted(case.name for case in cases)
    watch = ("--watch", given, "--out", out, "--quiet-s", "0")

    def results() -> dict[str, tuple[int, int]]:
        found = {path.parent.name: path.stat() for path in out.glob("results/*/result.json")}
        return {name: (one.st_ino, one.st_mtime_ns) for name, one in found.items()}

    process = start(*watch)
    # The second is being segmented: the first is there, and the second's files begin to appear.
    until(
        lambda: names[0] in results() and (out / "journal" / f"{names[1]}.json").exists(), process
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = results()
    assert names[2] not in before
    process = start(*watch)
    until(lambda: sorted(results()) == names, process)
    until(lambda: Journal.record(_reading(out), "nothing").state == "refused", process)
    until(lambda: not any((out / "unfinished").iterdir()), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    after = results()
    assert {name: after[name] for name in before} == before
    journal = _reading(out)
    attempts = {name: journal.record(name).attempts for name in names}
    assert attempts[names[0]] == attempts[names[2]] == 1
    assert attempts[names[1]] == (1 if names[1] in before else 2)
    refused = journal.record("nothing")
    assert (refused.code, refused.attempts) == ("case-none", 1)
    assert not (out / "results" / "nothing").exists()


def test_a_study_in_orthanc_is_segmented_stored_and_left_alone(
    start: Start, archive: DICOMwebClient, tmp_path: Path
) -> None:
    url, out, study = archive.base_url.removesuffix("/dicom-web"), tmp_path / "out", "1.2.3.77"
    folder = write_study(tmp_path / "study", study=study)
    archive.store_instances([pydicom.dcmread(path) for path in folder.rglob("*.dcm")])
    process = start("--watch", url, "--out", out, "--send", "--past")
    until(lambda: _reading(out).record(study).stored == 4, process)
    result = (out / "results" / study / "result.json").read_text()
    assert len(json.loads(result)["dicom"]) == 4

    def seen() -> int:
        place = out / "place.json"
        return int(json.loads(place.read_text())["last"]) if place.exists() else 0

    def feed() -> list[dict[str, Any]]:
        answer = archive._session.get(f"{url}/changes?limit=1000")
        changes = answer.json()["Changes"]
        return [one for one in changes if one["ChangeType"] == "StableStudy"]

    until(lambda: len(feed()) >= 2, process)  # what was stored made the study stable again
    until(lambda: seen() >= feed()[-1]["Seq"], process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    kinds = [one["00080060"]["Value"][0] for one in archive.search_for_series(study)]
    assert sorted(kind for kind in kinds if kind != "MR") == ["DOC", "OT", "SEG", "SR"]
    assert _reading(out).record(study).attempts == 1
    assert (out / "results" / study / "result.json").read_text() == result


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--watch", "somewhere"), 2),
        (("--watch", "somewhere", "--out", "x", "--send"), 2),
        (("--host", "0.0.0.0"), 11),  # noqa: S104
    ],
)
def test_what_cannot_be_served_is_refused(
    command: Any, site: Site, words: tuple[str, ...], code: int
) -> None:
    assert command(site_commands.main, "serve", site.folder, "--port", 0, *words).code == code


def _reading(out: Path) -> Journal:
    """Return the journal without what a new one does: another process uses it."""
    journal = Journal.__new__(Journal)
    journal.out = out
    return journal
