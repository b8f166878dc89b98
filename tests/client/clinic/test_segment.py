"""A case in, a mask on its own grid out, whatever way the scanner wrote it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from matplotlib.image import imread
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy import ndimage

from client.clinic import segment as segmenting
from client.clinic.dicom_results import writer
from client.clinic.released_model import Model, open_model
from client.clinic.result_folder import Segmentation, volumes_ml
from client.clinic.result_schema import Result
from client.clinic.segment import network_of, segment, segment_case
from client.cohort.case_discovery import read_case
from client.site.execution import ExecutionOptions
from common.errors import CaseError, ModelError, StateError
from common.regions import MODALITIES
from common.study.protocol import PreprocessingOptions, preprocessing_digest
from tests import raw_heads
from tests.consortia import World
from tests.scanners import write_study

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
    assert result["familiarity"]["cohort"] == "none"
    assert result["seconds"] > 0
    assert list(result["stages"]) == ["load", "prepare", "predict", "measure", "write"]
    told = sum(spent["wall_s"] for spent in result["stages"].values())
    assert told == pytest.approx(result["seconds"], abs=0.2)
    assert Result.model_validate(result).model_dump(mode="json") == result
    assert result["case"] == "case"
    assert (result["study_date"], result["change"]) == (None, None)
    assert result["findings"]["side"] in {"left", "right", "midline", "both", None}
    assert [one["site"] for one in result["federation"]["sites"]] == ["north"]
    assert (out / "report.pdf").read_bytes().startswith(b"%PDF-")
    html = (out / "report.html").read_text()
    assert f"{result['volumes_ml']['WT']:.1f}" in html
    assert result["model"]["weights_sha256"] in html
    again = segment(
        folder, tmp_path / "again", world.model(), execution=PLAIN, trusted=True, prior=out
    )
    assert again["change"]["prior"] == "out"
    assert again["change"]["same_model"] is True
    assert {one["percent"] for one in again["change"]["volumes_ml"].values()} <= {0.0, None}
    picture = imread(out / "overview.png")
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.05
    assert sorted(p.name for p in out.iterdir()) == [
        "overview.png",
        "report.html",
        "report.pdf",
        "result.json",
        "segmentation.nii.gz",
        "uncertainty.nii.gz",
    ]
    unsure = nib.load(out / "uncertainty.nii.gz")
    assert np.array_equal(unsure.affine, source.affine)
    percent = np.asarray(unsure.dataobj)
    assert (percent.dtype, percent.shape) == (np.uint8, source.shape)
    brain = np.any([nib.load(i.path).get_fdata() != 0 for i in found.images.values()], axis=0)
    assert 0 < percent.max() <= 100
    assert not percent[~ndimage.binary_dilation(brain, iterations=2)].any()
    assert set(result["confidence"]) == {"WT", "TC", "ET"}
    assert all(0 <= value <= 1 for value in result["confidence"].values())
    assert (result["calibrated"], result["together_with"]) == (False, [])
    assert result["postprocessing"]["thresholds"] == [0.5, 0.5, 0.5]


def test_of_a_dicom_study_the_result_is_dicom_too(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = write_study(tmp_path / "study")
    result = segment(study, out, world.model(), execution=PLAIN, trusted=True)
    assert set(result["dicom"]) == {
        "segmentation.dcm",
        "report.dcm",
        "uncertainty.dcm",
        "document.dcm",
    }
    mask = pydicom.dcmread(out / "segmentation.dcm")
    assert mask.SOPInstanceUID == result["dicom"]["segmentation.dcm"]
    source = pydicom.dcmread(next((study / "5").iterdir()))
    assert mask.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID


def test_a_result_that_does_not_become_whole_leaves_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    study = write_study(tmp_path / "study")

    def refused(*_: Any, **__: Any) -> dict[str, str]:
        assert (out / "report.pdf").exists(), "the objects are the last but one that is written"
        raise CaseError("The headers are odd.", code="case-headers")

    monkeypatch.setattr(writer, "write_results", refused)
    with pytest.raises(CaseError, match="odd"):
        segment(study, out, world.model(), execution=PLAIN, trusted=True)
    assert list(out.iterdir()) == []


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


def test_postprocessing_is_the_protocols(world: World, case: Path) -> None:
    model = world.model()
    network = network_of(model)

    def found(**options: Any) -> np.ndarray:
        changed = model.protocol.postprocessing.model_copy(update=options)
        protocol = model.protocol.model_copy(update={"postprocessing": changed})
        other = dataclasses.replace(model, protocol=protocol)
        return segment_case(read_case(case), other, network, execution=PLAIN).labels

    low, high = found(thresholds=(0.1, 0.1, 0.1)), found(thresholds=(0.9, 0.1, 0.1))
    assert np.count_nonzero(low) > np.count_nonzero(high)
    without = found(thresholds=(0.1, 0.1, 0.1), smallest_et_mm3=1e7)
    assert np.count_nonzero(low == 3) > 0
    assert not np.count_nonzero(without == 3)
    assert np.array_equal(low > 0, without > 0)


def test_temperatures_change_confidence_and_no_label(world: World, case: Path) -> None:
    model = world.model()
    network = network_of(model)
    plain = segment_case(read_case(case), model, network, execution=PLAIN)
    cool = segment_case(
        read_case(case), model, network, execution=PLAIN, temperatures=(4.0, 4.0, 4.0)
    )
    assert np.array_equal(plain.labels, cool.labels)
    assert plain.uncertainty is not None
    assert cool.uncertainty is not None
    assert np.abs(cool.uncertainty - plain.uncertainty).max() > 0.01
    assert cool.confidence != plain.confidence


def test_several_models_predict_together(world: World, case: Path, tmp_path: Path) -> None:
    first, second = (open_model(folder) for folder in world.releases)
    result = segment(case, tmp_path / "out", first, execution=PLAIN, trusted=True, others=[second])
    assert result["model"] == first.identity
    assert result["together_with"] == [second.identity]
    alone = segment_case(read_case(case), first, network_of(first), execution=PLAIN)
    both = [network_of(first), network_of(second)]
    together = segment_case(read_case(case), first, both, execution=PLAIN)
    assert alone.confidence != together.confidence
    assert together.confidence == result["confidence"]


def test_models_of_another_preprocessing_do_not_predict_together(
    world: World, case: Path, tmp_path: Path
) -> None:
    model = world.model()
    protocol = model.protocol.model_copy(update={"preprocessing_sha256": "0" * 64})
    other = dataclasses.replace(model, protocol=protocol)
    with pytest.raises(ModelError, match="prepared differently"):
        segment(case, tmp_path / "out", model, execution=PLAIN, trusted=True, others=[other])
    assert not (tmp_path / "out").exists()


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


def lenient(model: Model, **changes: Any) -> Model:
    """Return a model as if its study had had sequence dropout."""
    training = model.protocol.training.model_copy(update={"sequence_dropout": 0.5})
    protocol = model.protocol.model_copy(update={"training": training, **changes})
    return dataclasses.replace(model, protocol=protocol)


def lacking(case: Path, target: Path, *names: str) -> Path:
    folder = turned(case, target, "RAS")
    for name in names:
        next(folder.glob(f"*-{name}.nii.gz")).unlink()
    return folder


@pytest.mark.parametrize("missing", [("t1n",), ("t1c", "t2w"), ("t1n", "t2w", "t2f")])
def test_a_case_that_lacks_sequences_is_segmented_with_a_warning(
    world: World, case: Path, tmp_path: Path, missing: tuple[str, ...]
) -> None:
    folder = lacking(case, tmp_path / "case", *missing)
    out = tmp_path / "out"
    result = segment(folder, out, lenient(world.model()), execution=PLAIN, trusted=True)
    assert result["missing"] == list(missing)
    assert result["grid_of"] == ("t2f" if "t1c" in missing else "t1c")
    assert set(result["inputs"]) == set(MODALITIES) - set(missing)
    (record,) = (one for one in result["preparation"] if one["step"] == "missing")
    assert record["sequences"] == list(missing)
    words = " ".join(result["warnings"])
    assert all(f"({name})" in words for name in missing)
    assert ("nothing shows which tumour takes up contrast" in words) == ("t1c" in missing)
    assert ("With one sequence alone" in words) == (len(missing) == 3)
    assert nib.load(out / "segmentation.nii.gz").shape == nib.load(out / "uncertainty.nii.gz").shape
    for low, high in result["range_ml"].values():
        assert 0 <= low <= high
    assert imread(out / "overview.png")[..., :3].std() > 0.05


def test_the_uncertainty_lies_in_the_brain_on_the_inputs_grid(
    world: World, case: Path, tmp_path: Path
) -> None:
    folder = turned(case, tmp_path / "case", "PIR")
    out = tmp_path / "out"
    result = segment(folder, out, world.model(), execution=PLAIN, trusted=True)
    assert (result["missing"], result["grid_of"]) == ([], "t1c")
    source = nib.load(read_case(folder).images["t1c"].path)
    found = nib.load(out / "uncertainty.nii.gz")
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(found.affine, source.affine)
    values = np.asarray(found.dataobj)
    assert 0 < values.max() <= 100
    far = ndimage.binary_dilation(np.asarray(source.dataobj) != 0, iterations=2)
    assert not values[~far].any()


@pytest.mark.parametrize("missing", [("t1n",), ("t1c",), ("t2f", "t2w")])
def test_a_model_that_never_learnt_it_refuses_what_lacks_a_sequence(
    world: World, case: Path, tmp_path: Path, missing: tuple[str, ...]
) -> None:
    folder = lacking(case, tmp_path / "case", *missing)
    with pytest.raises(CaseError, match=r"sequence_dropout = 0") as caught:
        segment(folder, tmp_path / "out", world.model(), execution=PLAIN, trusted=True)
    assert caught.value.code == "case-sequence"
    assert not (tmp_path / "out").exists()


def test_without_contrast_enhanced_t1_and_flair_nothing_can_be_said(
    world: World, case: Path, tmp_path: Path
) -> None:
    folder = lacking(case, tmp_path / "case", "t1c", "t2f")
    with pytest.raises(CaseError, match="t1c or t2f must be there") as caught:
        segment(folder, tmp_path / "out", lenient(world.model()), execution=PLAIN, trusted=True)
    assert caught.value.code == "case-sequence"
    assert not (tmp_path / "out").exists()


def test_raw_input_without_t1_is_segmented_on_the_grid_of_the_flair(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = raw_heads.head()
    raw_heads.know_brain(monkeypatch, made, on="t2f")
    raw_heads.know_motions(monkeypatch, made)
    case = raw_heads.write(tmp_path / "case", made, label_on=None)
    for name in ("t1n", "t1c"):
        case.images[name].path.unlink()
    options = PreprocessingOptions(input="raw", spacing_mm=6.0)
    model = lenient(world.model(), preprocessing=options)
    out = tmp_path / "out"
    result = segment(tmp_path / "case", out, model, execution=PLAIN, trusted=True)
    assert result["grid_of"] == "t2f"
    for name in ("segmentation", "uncertainty"):
        image = nib.load(out / f"{name}.nii.gz")
        assert image.shape == made.images["t2f"].shape
        np.testing.assert_allclose(image.affine, made.affines["t2f"], atol=1e-4)
    assert any("sought in the FLAIR" in warning for warning in result["warnings"])
    assert imread(out / "overview.png")[..., :3].std() > 0.05
