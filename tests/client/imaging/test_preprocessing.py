"""The network's input: right place, right intensities, and back again without loss."""

from __future__ import annotations

import dataclasses

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy import ndimage

from client.imaging import grid
from client.imaging.label_codings import BRATS_2018, BRATS_2023, PRESUMED
from client.imaging.missing_sequences import ABSENT, PARTIAL, present
from client.imaging.nifti import read_volume
from client.imaging.plausibility import warnings_of
from client.imaging.preprocessing import Prepared, digest, prepare, to_native
from common.errors import CaseError
from common.regions import MODALITIES, labels_to_regions, regions_to_labels
from common.study.protocol import PreprocessingOptions

from .conftest import MakeCase, anatomy

OPTIONS = PreprocessingOptions(spacing_mm=1.0)
ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "ASL", "SPR", "IAL")


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def back(prepared: Prepared) -> np.ndarray:
    """Return the prepared labels on the native grid."""
    assert prepared.labels is not None
    regions = labels_to_regions(prepared.labels).astype(np.float32)
    return regions_to_labels(to_native(regions, prepared) >= 0.5)


def centre_mm(weights: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return nib.affines.apply_affine(affine, ndimage.center_of_mass(weights))


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_equal_spacing_loses_nothing_in_any_orientation(make_case: MakeCase, codes: str) -> None:
    case = make_case(codes=codes)
    prepared = prepare(case, OPTIONS)
    assert case.label is not None
    native = read_volume(case.label)
    np.testing.assert_array_equal(back(prepared), native.data)
    assert "".join(nib.aff2axcodes(prepared.affine)) == "RAS"
    assert prepared.native_shape == native.data.shape
    np.testing.assert_allclose(prepared.native_affine, native.affine)


def test_every_orientation_gives_the_same_input(make_case: MakeCase) -> None:
    reference = prepare(make_case(), OPTIONS)
    for codes in ORIENTATIONS[1:]:
        prepared = prepare(make_case(codes=codes), OPTIONS)
        np.testing.assert_allclose(prepared.image, reference.image, atol=1e-5)
        np.testing.assert_array_equal(prepared.labels, reference.labels)
        np.testing.assert_allclose(prepared.affine, reference.affine, atol=1e-5)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASL"])
@pytest.mark.parametrize("spacing_mm", [(1, 1, 3), (0.8, 1.25, 1), (2, 2, 2), (1.7, 0.9, 2.4)])
@pytest.mark.parametrize("target_mm", [1.0, 1.5])
def test_resampling_keeps_place_and_shape(
    make_case: MakeCase, codes: str, spacing_mm: tuple[float, ...], target_mm: float
) -> None:
    case = make_case(codes=codes, spacing_mm=spacing_mm)
    prepared = prepare(case, PreprocessingOptions(spacing_mm=target_mm))
    assert case.label is not None
    assert prepared.labels is not None
    np.testing.assert_allclose(grid.spacing_of(prepared.affine), target_mm)
    native = read_volume(case.label)
    for values in ((1, 2, 3), (1, 3)):
        there = centre_mm(np.isin(native.data, values), native.affine)
        here = centre_mm(np.isin(prepared.labels, values), prepared.affine)
        assert np.abs(there - here).max() < 0.5 * max(target_mm, *spacing_mm)
    whole = np.isin(native.data, (1, 2, 3))
    assert dice(back(prepared) > 0, whole) > (0.97 if target_mm <= min(spacing_mm) else 0.85)


@pytest.mark.parametrize("target_mm", [0.7, 1.0, 1.6, 2.0, 3.0])
@pytest.mark.parametrize("codes", ["RAS", "PIR"])
def test_an_asymmetric_blob_stays_where_it_is_in_the_world(
    make_case: MakeCase, codes: str, target_mm: float
) -> None:
    """The affine of the result must say where the voxels truly are, to a fraction of a voxel."""
    images, labels = anatomy()
    weights = np.zeros(labels.shape, np.float32)
    weights[10:14, 12:22, 9:18] = 1
    weights[14:20, 12:15, 9:12] = 1
    images = np.where(images > 0, 100.0, 0).astype(np.float32)
    case = make_case(codes=codes, spacing_mm=(1, 1.2, 0.9), images=images + 400 * weights)
    options = PreprocessingOptions(spacing_mm=target_mm, clip_percentiles=(0, 100))
    prepared = prepare(case, options)
    bright = prepared.image[0]
    floor = np.median(bright[bright != 0])
    volume = read_volume(case.images["t1n"].path)
    there = centre_mm(volume.data > 300, volume.affine)
    here = centre_mm(np.clip(bright - floor, 0, None) * (bright > 1), prepared.affine)
    assert np.linalg.norm(there - here) < 0.5 * target_mm


def test_probabilities_keep_their_place_when_resampled(make_case: MakeCase) -> None:
    prepared = prepare(make_case(codes="LPS"), PreprocessingOptions(spacing_mm=2.0))
    blob = np.zeros((3, *prepared.image.shape[1:]), np.float32)
    blob[1, 4:7, 5:9, 3:5] = 1
    native = to_native(blob, prepared)
    there = centre_mm(blob[1], prepared.affine)
    np.testing.assert_allclose(centre_mm(native[1], prepared.native_affine), there, atol=0.3)
    assert not native[0].any()


def test_nothing_is_claimed_outside_the_crop(make_case: MakeCase) -> None:
    for spacing_mm in (1.0, 1.3):
        prepared = prepare(make_case(), PreprocessingOptions(spacing_mm=spacing_mm, margin_mm=0))
        everywhere = to_native(np.ones((3, *prepared.image.shape[1:]), np.float32), prepared)
        brain = anatomy()[0][0] != 0
        box = grid.bounding_box(brain, (0, 0, 0))
        assert everywhere[:, *box].min() == 1
        everywhere[:, *box] = 0
        # A coarser grid covers the box and may reach half a voxel past it.
        allowed = 0 if spacing_mm == 1 else 2 * brain.size / min(brain.shape)
        assert np.count_nonzero(everywhere[0]) <= allowed
    with pytest.raises(ValueError, match="does not fit"):
        to_native(np.ones((3, 2, 2, 2), np.float32), prepared)


def test_intensities_are_z_scores_inside_the_brain_and_0_outside(make_case: MakeCase) -> None:
    prepared = prepare(make_case(), PreprocessingOptions(margin_mm=6.0))
    brain = (prepared.image != 0).any(axis=0)
    assert prepared.image.dtype == np.float32
    assert np.abs(prepared.image[:, brain].mean(axis=1)).max() < 1e-5
    np.testing.assert_allclose(prepared.image[:, brain].std(axis=1), 1, atol=1e-4)
    assert not prepared.image[:, ~brain].any()
    assert not brain[:4].any()  # the margin


def test_extreme_voxels_are_clipped(make_case: MakeCase) -> None:
    images, _ = anatomy()
    images[0, 20, 18, 15] = 1e6
    assert prepare(make_case(images=images), OPTIONS).image.max() < 20


def test_debris_is_cut_off_and_holes_belong_to_the_brain(make_case: MakeCase) -> None:
    images, _ = anatomy()
    plain = prepare(make_case(images=images), OPTIONS)
    images[:, 18:20, 16:18, 14:16] = 0  # a hole
    images[:, 0:2, 0:2, 0:2] = 500  # debris in a corner
    prepared = prepare(make_case(images=images), OPTIONS)
    assert prepared.image.shape == plain.image.shape
    np.testing.assert_allclose(prepared.affine, plain.affine)
    hole = np.linalg.inv(prepared.affine) @ [19 - 17, 17 - 23, 15 + 11, 1]
    x, y, z = hole[:3].round().astype(int)
    assert prepared.image[0, x, y, z] == prepared.image[0].min()  # scored as brain, not 0


@pytest.mark.parametrize(
    ("map_", "enhancing"),
    [(BRATS_2018, 4), (BRATS_2023, 3), (PRESUMED, 3), ({1: 1, 2: 2, 5: 3}, 5)],
)
def test_mask_values_are_translated(
    make_case: MakeCase, map_: dict[int, int], enhancing: int
) -> None:
    _, labels = anatomy()
    want = prepare(make_case(), OPTIONS).labels
    labels[labels == 3] = enhancing
    got = prepare(make_case(labels=labels, label_map=map_), OPTIONS).labels
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("value", "map_"), [(7, PRESUMED), (7, {4: 3}), (2.5, PRESUMED)])
def test_an_unknown_mask_value_is_named(
    make_case: MakeCase, value: float, map_: dict[int, int]
) -> None:
    labels = anatomy()[1].astype(np.float32)
    labels[3, 3, 3] = value
    with pytest.raises(CaseError, match=f"seg.*holds the value {value:g}") as caught:
        prepare(make_case(labels=labels, label_map=map_), OPTIONS)
    assert caught.value.code == "case-label"


def test_a_value_mapped_to_background_is_background(make_case: MakeCase) -> None:
    _, labels = anatomy()
    labels[3, 3, 3] = 5
    prepared = prepare(make_case(labels=labels, label_map={**BRATS_2018, 3: 3, 5: 0}), OPTIONS)
    np.testing.assert_array_equal(back(prepared) == 0, np.isin(labels, (0, 5)))


def test_a_healthy_patient_and_one_without_a_mask_are_fine(make_case: MakeCase) -> None:
    empty = prepare(make_case(labels=np.zeros_like(anatomy()[1])), OPTIONS)
    assert empty.labels is not None
    assert not empty.labels.any()
    without = prepare(make_case(labelled=False), OPTIONS)
    assert without.labels is None
    np.testing.assert_array_equal(without.image, empty.image)


def test_the_mask_does_not_steer_the_crop(make_case: MakeCase) -> None:
    _, labels = anatomy()
    labels[0:3, 0:3, 0:3] = 2  # outside of the brain
    prepared = prepare(make_case(labels=labels), OPTIONS)
    np.testing.assert_array_equal(prepared.image, prepare(make_case(), OPTIONS).image)


@pytest.mark.parametrize("which", ["t2w", "seg"])
@pytest.mark.parametrize("fault", ["shape", "affine"])
def test_files_on_different_grids_are_refused(make_case: MakeCase, which: str, fault: str) -> None:
    case = make_case()
    path = case.label if which == "seg" else case.images[which].path
    assert path is not None
    image = nib.load(path)
    data, affine = np.asarray(image.dataobj), image.affine.copy()
    if fault == "shape":
        data = data[:-1]
    else:
        affine[0, 3] += 0.3
    nib.save(nib.Nifti1Image(data, affine), path)
    with pytest.raises(CaseError, match=which) as caught:
        prepare(case, OPTIONS)
    assert caught.value.code == "case-grid"


@pytest.mark.parametrize("which", ["t2w", "seg"])
@pytest.mark.parametrize("off_mm", [1e-4, 2e-3, 0.1])
def test_a_rounded_header_is_the_same_grid(make_case: MakeCase, which: str, off_mm: float) -> None:
    case = make_case()
    expected = prepare(case, OPTIONS)
    path = case.label if which == "seg" else case.images[which].path
    assert path is not None
    image = nib.load(path)
    affine = image.affine.copy()
    affine[:3, 3] += off_mm
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    found = prepare(case, OPTIONS)
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_array_equal(found.labels, expected.labels)


LOST = {
    "identity": np.eye(4),
    "SimpleITK's": np.diag([-1.0, -1.0, 1.0, 1.0]),
    "the voxel size alone": np.diag([2.0, 2.0, 2.5, 1.0]),
}


@pytest.mark.parametrize("name", LOST)
def test_a_mask_that_lost_its_header_is_told_what_to_do(make_case: MakeCase, name: str) -> None:
    case = make_case(spacing_mm=(2.0, 2.0, 2.5))
    data = np.asarray(nib.load(case.label).dataobj)
    nib.save(nib.Nifti1Image(data, LOST[name]), case.label)
    with pytest.raises(CaseError, match="has lost its place in space") as caught:
        prepare(case, OPTIONS)
    assert caught.value.code == "case-grid"
    assert "fslcpgeom" in caught.value.do
    nib.save(nib.Nifti1Image(data[:-1], LOST[name]), case.label)
    with pytest.raises(CaseError, match="on different grids"):
        prepare(case, OPTIONS)


@pytest.mark.parametrize("codes", ["LPS", "SAR", "PIL"])
def test_a_mask_on_the_same_voxels_in_another_order_is_turned(
    make_case: MakeCase, codes: str
) -> None:
    case = make_case()
    assert case.label is not None
    expected = prepare(case, OPTIONS).labels
    image = nib.load(case.label)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
    turned = nib.apply_orientation(np.asarray(image.dataobj), turn)
    affine = image.affine @ inv_ornt_aff(turn, image.shape)
    nib.save(nib.Nifti1Image(turned, affine), case.label)
    np.testing.assert_array_equal(prepare(case, OPTIONS).labels, expected)


def test_affines_that_differ_by_rounding_are_one_grid(make_case: MakeCase) -> None:
    case = make_case()
    image = nib.load(case.images["t1c"].path)
    affine = image.affine.copy()
    affine[:3] += 5e-4
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), case.images["t1c"].path)
    assert prepare(case, OPTIONS).image.shape[0] == 4


BACKGROUNDS = {
    # what was done to images that are 0 around the brain
    "scored": lambda image: (image - 300) / 40,
    "a constant": lambda image: image + 7,
    "ringing": lambda image: np.where(image == 0, RINGING, image),
    "negative": lambda image: np.where(image == 0, -2000, image),
}
RINGING = np.random.default_rng(5).normal(0, 1e-4, anatomy()[1].shape)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_background_that_is_not_0_is_background(make_case: MakeCase, name: str) -> None:
    plain = prepare(make_case(), OPTIONS)
    images = anatomy()[0].copy()
    images[:3] = [BACKGROUNDS[name](image) for image in images[:3]]
    found = prepare(make_case(images=images.astype(np.float32)), OPTIONS)
    np.testing.assert_allclose(found.image, plain.image, atol=1e-3)
    (warning,) = warnings_of(found.history)
    assert "background is not 0" in warning
    assert all(one in warning for one in MODALITIES[:3])
    assert "t2f" not in warning
    assert warnings_of(plain.history) == []


def test_a_head_that_is_not_stripped_is_refused(make_case: MakeCase) -> None:
    images, _ = anatomy()
    images += np.abs(np.random.default_rng(3).normal(0, 5, images.shape))  # noise in the air
    with pytest.raises(CaseError, match="not skull-stripped") as caught:
        prepare(make_case(images=images), OPTIONS)
    assert caught.value.code == "case-not-stripped"


def test_an_empty_sequence_is_refused_by_name(make_case: MakeCase) -> None:
    images, _ = anatomy()
    images[2] = 0
    with pytest.raises(CaseError, match="t2w") as caught:
        prepare(make_case(images=images), OPTIONS)
    assert caught.value.code == "case-empty"


def test_a_brain_too_small_to_see_is_refused(make_case: MakeCase) -> None:
    images = np.zeros_like(anatomy()[0])
    images[:, 20, 18, 15] = 9
    with pytest.raises(CaseError) as caught:
        prepare(make_case(images=images), PreprocessingOptions(spacing_mm=5.0))
    assert caught.value.code == "case-empty"


def test_a_flat_sequence_is_refused_by_name(make_case: MakeCase) -> None:
    images, _ = anatomy()
    images[1] = (images[1] > 0) * 100
    with pytest.raises(CaseError, match="t1c") as caught:
        prepare(make_case(images=images), OPTIONS)
    assert caught.value.code == "case-contrast"


def test_a_voxel_size_that_cannot_be_is_refused(make_case: MakeCase) -> None:
    with pytest.raises(CaseError, match="mm wide") as caught:
        prepare(make_case(spacing_mm=(25, 25, 25)), OPTIONS)
    assert caught.value.code == "case-spacing"


def test_small_enhancing_lesions_survive_in_proportion(make_case: MakeCase) -> None:
    """Half the resolution keeps the volume of lesions two voxels wide, within a quarter."""
    images, labels = anatomy()
    labels[:] = 0
    rng = np.random.default_rng(3)
    for x, y, z in rng.integers([12, 11, 9], [28, 25, 21], (60, 3)):
        labels[x : x + 2, y : y + 2, z : z + 2] = 3
    prepared = prepare(make_case(images=images, labels=labels), PreprocessingOptions(spacing_mm=2))
    volume = np.count_nonzero(prepared.labels) * 8
    assert volume == pytest.approx(np.count_nonzero(labels), rel=0.25)


def test_history_and_digest_name_what_was_done(make_case: MakeCase) -> None:
    prepared = prepare(make_case(codes="LPS", spacing_mm=(1, 1, 2)), OPTIONS)
    steps = {record["step"]: record for record in prepared.history}
    assert list(steps) == ["algorithm", "reorient", "brain", "crop", "resample", "z-score"]
    assert steps["reorient"]["from"] == "LPS"
    assert steps["resample"]["from_mm"] == [1, 1, 2]
    assert steps["algorithm"]["digest"] == digest(OPTIONS)
    assert digest(OPTIONS) != digest(PreprocessingOptions(margin_mm=5.0))


def test_channels_of_one_4d_file(make_case: MakeCase) -> None:
    case = make_case()
    stacked = case.images["t1n"].path.with_name("all.nii.gz")
    volumes = [read_volume(image.path) for image in case.images.values()]
    data = np.stack([volume.data for volume in reversed(volumes)], -1)
    nib.save(nib.Nifti1Image(data, volumes[0].affine), stacked)
    images = {
        name: dataclasses.replace(image, path=stacked, index=3 - channel)
        for channel, (name, image) in enumerate(case.images.items())
    }
    joined = prepare(dataclasses.replace(case, images=images), OPTIONS)
    np.testing.assert_array_equal(joined.image, prepare(case, OPTIONS).image)


@pytest.mark.parametrize("there", PARTIAL)
def test_what_is_missing_is_absent_in_the_brain_and_named(
    make_case: MakeCase, there: tuple[bool, ...]
) -> None:
    whole = make_case(codes="LPS")
    images = {n: i for (n, i), kept in zip(whole.images.items(), there, strict=True) if kept}
    prepared = prepare(dataclasses.replace(whole, images=images), PreprocessingOptions())
    expected = prepare(whole, PreprocessingOptions())
    assert prepared.missing == tuple(n for n in MODALITIES if n not in images)
    assert expected.missing == ()
    assert not [record for record in expected.history if record["step"] == "missing"]
    inside = (expected.image != 0).any(axis=0)
    for channel, kept in enumerate(there):
        if kept:
            np.testing.assert_array_equal(prepared.image[channel], expected.image[channel])
        else:
            assert (prepared.image[channel][inside] == ABSENT).all()
            assert not prepared.image[channel][~inside].any()
    assert present(prepared.image).tolist() == list(there)
    assert prepared.labels is not None
    np.testing.assert_array_equal(prepared.labels, expected.labels)
    np.testing.assert_array_equal(prepared.affine, expected.affine)


def test_the_brain_is_what_the_sequences_that_are_there_show(make_case: MakeCase) -> None:
    images, labels = anatomy()
    images[2, 2:6, 10:20, 10:20] = 300  # T2 alone shows a part beyond the others' left end
    images[2, 6:10, 14:20, 14:18] = 300
    whole = make_case(images=images, labels=labels)
    without = {name: one for name, one in whole.images.items() if name != "t2w"}
    narrow = prepare(dataclasses.replace(whole, images=without), PreprocessingOptions())
    assert narrow.image.shape[1] < prepare(whole, PreprocessingOptions()).image.shape[1]
