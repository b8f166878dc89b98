"""What is not what it is called is told apart from what is, on a phantom of each profile.

Rates over many phantoms: ``python -m tests.benchmarks plausibility``.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest

from client.cohort.quality.sequence_plausibility import (
    ALIKE,
    EXCHANGED,
    MIRRORED,
    PLATEAU,
    Plausibility,
    look,
)
from client.phantoms.cases import PhantomCase, make_case
from client.phantoms.profiles import PROFILES
from common.regions import MODALITIES

SIZE = 48


@cache
def phantom(profile: str) -> PhantomCase:
    """Return the first patient of a profile who has a tumour."""
    made = (make_case(PROFILES[profile], size=SIZE, seed=3, number=n) for n in range(1, 9))
    return next(one for one in made if one.labels.any())


def seen(found: PhantomCase, labels: Any = None, names: Any = MODALITIES, **images: Any) -> Any:
    stack = []
    for name in MODALITIES:
        one = np.asarray(images.get(name, found.images[name]), np.float32)[::-1, ::-1]  # RAS
        inside = found.images["t1c"][::-1, ::-1] != 0
        scored = (one - one[inside].mean()) / one[inside].std() * inside
        stack.append(scored * (name in names))
    labels = found.labels if labels is None else labels
    return look(
        np.stack(stack).astype(np.float32),
        names,
        labels[::-1, ::-1],
        np.diag([240 / SIZE] * 3 + [1.0]),
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_a_sound_phantom_raises_no_doubt(profile: str) -> None:
    found = seen(phantom(profile))
    assert found.alike == ()
    assert set(found.plateau) == set(MODALITIES)
    assert max(found.plateau.values()) < PLATEAU / 2
    assert found.t2_over_t1 > -EXCHANGED
    assert found.mask_over_mirror > -MIRRORED


@pytest.mark.parametrize("profile", PROFILES)
def test_a_spoilt_one_raises_its_own(profile: str) -> None:
    made = phantom(profile)
    t1n, t2w, t2f = (made.images[name] for name in ("t1n", "t2w", "t2f"))
    (pair,) = seen(made, t1c=np.round(t1n * 1.7)).alike
    assert pair[:2] == ("t1n", "t1c")
    assert pair[2] > ALIKE
    assert seen(made, t1n=t2w, t2w=t1n).t2_over_t1 < EXCHANGED
    assert seen(made, labels=made.labels[::-1]).mask_over_mirror < MIRRORED
    constant = np.where(np.indices(t2f.shape)[2] > 0.6 * t2f.shape[2], t2f.max(), t2f)
    plateau = seen(made, t2f=constant).plateau
    assert plateau["t2f"] > PLATEAU
    assert plateau["t1c"] < PLATEAU


@pytest.mark.parametrize("missing", ["t1n", "t2w", "t2f"])
def test_what_cannot_be_told_is_nan(missing: str) -> None:
    found = seen(phantom("reference"), names=[name for name in MODALITIES if name != missing])
    assert missing not in found.plateau
    assert math.isnan(found.t2_over_t1) is (missing in ("t1n", "t2w"))
    assert math.isnan(found.mask_over_mirror) is (missing in ("t2w", "t2f"))


def test_without_a_mask_or_a_brain_nothing_is_said() -> None:
    made = phantom("reference")
    assert math.isnan(seen(made, labels=np.zeros_like(made.labels)).mask_over_mirror)
    nothing = look(np.zeros((4, 8, 8, 8), np.float32), MODALITIES, None, np.eye(4))
    assert nothing.plateau == Plausibility().plateau
