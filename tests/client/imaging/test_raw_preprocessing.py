"""A raw head becomes the network's input: in place, without its skull, and back again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.imaging import bias_field, grid, raw_preprocessing, registration
from client.imaging.case import Case
from client.imaging.missing_sequences import present
from client.imaging.nifti import read_volume
from client.imaging.plausibility import warnings_of
from client.imaging.prepared_cache import PreparedCache
from client.imaging.preprocessing import Prepared, digest, prepare, to_native
from client.phantoms.profiles import PROFILES
from client.phantoms.raw_head import RawCase, make_raw_case
from common.errors import CaseError
from common.regions import MODALITIES, labels_to_regions, regions_to_labels
from common.study.protocol import PreprocessingOptions
from tests.raw_heads import SPACING_MM, drawn_on, head, know_brain, know_motions, write

RAW = PreprocessingOptions(input="raw", spacing_mm=SPACING_MM)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> RawCase:
    """Return a head; its brain and its motions need not be searched for."""
    know_brain(monkeypatch, head())
    know_motions(monkeypatch, head())
    return head()


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def back(prepared: Prepared) -> np.ndarray:
    assert prepared.labels is not None
    regions = labels_to_regions(prepared.labels).astype(np.float32)
    return regions_to_labels(to_native(regions, prepared) >= 0.5)


def resaved(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(data, affine), path)


def test_a_raw_head_is_aligned_stripped_and_comes_back_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = head()
    know_brain(monkeypatch, made)
    monkeypatch.setattr(registration, "_VOXELS", 20_000)
    monkeypatch.setattr(bias_field, "_ITERATIONS", (5,))
    case = write(tmp_path / "case", made)
    prepared = PreparedCache(tmp_path / "cache", RAW).get(case)
    assert "".join(nib.aff2axcodes(prepared.affine)) == "RAS"
    np.testing.assert_allclose(prepared.native_affine, made.affines["t1c"], atol=1e-4)
    assert prepared.native_shape == made.images["t1c"].shape
    np.testing.assert_array_equal(back(prepared), made.labels)

    brain = (prepared.image != 0).any(axis=0)
    there = to_native(brain[None].astype(np.float32), prepared)[0] > 0.5
    assert dice(there, made.brain) > 0.99
    for channel in prepared.image:
        inside = channel[brain & (channel != 0)]
        assert abs(inside.mean()) < 1e-3
        assert abs(inside.std() - 1) < 1e-3
    # Oedema is bright in FLAIR only if FLAIR lies where the tumour does.
    flair = prepared.image[MODALITIES.index("t2f")]
    assert prepared.labels is not None
    assert flair[prepared.labels == 2].mean() > 0.8

    steps = [record["step"] for record in prepared.history]
    assert steps == [
        "algorithm",
        *["reorient", "n4"] * 4,
        *["register"] * 3,
        *["brain", "quality", "crop", "resample", "z-score"],
    ]
    found = {r["sequence"]: r for r in prepared.history if r["step"] == "register"}
    assert set(found) == {"t1n", "t2w", "t2f"}
    for name, record in found.items():
        off = np.array(record["matrix"]) - made.motions[name]
        centre = made.affines["t1c"] @ np.array([25.0, 29.0, 24.0, 1.0])
        assert np.linalg.norm(off @ centre) < 1.2
        assert "SimpleITK" in record["library"]
    assert prepared.history[0]["digest"] == digest(RAW) != digest(PreprocessingOptions())

    # From the cache as it was prepared.
    monkeypatch.setattr(raw_preprocessing, "register", None)
    again = PreparedCache(tmp_path / "cache", RAW).get(case)
    np.testing.assert_array_equal(again.image, prepared.image)
    np.testing.assert_array_equal(again.labels, prepared.labels)
    assert again.history == prepared.history


def test_a_raw_head_prepared_twice_has_the_same_bits(
    made: RawCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its motions known; that two searches find the same ones, ``test_registration`` shows."""
    monkeypatch.setattr(bias_field, "_ITERATIONS", (5,))
    case = write(tmp_path / "case", made)
    one, two = prepare(case, RAW), prepare(case, RAW)
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.labels, two.labels)
    assert one.history == two.history


def test_a_mask_drawn_on_another_sequence_is_moved_with_it(made: RawCase, tmp_path: Path) -> None:
    case = write(tmp_path / "case", made, label_on="t2f")
    prepared = prepare(case, PreprocessingOptions(input="raw", spacing_mm=3.0))
    assert prepared.image.shape[1:] == prepared.labels.shape  # type: ignore[union-attr]
    assert dice(back(prepared) > 0, made.labels > 0) > 0.9
    assert case.label is not None
    stray = nib.load(case.label)
    resaved(case.label, np.asarray(stray.dataobj)[1:], stray.affine)
    with pytest.raises(CaseError, match="different grids") as caught:
        prepare(case, RAW)
    assert caught.value.code == "case-grid"


def test_a_sequence_that_ends_within_the_brain_is_0_beyond(made: RawCase, tmp_path: Path) -> None:
    case = write(tmp_path / "case", made)
    path = case.images["t2f"].path
    whole = nib.load(path)
    resaved(path, np.asarray(whole.dataobj)[:, :, :34], whole.affine)
    prepared = prepare(case, RAW)
    warnings = warnings_of(prepared.history)
    assert any("t2f shows only" in warning for warning in warnings)
    brain = prepared.image[MODALITIES.index("t1c")] != 0
    flair = prepared.image[MODALITIES.index("t2f")]
    assert 0.02 < (flair[brain] == 0).mean() < 0.5
    assert not flair[:, :, -6:].any()


def sheared(case: Case) -> None:
    image = nib.load(case.images["t2w"].path)
    affine = image.affine.copy()
    affine[:3, 0] += 0.1 * affine[:3, 1]
    resaved(case.images["t2w"].path, np.asarray(image.dataobj), affine)


def slab(case: Case) -> None:
    image = nib.load(case.images["t2w"].path)
    resaved(case.images["t2w"].path, np.asarray(image.dataobj)[:, :, 20:26], image.affine)


def elsewhere(case: Case) -> None:
    """Half a head, in a field of view that shows little of the brain."""
    image = nib.load(case.images["t2w"].path)
    resaved(case.images["t2w"].path, np.asarray(image.dataobj)[:, :, :16], image.affine)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [(sheared, "case-affine"), (slab, "case-coverage"), (elsewhere, "")],
    ids=["sheared axes", "six slices", "below the brain"],
)
def test_what_cannot_be_a_head_is_refused_by_name(
    made: RawCase, tmp_path: Path, spoil: object, code: str
) -> None:
    case = write(tmp_path / "case", made)
    spoil(case)  # type: ignore[operator]
    with pytest.raises(CaseError, match="t2w") as caught:
        prepare(case, RAW)
    assert caught.value.code == code or caught.value.code in ("case-coverage", "case-registration")
    assert caught.value.do


def test_a_brain_of_no_possible_size_is_refused(
    made: RawCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def speck(image: np.ndarray) -> np.ndarray:
        brain = np.zeros(image.shape, bool)
        brain[90:120, 90:120, 90:120] = True
        return brain

    monkeypatch.setattr(raw_preprocessing, "extract_brain", speck)
    with pytest.raises(CaseError, match=r"\d\d mL, which no brain") as caught:
        prepare(write(tmp_path / "case", made), RAW)
    assert caught.value.code == "case-brain"


def test_where_the_plain_t1_ends_the_brain_is_found_in_the_other(made: RawCase) -> None:
    volumes = {
        name: raw_preprocessing._canonical(
            raw_preprocessing.Volume(made.images[name].astype(np.float32), made.affines[name])
        )
        for name in ("t1n", "t1c")
    }
    found, source = raw_preprocessing._brain(volumes, {"t1n": made.motions["t1n"]}, "t1c")
    assert source == "t1n"
    cut = dataclasses.replace(volumes["t1n"], data=volumes["t1n"].data[:, :, :30])
    other, source = raw_preprocessing._brain(
        {**volumes, "t1n": cut}, {"t1n": made.motions["t1n"]}, "t1c"
    )
    assert source == "t1c"
    np.testing.assert_array_equal(found, other)


def test_stripped_input_is_still_refused_when_it_is_not(made: RawCase, tmp_path: Path) -> None:
    case = write(tmp_path / "case", made)
    with pytest.raises(CaseError, match="different grids"):
        prepare(case, PreprocessingOptions(spacing_mm=SPACING_MM))
    volume = read_volume(case.images["t1c"].path)
    for name in MODALITIES:
        resaved(case.images[name].path, volume.data + 1, volume.affine)
    with pytest.raises(CaseError, match=r'preprocessing\.input = "raw"') as caught:
        prepare(case, PreprocessingOptions(spacing_mm=SPACING_MM))
    assert caught.value.code == "case-not-stripped"


def test_one_transform_composes_grid_motion_and_grid(made: RawCase) -> None:
    volume = raw_preprocessing.Volume(made.images["t2w"], made.affines["t2w"])
    target = made.affines["t1c"]
    to_volume = raw_preprocessing.through(volume, made.motions["t2w"], target)
    index = np.array([20, 30, 25, 1.0])
    world = made.motions["t2w"] @ target @ index
    np.testing.assert_allclose(made.affines["t2w"] @ to_volume @ index, world, atol=1e-9)
    assert grid.within(to_volume, volume.data.shape, made.images["t1c"].shape).any()


def without(case: Case, *names: str) -> Case:
    images = {name: image for name, image in case.images.items() if name not in names}
    return dataclasses.replace(case, images=images)


@pytest.mark.parametrize("missing", [("t1n",), ("t2w", "t2f"), ("t1n", "t2w", "t2f")])
def test_a_raw_head_without_some_sequences_lies_where_it_lay(
    made: RawCase, tmp_path: Path, missing: tuple[str, ...]
) -> None:
    case = write(tmp_path / "case", made)
    whole, fewer = prepare(case, RAW), prepare(without(case, *missing), RAW)
    assert fewer.missing == tuple(n for n in MODALITIES if n in missing)
    np.testing.assert_array_equal(fewer.affine, whole.affine)
    assert fewer.native_shape == whole.native_shape
    for channel, name in enumerate(MODALITIES):
        if name not in missing:
            np.testing.assert_array_equal(fewer.image[channel], whole.image[channel])
    assert present(fewer.image).tolist() == [name not in missing for name in MODALITIES]


@pytest.mark.parametrize("missing", [("t1c",), ("t1n", "t1c"), ("t1n", "t1c", "t2w")])
def test_without_contrast_enhanced_t1_the_flair_is_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    made = head()
    know_brain(monkeypatch, made, on="t2f")
    know_motions(monkeypatch, made)
    case = without(write(tmp_path / "case", made, label_on="t2f"), *missing)
    prepared = prepare(case, RAW)
    assert prepared.missing == missing
    assert prepared.native_shape == made.images["t2f"].shape
    np.testing.assert_allclose(prepared.native_affine, made.affines["t2f"], atol=1e-4)
    assert dice(back(prepared) > 0, drawn_on(made, "t2f") > 0) > 0.98
    registered = [r for r in prepared.history if r["step"] == "register"]
    assert {r["sequence"] for r in registered} == {"t1n", "t2w"} - set(missing)
    assert {r["to"] for r in registered} <= {"t2f"}
    (found,) = (r["sequence"] for r in prepared.history if r["step"] == "brain")
    assert found == ("t2f" if "t1n" in missing else "t1n")
    said = any("sought in the FLAIR" in one for one in warnings_of(prepared.history))
    assert said == ("t1n" in missing)


def test_the_sequences_of_a_head_without_contrast_lie_on_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the true motions to the FLAIR: the T2's brain lies where the FLAIR's does."""
    made = head()
    know_brain(monkeypatch, made, on="t2f")
    know_motions(monkeypatch, made)
    case = without(write(tmp_path / "case", made), "t1c")
    volumes = {name: read_volume(image.path) for name, image in case.images.items()}
    aligned = raw_preprocessing.align(volumes, {name: name for name in volumes}, "head")
    assert aligned.name == "t2f"
    expected = made.motions["t2w"] @ np.linalg.inv(made.motions["t2f"])
    np.testing.assert_allclose(aligned.motions["t2w"], expected, atol=1e-9)


@pytest.mark.slow
def test_in_a_flair_alone_the_brain_is_found() -> None:
    made = make_raw_case(PROFILES["reference"], seed=1, number=2, working_mm=2.0)
    volume = raw_preprocessing._canonical(
        raw_preprocessing.Volume(made.images["t2f"].astype(np.float32), made.affines["t2f"])
    )
    found, source = raw_preprocessing._brain({"t2f": volume}, {}, "t2f")
    to_t1c = np.linalg.inv(made.motions["t2f"] @ made.affines["t1c"]) @ volume.affine
    truth = grid.sample(
        made.brain.astype(np.float32), to_t1c, found.shape, smooth=False, outside=0.0
    )
    assert source == "t2f"
    assert dice(found, truth >= 0.5) > 0.95
