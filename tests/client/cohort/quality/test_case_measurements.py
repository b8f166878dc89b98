"""Measures of a case: each tells what was done to the scan, and nothing tells it of a sound one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from client.cohort.quality.case_measurements import measure
from client.imaging.nifti import Volume
from common.regions import MODALITIES


def test_a_sound_head(head: Any) -> None:
    found = head.measures()
    assert set(found.sequences) == set(MODALITIES)
    brain_ml = (np.abs(head.images["t1c"]) > 0).sum() * 27 / 1000
    assert found.brain_ml == pytest.approx(brain_ml, abs=0.1)
    assert found.cut_off == {}
    assert found.mask is not None
    assert found.mask.parts == 1
    assert found.mask.outside_brain == 0
    for region, labels in {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}.items():
        expected = np.isin(head.labels, labels).sum() * 27 / 1000
        assert found.mask.volume_ml[region] == pytest.approx(expected, abs=1e-3)
    for one in found.sequences.values():
        assert (one.shape, one.spacing_mm, one.orientation) == ((48, 56, 44), (3, 3, 3), "RAS")
        assert one.slice_jump < 0.1
        assert one.shift_mm == 0


@pytest.mark.parametrize("noise", [20.0, 60.0])
def test_the_noise_that_was_added_is_found(make_head: Any, noise: float) -> None:
    found = make_head(noise=noise).measures()
    for one in found.sequences.values():
        assert 510 / one.snr == pytest.approx(noise, rel=0.2)


def test_a_sequence_that_was_moved_lies_so_far_away(head: Any) -> None:
    head.images["t2w"] = np.roll(head.images["t2w"], (3, -2), axis=(0, 1))
    found = head.measures()
    assert found.sequences["t2w"].shift_mm == pytest.approx(3 * np.sqrt(13), abs=3)
    assert [found.sequences[name].shift_mm for name in ("t1n", "t1c", "t2f")] == [0, 0, 0]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_bright_slice_jumps_along_any_axis(head: Any, axis: int) -> None:
    index: list[Any] = [slice(None)] * 3
    index[axis] = 22
    head.images["t1n"][tuple(index)] *= 1.8
    found = head.measures()
    assert found.sequences["t1n"].slice_jump == pytest.approx(np.log(1.8), abs=0.08)
    assert found.sequences["t1c"].slice_jump < 0.1


def test_thick_slices_are_compared_along_their_own_axis(head: Any) -> None:
    image = head.images["t1n"].copy()
    image[22] *= 1.8  # not a slice of this one: its slices lie along z
    thick = Volume(image, np.diag([3.0, 3.0, 6.0, 1.0]))
    found = measure("case", "p", {**head.volumes(), "t1n": thick}, head.prepared())
    assert found.sequences["t1n"].slice_jump < 0.2


def test_a_head_that_is_cut_off_says_where(head: Any) -> None:
    for name, image in head.images.items():
        head.images[name] = image[:, :, 14:]
    head.labels = head.labels[:, :, 14:]
    found = head.measures()
    assert set(found.cut_off) == {"inferior"}
    assert 0.5 < found.cut_off["inferior"] < 1


def test_sides_are_those_of_the_patient_in_any_orientation(head: Any) -> None:
    flipped = np.diag([-3.0, 3.0, 3.0, 1.0])
    volumes = {n: Volume(image[:30], flipped) for n, image in head.images.items()}
    assert set(measure("c", "p", volumes, head.prepared()).cut_off) == {"left"}


def test_a_mask_beside_the_brain_and_in_pieces(head: Any) -> None:
    head.labels[:] = 0
    head.labels[24, 28, 10:14:2] = 2
    head.labels[0, 0, 0] = 2
    mask = head.measures().mask
    assert mask is not None
    assert (mask.parts, mask.outside_brain) == (3, pytest.approx(1 / 3, abs=1e-3))
    assert mask.volume_ml["ET"] == 0


def test_an_empty_mask_and_none(head: Any) -> None:
    head.labels[:] = 0
    mask = head.measures().mask
    assert mask is not None
    assert (mask.parts, mask.outside_brain, mask.volume_ml["WT"]) == (0, 0, 0)
    prepared = head.prepared()
    bare = type(prepared)(
        prepared.image, None, prepared.affine, (48, 56, 44), prepared.native_affine, ()
    )
    assert measure("c", "p", head.volumes(), bare).mask is None


def test_a_head_is_known_again_and_another_is_not(make_head: Any) -> None:
    one, again, other = (
        make_head(seed=seed, noise=noise).measures() for seed, noise in ((0, 10), (0, 12), (5, 10))
    )
    assert one.sketch @ again.sketch > 0.995 > one.sketch @ other.sketch
    assert one.voxels_sha256 not in {again.voxels_sha256, other.voxels_sha256}
    assert make_head().measures().voxels_sha256 == one.voxels_sha256


def test_a_flat_sequence_has_no_noise_to_tell(head: Any) -> None:
    head.images["t1n"] = np.where(head.images["t1n"] != 0, 500, 0).astype(np.float32)
    assert np.isnan(head.measures().sequences["t1n"].snr)


def test_a_brain_of_a_few_voxels_can_be_measured(head: Any) -> None:
    for name in MODALITIES:
        tiny = np.zeros_like(head.images[name])
        tiny[20:22, 20:22, 20:22] = [[[400, 500], [450, 600]], [[410, 510], [455, 610]]]
        head.images[name] = tiny
    found = head.measures()
    assert found.brain_ml == pytest.approx(0.2, abs=0.1)
    assert np.isnan(found.sequences["t1c"].snr)
    assert found.sequences["t1c"].slice_jump == 0


def test_of_a_whole_head_the_brain_alone_is_measured(head: Any) -> None:
    stripped = head.measures()
    skull = np.random.default_rng(2).uniform(900, 1100, head.labels.shape).astype(np.float32)
    volumes = {
        name: Volume(np.where(volume.data != 0, volume.data, skull), volume.affine)
        for name, volume in head.volumes().items()
    }
    found = measure("case", "patient", volumes, head.prepared())
    assert found.cut_off == {}
    for name, one in found.sequences.items():
        assert one.snr == pytest.approx(stripped.sequences[name].snr, rel=0.05)


@pytest.mark.parametrize("missing", [("t1n",), ("t1c",), ("t1n", "t1c", "t2w")])
def test_only_what_is_there_is_measured(head: Any, missing: tuple[str, ...]) -> None:
    whole = head.measures()
    for name in missing:
        del head.images[name]
    found = head.measures()
    assert found.missing == missing
    assert found.reference == ("t2f" if "t1c" in missing else "t1c")
    assert tuple(found.sequences) == tuple(n for n in MODALITIES if n not in missing)
    assert found.sequences[found.reference].shift_mm == 0
    for name, one in found.sequences.items():
        assert one == whole.sequences[name]
    assert found.brain_ml == whole.brain_ml
    assert (found.voxels_sha256 == whole.voxels_sha256) is False
