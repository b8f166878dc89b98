"""The brain is found in real heads, by the networks that were proven and no others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.imaging import brain_extraction, grid
from client.imaging.brain_extraction import extract_brain
from common.errors import CaseError, StateError
from tests import real_heads

COLIN = Path("/usr/share/mricron/templates/ch2.nii.gz")


def test_preparing_stripped_images_loads_neither_torch_nor_simpleitk() -> None:
    script = (
        "import sys, client.imaging.prepared_cache; "
        "print([m for m in ('torch', 'SimpleITK', 'deepbet') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_other_weights_than_the_proven_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    brain_extraction._network.cache_clear()
    monkeypatch.setitem(brain_extraction._WEIGHTS, "bbox_model.pt", "0" * 64)
    with pytest.raises(StateError, match="not the one that gliofed was proven with") as caught:
        extract_brain(np.random.default_rng(0).random((20, 20, 20), np.float32))
    assert caught.value.code == "brain-network"


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    brain_extraction._network.cache_clear()
    monkeypatch.setattr(brain_extraction, "find_spec", lambda _: None)
    with pytest.raises(StateError, match="is not installed") as caught:
        extract_brain(np.random.default_rng(0).random((20, 20, 20), np.float32))
    assert "gliofed[clinic]" in caught.value.do


def test_an_image_that_is_the_same_everywhere_has_no_brain() -> None:
    with pytest.raises(CaseError, match="same everywhere") as caught:
        extract_brain(np.ones((20, 20, 20), np.float32))
    assert caught.value.code == "case-brain"


def test_the_box_is_widened_and_stays_in_the_field() -> None:
    mask = np.zeros((128, 128, 128), bool)
    mask[20:100, 0:128, 64:110] = True
    box = brain_extraction._box(mask, (256, 128, 64))
    assert [(side.start, side.stop) for side in box] == [(24, 216), (0, 128), (30, 58)]


@pytest.mark.slow
def test_colins_brain_is_found_and_nothing_else_is_imported() -> None:
    if not COLIN.exists():
        pytest.skip("Colin27 is not here: it comes with Debian's mricron-data")
    image, tight = nib.load(COLIN), nib.load(COLIN.with_name("ch2bet.nii.gz"))
    head = grid.to_canonical(image.get_fdata(dtype=np.float32), image.affine)
    found = extract_brain(np.ascontiguousarray(head))
    inner = grid.to_canonical(np.asarray(tight.dataobj) > 0, tight.affine)
    assert (found & inner).sum() / inner.sum() > 0.99  # its own mask lacks the sulci's fluid
    assert 1.0 < found.sum() / inner.sum() < 1.2
    np.testing.assert_array_equal(found, extract_brain(np.ascontiguousarray(head)))
    assert "deepbet" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize("name", real_heads.HEADS)
def test_the_brain_of_a_real_head_is_the_one_that_hd_bet_sees(name: str) -> None:
    head = real_heads.place(name)
    if head is None:
        pytest.skip(f"The head {name} is not here: it comes with {real_heads.HEADS[name]}")
    assert real_heads.brain_dice(name, head) >= 0.95
