"""A real archive: a study goes in, is segmented from there, and its results come back unchanged."""

from __future__ import annotations

import functools
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass

from client.clinic.pacs.dicomweb import fetched, send
from client.commands import clinic as cli
from common.errors import CaseError
from tests import children
from tests.consortia import World
from tests.dicom_readers import by_dcmqi, errors, same_voxels
from tests.programs import needed
from tests.scanners import oblique, write_study

Run = Callable[..., Any]
STUDY = "1.2.3.4"
USER, PASSWORD = "site", "for-this-test"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


dicom_ports: dict[str, int] = {}
"""Where the archive at an address takes C-STORE."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an Orthanc and yield the address of its DICOMweb service."""
    program = needed("Orthanc")
    if not PLUGIN.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("orthanc-dicomweb is not installed")
    root = tmp_path_factory.mktemp("orthanc")
    port, dicom_port = (free_port() for _ in range(2))
    settings = {
        "StorageDirectory": str(root / "db"),
        "IndexDirectory": str(root / "db"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": port,
        "StableAge": 1,
        "DicomServerEnabled": True,
        "DicomPort": dicom_port,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowStore": False,
        "DicomCheckModalityHost": True,
        "DicomModalities": {"ward": ["WARD 7", "127.0.0.1", 104]},
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
    }
    (root / "db").mkdir()
    (root / "orthanc.json").write_text(json.dumps(settings))
    log = root / "log"
    with log.open("w") as said:
        process = children.start([program, str(root / "orthanc.json")], stdout=said, stderr=said)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                httpx.get(f"http://127.0.0.1:{port}/system", auth=(USER, PASSWORD), timeout=2)
                break
            except httpx.HTTPError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        else:
            pytest.fail(log.read_text())
        dicom_ports[f"http://127.0.0.1:{port}/dicom-web"] = dicom_port
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def archive(orthanc: str, monkeypatch: pytest.MonkeyPatch) -> DICOMwebClient:
    monkeypatch.setenv("GLIOFED_PACS_USER", USER)
    monkeypatch.setenv("GLIOFED_PACS_PASSWORD", PASSWORD)
    return DICOMwebClient(orthanc, session=create_session_from_user_pass(USER, PASSWORD))


@pytest.fixture
def clinic(command: Run) -> Run:
    return functools.partial(command, cli.main)


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
def test_a_study_is_segmented_from_the_archive_and_its_results_return_unchanged(
    archive: DICOMwebClient, clinic: Run, world: World, tmp_path: Path, enhanced: bool
) -> None:
    study = f"{STUDY}.{int(enhanced)}"
    folder = write_study(
        tmp_path / "study", study=study, enhanced=enhanced, affine=oblique((12.0, 11.0, 13.0))
    )
    given = [pydicom.dcmread(path) for path in folder.rglob("*.dcm")]
    archive.store_instances(given)
    out = tmp_path / "out"
    options = ("--out", out, "--model", world.release, "--pacs", archive.base_url)
    said = clinic("segment", "--study", study, *options, "--send")
    assert said.code == 0, said.err
    assert "Stored 4 objects" in said.out
    result = json.loads((out / "result.json").read_text())
    series = archive.search_for_series(study)
    kinds = {one["00080060"]["Value"][0]: one["0020000E"]["Value"][0] for one in series}
    assert set(kinds) == {"MR", "SEG", "SR", "OT", "DOC"}
    back = tmp_path / "back"
    back.mkdir()
    for name, uid in result["dicom"].items():
        for kind in set(kinds) - {"MR"}:
            for dataset in archive.iter_series(study, kinds[kind]):
                if dataset.SOPInstanceUID == uid:
                    dataset.save_as(back / name, enforce_file_format=True)
        assert errors(back / name) == []
        assert pydicom.dcmread(back / name).get("PixelData") == pydicom.dcmread(out / name).get(
            "PixelData"
        )
    mask = nib.load(out / "segmentation.nii.gz")
    labels = np.asarray(mask.dataobj)
    assert labels.any()
    read = by_dcmqi(back / "segmentation.dcm", tmp_path / "read")
    assert same_voxels(read, labels, mask.affine)
    again = clinic("send", out, "--pacs", archive.base_url)
    assert (again.code, "Stored 4 objects" in again.out) == (0, True)
    # What was stored is no image: the study can be segmented again from the archive.
    options = ("--out", tmp_path / "again", "--model", world.release, "--pacs", archive.base_url)
    assert clinic("segment", "--study", study, *options).code == 0


def test_results_return_unchanged_when_they_were_stored_by_c_store(
    archive: DICOMwebClient, clinic: Run, world: World, tmp_path: Path
) -> None:
    study = f"{STUDY}.7"
    folder = write_study(tmp_path / "study", study=study, affine=oblique((12.0, 11.0, 13.0)))
    out = tmp_path / "out"
    url = f"dicom://ORTHANC@127.0.0.1:{dicom_ports[archive.base_url]}"
    options = ("--out", out, "--model", world.release, "--pacs", url, "--send")
    said = clinic("segment", folder, *options, "--aet", "WARD 7")
    assert said.code == 0, said.err
    result = json.loads((out / "result.json").read_text())
    for name, uid in result["dicom"].items():
        own = pydicom.dcmread(out / name)
        back = archive.retrieve_instance(study, str(own.SeriesInstanceUID), uid)
        assert own == back
        assert own.file_meta.TransferSyntaxUID == back.file_meta.TransferSyntaxUID
    stranger = clinic("send", out, "--pacs", url, "--aet", "STRANGER")
    assert (stranger.code, "The PACS at dicom" in stranger.err) == (15, True)


def test_what_the_archive_cannot_give_is_refused(
    archive: DICOMwebClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = archive.base_url

    def code(address: str, study: str) -> str:
        with pytest.raises(CaseError) as caught, fetched(address, study):
            pass
        return caught.value.code

    assert code(url, "1.2.3.4.5.6") == "pacs-study"
    assert code(url, "../patients") == "pacs-study"
    assert code("ftp://pacs/dicom-web", STUDY) == "pacs-url"
    assert code("http://me:secret@pacs/dicom-web", STUDY) == "pacs-url"
    assert code(url.replace("dicom-web", "nothing"), STUDY) == "pacs-unreachable"
    monkeypatch.setenv("GLIOFED_PACS_PASSWORD", "wrong")
    assert code(url, STUDY) == "pacs-unreachable"
    with pytest.raises(CaseError, match="nothing was sent") as caught:
        send(url, tmp_path)
    assert caught.value.code == "pacs-nothing"


def test_nobody_at_the_address_is_said_with_what_to_do() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/dicom-web"
    with pytest.raises(CaseError, match="Check the address") as caught, fetched(url, STUDY):
        pass
    assert caught.value.code == "pacs-unreachable"


def test_a_fetched_study_does_not_stay_on_the_disk(archive: DICOMwebClient, tmp_path: Path) -> None:
    study = f"{STUDY}.9"
    folder = write_study(tmp_path / "study", study=study)
    given = [pydicom.dcmread(path) for path in folder.rglob("*.dcm")]
    archive.store_instances(given)
    with fetched(archive.base_url, study) as found:
        assert len(list(found.iterdir())) == len(given)
        assert found.parent.stat().st_mode & 0o077 == 0
    assert not found.parent.exists()


@pytest.mark.parametrize(
    "words", [(), ("--study", STUDY), ("CASE", "--send"), ("CASE", "--study", STUDY, "--pacs", "x")]
)
def test_a_command_that_does_not_say_which_case_is_refused(
    clinic: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    assert clinic("segment", *words, "--out", tmp_path / "out", "--model", tmp_path).code == 2
