"""Sequences that are missing: which may be, and how a network is told."""

from __future__ import annotations

import numpy as np
import pytest

from client.imaging.absence import ABSENT, PARTIAL, blank, present
from common.regions import MODALITIES


def head() -> np.ndarray:
    image = np.random.default_rng(1).normal(0, 1, (4, 5, 6, 7)).astype(np.float32)
    image[:, :2] = 0
    return image


def test_either_contrast_or_flair_is_always_there() -> None:
    assert len(PARTIAL) == len(set(PARTIAL)) == 11
    for there in PARTIAL:
        names = {name for name, kept in zip(MODALITIES, there, strict=True) if kept}
        assert names & {"t1c", "t2f"}
        assert names != set(MODALITIES)


@pytest.mark.parametrize("there", PARTIAL)
def test_what_is_blanked_is_known_as_absent(there: tuple[bool, ...]) -> None:
    image = head()
    before = image.copy()
    blank(image, there)
    assert present(image).tolist() == list(there)
    for channel, old, kept in zip(image, before, there, strict=True):
        assert np.array_equal(channel, old) == kept
        assert not channel[:2].any(), "outside the brain there is nothing to tell"
        if not kept:
            assert (channel[2:] == ABSENT).all()


def test_a_whole_case_and_empty_air_lack_nothing() -> None:
    assert present(head()).all()
    assert present(np.zeros((4, 2, 2, 2), np.float32)).all()
