"""A case in, a mask on its own grid out, whatever way the scanner wrote it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy import ndimage

from client.cohort import read_case
from client.inference import segment as segmenting
from client.inference.segment import Segmentation, network_of, segment, segment_case, volumes_ml
from client.training import ExecutionOptions
from common.errors import CaseError, StateError
from common.protocol import PreprocessingOptions, preprocessing_digest
from common.regions import MODALITIES
from tests import raw_heads
from tests.consortia import World

PLAIN = ExecutionOptions(prefetch=0)


def turned(case: Path, target: Path, codes: str) -> Path:
    """Write the four sequences of ``case`` with their axes in another order and direction."""
    target.mkdir()
    for path in case.glob("*.nii.gz"):
        if path.name.endswith("-seg.nii.gz"):
            continue
        image = nib.load(path)
        turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
        data = nib.apply_orientation(image.get_fdata(dtype=np.float32), turn)
        affine = image.affine @ inv_ornt_aff(turn, image.shape)
        nib.save(nib.Nifti1Image(data, affine), target / path.name)
    return target


@pytest.fixture
def case(cohort: Path) -> Path:
    return min(path for path in cohort.iterdir() if path.is_dir())


def test_the_result_is_complete_and_on_the_inputs_grid(
    world: World, case: Path, tmp_path: Path
) -> None:
    folder = turned(case, tmp_path / "case", "PIR")
    out = tmp_path / "out"
    result = segment(folder, out, world.model(), execution=PLAIN, trusted=True)
    assert json.loads((out / "result.json").read_text()) == result
    found = read_case(folder)
    source = nib.load(found.images["t1n"].path)
    mask = nib.load(out / "segmentation.nii.gz")
    assert mask.shape == source.shape
    assert np.array_equal(mask.affine, source.affine)
    assert mask.get_data_dtype() == np.uint8
    labels = np.asarray(mask.dataobj)
    assert set(np.unique(labels)) <= {0, 1, 2, 3}
    voxel_ml = abs(np.linalg.det(source.affine[:3, :3])) / 1000
    for name, value in {"NCR": 1, "ED": 2, "ET": 3}.items():
        assert result["volumes_ml"][name] == pytest.approx(
            (labels == value).sum() * voxel_ml, abs=2e-3
        )
    assert set(result["inputs"]) == set(MODALITIES)
    first = result["inputs"]["t1n"]
    path = found.images["t1n"].path
    assert first == {
        "file": path.name,
        "channel": None,
        "series": None,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert result["model"] == world.model().identity
    assert result["seconds"] > 0
    picture = imread(out / "overview.png")
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.05
    assert sorted(p.name for p in out.iterdir()) == [
        "overview.png",
        "result.json",
        "segmentation.nii.gz",
        "uncertainty.nii.gz",
    ]


@pytest.mark.parametrize("codes", ["LPS", "PIR", "SAL", "IRA"])
def test_the_orientation_changes_nothing_in_the_patient(
    world: World, case: Path, tmp_path: Path, codes: str
) -> None:
    model = world.model()
    network = network_of(model)
    straight = segment_case(
        read_case(turned(case, tmp_path / "ras", "RAS")), model, network, execution=PLAIN
    )
    other = segment_case(
        read_case(turned(case, tmp_path / "other", codes)), model, network, execution=PLAIN
    )
    turn = ornt_transform(io_orientation(other.affine), axcodes2ornt("RAS"))
    back = nib.apply_orientation(other.labels, turn)
    assert back.shape == straight.labels.shape
    assert (back != straight.labels).mean() < 0.01


def test_volumes_add_up() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0], labels[1, :2], labels[2, 0] = 2, 1, 3
    found = Segmentation(labels, np.diag([-2.0, 5.0, 10.0, 1.0]))
    assert volumes_ml(found) == {"NCR": 0.8, "ED": 1.6, "ET": 0.4, "TC": 1.2, "WT": 2.8}


@pytest.mark.parametrize("trusted", [True, False])
def test_what_a_person_must_know_is_said(
    world: World, case: Path, tmp_path: Path, trusted: bool
) -> None:
    result = segment(case, tmp_path / "out", world.model(), execution=PLAIN, trusted=trusted)
    words = " ".join(result["warnings"])
    assert "Research use only" in result["warnings"][0]
    assert ("nobody said whose signature" in words) is not trusted
    assert "10.0 mm wide" in words


def test_no_tumour_is_said(
    world: World, case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(found: Any, *_: Any, **__: Any) -> Segmentation:
        image = nib.load(found.images["t1n"].path)
        return Segmentation(np.zeros(image.shape, np.uint8), image.affine)

    monkeypatch.setattr(segmenting, "segment_case", nothing)
    result = segment(case, tmp_path / "out", world.model(), execution=PLAIN, trusted=True)
    assert any("No tumour was found" in warning for warning in result["warnings"])
    assert (tmp_path / "out" / "overview.png").is_file()


def test_a_result_is_never_written_over(world: World, case: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.txt").write_text("mine")
    with pytest.raises(StateError, match="is not an empty folder"):
        segment(case, tmp_path / "out", world.model(), execution=PLAIN, trusted=True)
    with pytest.raises(StateError, match="is not an empty folder"):
        segment(case, tmp_path / "out" / "note.txt", world.model(), execution=PLAIN, trusted=True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["note.txt"]


@pytest.mark.parametrize("damage", ["missing", "broken", "empty", "other grid"])
def test_a_refused_case_writes_nothing(
    world: World, case: Path, tmp_path: Path, damage: str
) -> None:
    folder = turned(case, tmp_path / "case", "RAS")
    path = next(folder.glob("*-t1c.nii.gz"))
    image = nib.load(path)
    if damage == "missing":
        path.unlink()
    elif damage == "broken":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "empty":
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine), path)
    else:
        half = image.get_fdata(dtype=np.float32)[::2]
        nib.save(nib.Nifti1Image(half, image.affine), path)
    with pytest.raises(CaseError):
        segment(folder, tmp_path / "out", world.model(), execution=PLAIN, trusted=True)
    assert not (tmp_path / "out").exists()


def test_raw_input_is_segmented_on_the_grid_of_the_contrast_enhanced_t1(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = raw_heads.head()
    raw_heads.know_brain(monkeypatch, made)
    raw_heads.know_motions(monkeypatch, made)
    raw_heads.write(tmp_path / "case", made, label_on=None)
    options = PreprocessingOptions(input="raw", spacing_mm=6.0)
    trained = world.model()
    protocol = trained.protocol.model_copy(update={"preprocessing": options})
    model = dataclasses.replace(trained, protocol=protocol)
    out = tmp_path / "out"
    segment(tmp_path / "case", out, model, execution=PLAIN, trusted=True)

    mask = nib.load(out / "segmentation.nii.gz")
    assert mask.shape == made.images["t1c"].shape
    np.testing.assert_allclose(mask.affine, made.affines["t1c"], atol=1e-4)
    outside = np.asarray(mask.dataobj)[~ndimage.binary_dilation(made.brain, iterations=4)]
    assert not outside.any()
    preparation = json.loads((out / "result.json").read_text())["preparation"]
    assert preparation[0]["digest"] == preprocessing_digest(options)
    assert {r["sequence"] for r in preparation if r["step"] == "register"} == {"t1n", "t2w", "t2f"}
    assert all(r["residual_mm"] == 0.1 for r in preparation if r["step"] == "register")
    assert imread(out / "overview.png")[..., :3].std() > 0.05
    assert str(tmp_path) not in json.dumps(preparation)


def test_what_makes_a_preparation_doubtful_is_said(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = raw_heads.head()
    raw_heads.know_brain(monkeypatch, made)
    raw_heads.know_motions(monkeypatch, made)
    case = raw_heads.write(tmp_path / "case", made, label_on=None)
    flair = nib.load(case.images["t2f"].path)
    cut = nib.Nifti1Image(np.asarray(flair.dataobj)[:, :, :34], flair.affine)
    nib.save(cut, case.images["t2f"].path)
    options = PreprocessingOptions(input="raw", spacing_mm=6.0)
    protocol = world.model().protocol.model_copy(update={"preprocessing": options})
    model = dataclasses.replace(world.model(), protocol=protocol)
    result = segment(tmp_path / "case", tmp_path / "out", model, execution=PLAIN, trusted=True)
    assert any("t2f shows only" in warning for warning in result["warnings"])
