"""``gliofed-clinic review`` as a process: the link, one review at a time, killed, and at a site."""

from __future__ import annotations

import contextlib
import functools
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest

from client.clinic.result_folder import segment_by
from client.clinic.result_verification import Given, exit_code, verify
from client.cohort.reviewed_cases import reviewed_cases
from client.cohort.series_decisions import cohort_of
from client.commands import clinic
from client.imaging.image_reading import read_image
from client.review import page_process
from client.review.into_cohort import into_cohort
from client.review.session import Desk
from client.site.folder import Site
from tests import children
from tests.client.review.conftest import Visit
from tests.client.review.test_pages import decide, drawn, put
from tests.consortia import edit
from tests.dicom_readers import by_dcmqi, errors, same_voxels
from tests.reviews import by
from tests.scanners import write_study

Run = Callable[..., Any]


@pytest.fixture
def run(command: Run) -> Run:
    return functools.partial(command, clinic.main)


@contextlib.contextmanager
def started(result: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command in a process of its own; yield it and the link that it printed."""
    arguments = [
        sys.executable,
        "-m",
        "client.commands.clinic",
        "review",
        str(result),
        "--no-browser",
    ]
    with children.start(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said = ""
            for line in process.stdout or ():
                said += line.strip()
                if found := re.search(r"http://127\.0\.0\.1:\d+/login\?token=[\w-]{43}", said):
                    break
            else:
                raise AssertionError(said)
            yield process, found[0]
        finally:
            process.kill()


def test_the_command_prints_a_link_that_opens_once(result: Path, run: Run) -> None:
    with started(result) as (process, link):
        token, root = link.rpartition("=")[2], link.partition("/login")[0]
        with httpx.Client(base_url=root) as client:
            assert client.get("/state").status_code == 401
            assert client.post("/login", data={"token": token}).status_code == 303
            assert client.get("/state").json()["case"] == "GF-00001-000"
        assert httpx.post(f"{root}/login", data={"token": token}).status_code == 403
        said = run("review", result, "--no-browser")
        assert (said.code, "being reviewed" in said.err) == (10, True)
        process.kill()
        process.wait()
        with started(result) as (again, _):  # the lock went with the process
            again.send_signal(signal.SIGINT)
            assert again.wait(timeout=60) == 130


def test_what_cannot_be_reviewed_is_said(run: Run, result: Path, tmp_path: Path) -> None:
    said = run("review", tmp_path / "nowhere", "--no-browser")
    assert (said.code, "holds no result.json" in said.err) == (10, True)
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").mkdir()
    assert "holds no result.json" in run("review", tmp_path / "empty", "--no-browser").err
    assert list((tmp_path / "empty").iterdir()) == []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = run("review", result, "--no-browser", "--port", port)
    assert (said.code, f"127.0.0.1:{port}" in said.err) == (10, True)


def test_a_review_is_verified_like_a_result(result: Path, visit: Visit) -> None:
    page = visit(Desk(result))
    put(page, drawn())
    decide(page, "corrected")
    put(page, drawn(9))  # a draft beside is no version
    checks = verify(result, Given())
    found = {one.about: one.verdict for one in checks}
    assert found["review 0001: files"] == found["review 0001: volumes"] == "holds"
    assert exit_code(checks) == 0


def test_of_dicom_the_objects_follow(tmp_path: Path, visit: Visit) -> None:
    study = write_study(tmp_path / "study")

    def small(case: Any) -> Any:
        found, origin = by(case)
        shape = read_image(case.images[case.reference]).data.shape
        labels = np.zeros(shape, np.uint8)
        labels[6:9, 6:9, 5:8] = 3
        return replace(found, labels=labels, uncertainty=None), origin

    segment_by(small, study, tmp_path / "result")
    desk = Desk(tmp_path / "result")
    labels = desk.subject.mask.copy()
    labels[2, 2, 2] = 1
    body = nib.Nifti1Image(labels, desk.subject.affine).to_bytes()
    sha = desk.keep(body, known=desk.state()["sha256"])
    desk.decide("corrected", reviewer="Dr. Tamm", comment="", seen=sha)
    place = tmp_path / "result" / "reviews" / "0001"
    assert {path.name: errors(path) for path in sorted(place.glob("*.dcm"))} == {
        "document.dcm": [],
        "report.dcm": [],
        "segmentation.dcm": [],
    }
    affine = desk.subject.affine
    assert same_voxels(by_dcmqi(place / "segmentation.dcm", tmp_path / "read"), labels, affine)
    mask = pydicom.dcmread(place / "segmentation.dcm")
    assert mask.ContentCreatorName == "Dr. Tamm"
    desk.decide("accepted", reviewer="Dr. Kreuz", comment="", seen=sha)
    second = pydicom.dcmread(tmp_path / "result" / "reviews" / "0002" / "segmentation.dcm")
    assert {one.SegmentAlgorithmType for one in second.SegmentSequence} == {"SEMIAUTOMATIC"}
    report = pydicom.dcmread(tmp_path / "result" / "reviews" / "0002" / "report.dcm")
    previous = pydicom.dcmread(place / "report.dcm").SOPInstanceUID
    assert previous in str(report.PredecessorDocumentsSequence)
    desk.decide("rejected", reviewer="Dr. Kreuz", comment="Motion", seen=sha)
    assert list((tmp_path / "result" / "reviews" / "0003").glob("*.dcm")) == []


def test_at_a_site_it_is_sealed_and_handed_over(result: Path, site: Site) -> None:
    willing = edit(site, "train_on_reviews = false", "train_on_reviews = true")
    sealer = (willing.name, willing.identity)
    desk = Desk(result, sealer=sealer, decided=into_cohort(willing))
    sha = desk.state()["sha256"]
    words = {"reviewer": "Dr. Tamm", "comment": "no", "seen": sha}
    told = desk.decide("accepted", **words)["told"]
    assert "next round" in told
    (case,) = reviewed_cases(willing)
    assert (case.patient, case.session, case.reviewed) == ("GF-00001", "000", True)
    assert case in cohort_of(willing).labelled
    checks = verify(result, Given(site=willing))
    assert {c.about: c.verdict for c in checks}["review 0001: seal"] == "holds"
    assert "any more" in desk.decide("rejected", **words)["told"]
    assert reviewed_cases(willing) == ()
    off = Desk(result, decided=into_cohort(site))
    assert "does not train" in off.decide("accepted", **words)["told"]
    assert reviewed_cases(site) == ()


def test_a_review_is_saved_though_the_cohort_refuses_it(
    result: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    willing = edit(site, "train_on_reviews = false", "train_on_reviews = true")
    (willing.folder / "keys" / "patients.key").unlink()
    desk = Desk(result, decided=into_cohort(willing))
    done = desk.decide("accepted", reviewer="Dr. Tamm", comment="", seen=desk.state()["sha256"])
    assert done["number"] == 1
    assert "did not get the case" in done["told"]


def test_no_argument_of_a_browser_holds_the_token(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every user of the machine sees what a process was started with."""
    started_with: list[str] = []
    said: list[str] = []
    pages: list[str] = []

    def opened(address: str) -> bool:
        started_with.append(address)
        page = Path(unquote(urlsplit(address).path))
        assert page.stat().st_mode & 0o077 == 0
        assert page.parent.stat().st_mode & 0o077 == 0
        pages.append(page.read_text())
        return True

    monkeypatch.setattr(page_process.webbrowser, "open", opened)
    monkeypatch.setattr(page_process.http_server, "run", lambda _, sockets: sockets[0].close())
    monkeypatch.setattr(page_process, "application", lambda *_, **__: None)
    page_process.serve(result, lambda: None, told=said.append)  # type: ignore[arg-type, return-value]
    ((link,), (address,), (page,)) = said, started_with, pages
    token = link.rpartition("=")[2]
    assert len(token) > 20
    assert token not in address
    assert token in page
