"""The page shows what was segmented, where the mask is, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.clinic.result_schema import Result, read_result
from client.imaging.nifti import write_volume
from client.review.source_images import find_case, shown
from common.errors import CaseError
from tests.reviews import GRIDS, SHAPE, head, write_result

TURNED = np.array(
    [[0.9848, -0.1736, 0, 3.0], [0.1736, 0.9848, 0, -2.0], [0, 0, 1, 1.5], [0, 0, 0, 1]]
)
"""A rigid motion: 10 degrees and some millimetres."""


@pytest.fixture
def result(tmp_path: Path) -> Result:
    return read_result(write_result(tmp_path, "oblique"), do="", code="test")


def test_a_sequence_that_was_registered_is_shown_where_it_was_laid(
    result: Result, tmp_path: Path
) -> None:
    affine = GRIDS["oblique"]
    flair = next((tmp_path / "case").rglob("*t2f*"))
    still = np.asarray(nib.load(flair).dataobj)
    write_volume(flair, still, TURNED @ affine)
    step = {"step": "register", "sequence": "t2f", "matrix": TURNED.tolist()}
    case = find_case(_of(result, flair, preparation=(step,)))
    pictures = shown(case, _of(result, flair, preparation=(step,)), SHAPE, affine)
    assert np.abs(pictures["t2f"] - still).max() < 1e-2 * still.max()
    assert np.array_equal(pictures["t1c"], head(1)), "what lies on the grid is shown as it is"
    elsewhere = shown(case, _of(result, flair), SHAPE, affine)["t2f"]
    assert np.abs(elsewhere - still).max() > 0.2 * still.max(), "the motion is what brings it there"


def test_images_that_changed_or_are_gone_are_not_shown(result: Result, tmp_path: Path) -> None:
    find_case(result)
    t1c = next((tmp_path / "case").rglob("*t1c*"))
    write_volume(t1c, head(1) + 1, GRIDS["oblique"])
    with pytest.raises(CaseError, match=r"t1c .* is not the one that was segmented") as changed:
        find_case(result)
    shutil.move(tmp_path / "case", tmp_path / "moved")
    with pytest.raises(CaseError, match=r"not at .*--case") as gone:
        find_case(result)
    assert changed.value.code == gone.value.code == "case-changed"


def _of(result: Result, flair: Path, **other: object) -> Result:
    """Return ``result`` as if the FLAIR that lies there now had been segmented."""
    from client.imaging.case import Image
    from client.imaging.prepared_cache import content_sha256

    now = result.inputs["t2f"].model_copy(update={"sha256": content_sha256(Image(flair))})
    return result.model_copy(update={"inputs": {**result.inputs, "t2f": now}, **other})
