"""No value of a mask is read by guess: what can mean two things is refused with its readings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.imaging.label_codings import (
    BRATS_2018,
    BRATS_2023,
    CODINGS,
    NONE,
    PRESUMED,
    PRESUMED_OLD_NAMES,
    Coding,
    by_brats_name,
    decode,
    of_other_tumours,
    parse,
)
from common.errors import CaseError
from common.regions import LABELS, labels_to_regions

PATH = Path("seg.nii.gz")


def mask(*values: float) -> np.ndarray:
    return np.array([[[0.0, *values]]], np.float32)


REFUSED: dict[str, tuple[tuple[float, ...], Coding, bool, tuple[str, ...]]] = {
    # values, coding, settled, words of the message
    "after surgery": ((1, 2, 3, 4), PRESUMED, False, ("1, 2, 3, 4", "resection cavity", "PED")),
    "a cavity and no enhancement": ((2, 4), PRESUMED, False, ("values 2, 4", "cavity")),
    "a cavity under BraTS names": ((1, 2, 3, 4), BRATS_2023, True, ("cavity", "enhancing")),
    "a cavity only": ((4,), PRESUMED, False, ("the value 4", "cavity")),
    "old names, 4": ((1, 2, 4), PRESUMED_OLD_NAMES, False, ("4 is enhancing", "cavity")),
    "old names, 3": ((1, 2, 3), PRESUMED_OLD_NAMES, False, ("3 is enhancing", "2012 to 2015")),
    "BraTS 2021 with a 3": ((1, 2, 3, 4), BRATS_2018, True, ("3 is enhancing", "cyst")),
    "children": ((1, 2, 3), NONE, False, ("1 is necrosis", "2 is oedema", "3 is enhancing")),
    "radiotherapy": ((1,), NONE, False, ("gross tumour volume",)),
    "one value": ((1,), PRESUMED, False, ("the whole tumour",)),
    "an unknown value": ((1, 7), PRESUMED, False, ("value 7", "no known data set")),
    "interpolated": ((1, 1.5), PRESUMED, False, ("value 1.5", "no label")),
    "declared, and another value": ((4, 5), CODINGS["brats-2024"], True, ("value 5",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_be_read_in_two_ways_is_refused_with_the_readings(name: str) -> None:
    values, coding, settled, words = REFUSED[name]
    with pytest.raises(CaseError) as caught:
        decode(mask(*values), coding, PATH, settled=settled)
    assert caught.value.code == "case-label"
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.message.startswith("seg.nii.gz holds the value")
    if name != "interpolated":
        assert "[labels] in site.toml" in caught.value.do


READ: dict[str, tuple[tuple[float, ...], Coding, bool, tuple[int, ...]]] = {
    "BraTS 2018": ((1, 2, 4), BRATS_2018, True, (1, 2, 3)),
    "BraTS 2023": ((1, 2, 3), BRATS_2023, True, (1, 2, 3)),
    "nothing said": ((1, 2, 3), PRESUMED, False, (1, 2, 3)),
    "rounded": ((1.0001, 2.9999), PRESUMED, False, (1, 3)),
    "necrosis alone, said": ((1,), BRATS_2023, True, (1,)),
    "oedema alone": ((2,), PRESUMED, False, (2,)),
    "nothing there": ((), NONE, False, ()),
    "a cavity, declared": ((1, 2, 3, 4), parse("brats-2024"), True, (1, 2, 3, 0)),
    "children, declared": ((1, 2, 3, 4), parse("brats-ped-2024"), True, (3, 1, 1, 2)),
    "radiotherapy, declared": ((1,), parse("ET=1"), True, (3,)),
    "in words": ((5, 6, 7, 8), parse("NCR=5 ED=6, ET=7;background=8"), True, (1, 2, 3, 0)),
}


@pytest.mark.parametrize("name", READ)
def test_what_was_said_decides(name: str) -> None:
    values, coding, settled, labels = READ[name]
    found = decode(mask(*values), coding, PATH, settled=settled)
    assert found.dtype == np.uint8
    assert found[0, 0].tolist() == [0, *labels]


@pytest.mark.parametrize("name", ["brats-2024", "brats-ped-2024"])
def test_declared_regions_are_those_of_the_data_sets(name: str) -> None:
    """Of a cavity nothing is in any region; a child's core is all but oedema."""
    whole, core, enhancing = labels_to_regions(
        decode(mask(1, 2, 3, 4), CODINGS[name], PATH, settled=True)
    )[:, 0, 0, 1:]
    regions = {
        "brats-2024": ([1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 0]),
        "brats-ped-2024": ([1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]),
    }[name]
    assert ([*whole], [*core], [*enhancing]) == regions


@pytest.mark.parametrize("text", ["", "brats", "NCR", "NCR=a", "RC=4", "ED=1 ET=1", "ET=-1"])
def test_what_is_no_coding_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="brats-2024"):
        parse(text)


def test_no_coding_calls_a_cavity_enhancing() -> None:
    for name, coding in CODINGS.items():
        enhancing = [value for value, label in coding.items() if label == LABELS["ET"]]
        assert (4 in enhancing) == (name == "brats-2018")


@pytest.mark.parametrize(
    ("case", "old", "coding", "settled"),
    [
        ("Brats18_CBICA_AAB_1", True, BRATS_2018, True),
        ("BraTS20_Training_260", True, BRATS_2018, True),
        ("BraTS2021_00006", True, BRATS_2018, True),
        ("BraTS-GLI-00001-000", False, BRATS_2023, True),
        ("BraTS-GLI-02062-100", False, BRATS_2023, True),  # after surgery: a 4 is not in it
        ("100116_time1", True, PRESUMED_OLD_NAMES, False),  # UCSF, after surgery
        ("BraTS2024_00001", True, PRESUMED_OLD_NAMES, False),
        ("PAT-001", False, BRATS_2023, False),
    ],
)
def test_a_name_says_which_coding_only_where_it_is_one_of_brats(
    case: str, old: bool, coding: Coding, settled: bool
) -> None:
    assert by_brats_name(case, old=old) == (coding, settled)


@pytest.mark.parametrize(
    ("place", "other"),
    [
        ("BraTS-PED-00001-000/BraTS-PED-00001-000-seg.nii.gz", True),
        ("BraTS-PEDs-v1/training/x_seg.nii.gz", True),
        ("data/BraTS2024-PED/a.nii", True),
        ("BraTS-MEN-RT-0001-1/BraTS-MEN-RT-0001-1_gtv.nii.gz", True),
        ("BraTS2024-MEN-RT-TrainingData/seg.nii.gz", True),
        ("BraTS-MEN-00001-000/seg.nii.gz", False),
        ("BraTS-GLI-00001-000/seg.nii.gz", False),
        ("BraTS-MET-00001-000/seg.nii.gz", False),
        ("stopped/speed-1/amen-rtx/sub-01_dseg.nii.gz", False),
    ],
)
def test_data_sets_of_other_tumours_are_known_by_name(place: str, other: bool) -> None:
    assert of_other_tumours(place) is other
