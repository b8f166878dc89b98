"""No reader of scans or releases waits for the other end of a pipe."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from client.clinic.released_model import open_model
from client.cohort.case_discovery import read_cohort
from client.imaging.case import Image, Part
from client.imaging.dicom.files_and_zips import contents
from client.imaging.nifti import read_volume
from client.imaging.prepared_cache import content_sha256
from common.errors import CaseError, GliofedError, ModelError

pytestmark = pytest.mark.usefixtures("at_once")


READERS: dict[str, tuple[Callable[[Path], object], type[GliofedError] | type[OSError]]] = {
    "a NIfTI file": (read_volume, CaseError),
    "a DICOM file": (lambda path: list(contents([Part(path)])), CaseError),
    "a file to be hashed": (lambda path: content_sha256(Image(path)), OSError),
}


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_of_foreign_files_waits_for_a_pipe(tmp_path: Path, reader: str) -> None:
    read, error = READERS[reader]
    path = tmp_path / "there"
    os.mkfifo(path)
    with pytest.raises(error, match="named pipe"):
        read(path)


@pytest.mark.parametrize("name", ["a.dcm", "no-suffix", "study.zip"])
def test_a_cohort_with_a_pipe_in_it_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "case").mkdir()
    os.mkfifo(tmp_path / "case" / name)
    with pytest.raises(CaseError, match="named pipe"):
        read_cohort(tmp_path)


@pytest.mark.parametrize("name", ["release.json", "card.json"])
def test_a_release_with_a_pipe_in_it_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError):
        open_model(tmp_path)
