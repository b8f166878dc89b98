"""Sequences that are missing: which may be, and how a network is told."""

from __future__ import annotations

import numpy as np
import pytest

from client.imaging.missing_sequences import (
    ABSENT,
    PARTIAL,
    blank,
    check_usable,
    present,
    sparser,
    sufficient,
)
from common.errors import CaseError
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


def test_a_whole_case_may_lack_anything_and_the_last_needed_sequence_stays() -> None:
    assert sparser((True,) * 4) == PARTIAL
    assert sparser((False, True, False, False)) == sparser((False, False, False, True)) == ()
    assert sparser((True, True, False, False)) == ((False, True, False, False),)
    for there in PARTIAL:
        for fewer in sparser(there):
            assert fewer in PARTIAL
            assert sum(fewer) < sum(there)
            assert not any(new and not old for new, old in zip(fewer, there, strict=True))


def test_t1_and_t2_alone_are_not_enough() -> None:
    assert not sufficient(["t1n", "t2w"])
    assert sufficient(["t2f"])
    assert sufficient(["t1c", "t1n"])


def test_only_a_network_that_learnt_it_takes_a_case_that_lacks_something() -> None:
    check_usable("p1", (), sequence_dropout=0.0)
    check_usable("p1", ("t1n", "t2w"), sequence_dropout=0.1)
    with pytest.raises(CaseError, match=r"p1 lacks t1n, t2w.*sequence_dropout") as caught:
        check_usable("p1", ("t1n", "t2w"), sequence_dropout=0.0)
    assert caught.value.code == "case-sequence"
