"""A clinic's network reads what a site's network was trained on, bit by bit, or refuses to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from client.cohort.series_decisions import cohort_of
from client.commands import clinic as cli
from client.study.round_training import loaders
from common.study import protocol as protocols
from common.study.protocol import PROTOCOL, PreprocessingOptions, preprocessing_digest
from common.trust.identity import Statement
from tests import raw_heads
from tests.conftest import MakeSite
from tests.consortia import World, prepared_as, sign_again
from tests.scanners import oblique, voxels, write_study, zipped

Run = Callable[..., Any]
Make = Callable[[Path, pytest.MonkeyPatch], Path]

BRATS = PreprocessingOptions(spacing_mm=6.0)
RAW = PreprocessingOptions(input="raw", spacing_mm=6.0)


def brats(data: Path, patch: pytest.MonkeyPatch) -> Path:
    made = raw_heads.head()
    stripped = [np.where(made.brain, made.images["t1c"] + n, 0) for n in range(4)]
    folder = data / "case-00001-000"
    folder.mkdir(parents=True)
    names = ("t1n", "t1c", "t2w", "t2f", "seg")
    for name, image in zip(names, (*stripped, made.labels), strict=True):
        nib.save(nib.Nifti1Image(image, made.affines["t1c"]), folder / f"{folder.name}-{name}.nii")
    return folder


def raw(data: Path, patch: pytest.MonkeyPatch) -> Path:
    made = raw_heads.head()
    raw_heads.know_brain(patch, made)
    raw_heads.know_motions(patch, made)
    data.mkdir()
    raw_heads.write(data / "case-00001-000", made)
    return data / "case-00001-000"


def dicom(data: Path, patch: pytest.MonkeyPatch) -> Path:
    folder = write_study(data / "study")
    mask = np.zeros(voxels().shape, np.uint8)
    mask[7:10, 6:9, 5:8] = 3
    nib.save(nib.Nifti1Image(mask, oblique()), folder / "a-seg.nii.gz")
    return folder


def as_it_is(folder: Path, elsewhere: Path) -> Path:
    return Path(shutil.copytree(folder, elsewhere, ignore=shutil.ignore_patterns("*seg.nii*")))


def in_a_zip(folder: Path, elsewhere: Path) -> Path:
    return zipped(as_it_is(folder, elsewhere), elsewhere.with_suffix(".zip"))


WAYS: dict[str, tuple[PreprocessingOptions, Make, Callable[[Path, Path], Path]]] = {
    "NIfTI in BraTS layout": (BRATS, brats, as_it_is),
    "raw NIfTI": (RAW, raw, as_it_is),
    "DICOM folder": (BRATS, dicom, as_it_is),
    "DICOM zip": (BRATS, dicom, in_a_zip),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_case_is_the_same_in_training_and_in_the_clinic(
    world: World,
    make_site: MakeSite,
    command: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """The clinic has it elsewhere and without the mask, and never the site's cache."""
    options, make, bring = WAYS[way]
    folder = make(tmp_path / "scans", monkeypatch)
    site = make_site(data=tmp_path / "scans")
    (case,) = cohort_of(site).cases
    (load,) = loaders(site, options, [case])
    trained_on = load()
    assert trained_on.labels is not None
    assert trained_on.labels.any()
    cached = load()
    assert isinstance(cached.image.base, np.memmap)

    prepared_as(world.release, world.consortium.identity, options)
    said = command(
        cli.main,
        *("segment", bring(folder, tmp_path / "elsewhere"), "--out", tmp_path / "out"),
        *("--model", world.release, "--json"),
    )
    assert said.code == 0, said
    assert said.json["prepared_sha256"] == trained_on.input_sha256 == cached.input_sha256
    assert said.json["preparation"] == list(trained_on.history)
    assert said.json["preparation"][0]["digest"] == preprocessing_digest(options)


@pytest.mark.parametrize("change", [1.0, -1e-6], ids=["much", "hardly"])
def test_the_digest_of_the_input_sees_any_change(
    make_site: MakeSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: float
) -> None:
    brats(tmp_path / "scans", monkeypatch)
    site = make_site(data=tmp_path / "scans")
    (load,) = loaders(site, BRATS, cohort_of(site).cases)
    prepared = load()
    before = prepared.input_sha256
    prepared.image[2, 3, 4, 5] += change
    assert prepared.input_sha256 != before
    moved = load()
    moved.affine[0, 3] += change
    assert moved.input_sha256 != before


CHANGED: dict[str, dict[str, Any]] = {
    "spacing": {"spacing_mm": 5.75},
    "margin": {"margin_mm": 5.0},
    "percentiles": {"clip_percentiles": [1.0, 99.0]},
    "input": {"input": "raw"},
}


@pytest.mark.parametrize("changed", CHANGED)
def test_a_changed_parameter_is_refused_even_if_the_coordinator_signs_it(
    world: World, command: Run, cohort: Path, tmp_path: Path, changed: str
) -> None:
    body = Statement.load(world.release / "protocol.json", what="study protocol").body
    options = {**body["preprocessing"], **CHANGED[changed]}
    signed = world.consortium.identity.sign(PROTOCOL, {**body, "preprocessing": options})
    signed.save(world.release / "protocol.json")
    sign_again(world.release, world.consortium.identity)
    _refused(world, command, cohort, tmp_path)


def test_a_changed_step_of_the_installed_preprocessing_is_refused(
    world: World, command: Run, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(protocols.PREPROCESSING_ALGORITHMS, "brats", "brain-zscore/2")
    _refused(world, command, cohort, tmp_path)


def _refused(world: World, command: Run, cohort: Path, tmp_path: Path) -> None:
    case = min(path for path in cohort.iterdir() if path.is_dir())
    out = tmp_path / "out"
    said = command(cli.main, "segment", case, "--out", out, "--model", world.release, "--json")
    assert said.code != 0
    assert said.json["error"] == "model-preprocessing"
    assert "another preprocessing" in said.json["message"]
    assert not out.exists()


_PREPARE = """\
import sys
if sys.argv[2] == "SimpleITK first":
    import SimpleITK
import hashlib
from pathlib import Path
from client.cohort.case_discovery import read_case
from client.site.execution import execution_for
from client.imaging.preprocessing import prepare
from client.segmentation.prediction import predict
from client.site.settings import Machine
from client.networks.registry import build
from common.study.protocol import NetworkOptions, PreprocessingOptions
options = PreprocessingOptions(input="raw", spacing_mm=4.0)
prepared = prepare(read_case(Path(sys.argv[1])), options)
network = build(NetworkOptions(size="base"), seed=0)
execution = execution_for(Machine(device="cpu"))
found = predict(network, prepared.image, crop_size=(32, 32, 32), execution=execution)
print(prepared.input_sha256, hashlib.sha256(found.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_bias_motion_brain_and_prediction_are_the_same_in_any_process(tmp_path: Path) -> None:
    """Processes of their own, as a site's and a clinic's are, with every step as it is."""
    raw_heads.write(tmp_path / "case-00001-000", raw_heads.head())
    found = set()
    for number, first in enumerate(("torch first", "SimpleITK first"), start=1):
        libraries = ("OMP", "MKL", "OPENBLAS")
        limits = {f"{library}_NUM_THREADS": str(number) for library in libraries}
        limits["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(number)
        done = subprocess.run(
            [sys.executable, "-c", _PREPARE, tmp_path / "case-00001-000", first],
            capture_output=True,
            text=True,
            env={**os.environ, **limits, "PYTHONHASHSEED": str(number)},
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
