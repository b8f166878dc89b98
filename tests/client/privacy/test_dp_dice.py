"""Dice under differential privacy: sensitivity, noise, and what is said of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.privacy.dp_dice import SENSITIVITY, noised_dice
from common.regions import REGIONS

Scores = dict[str, float | None]
SCORE = st.one_of(st.none(), st.floats(-1e9, 1e9))


def seeded(seed: int) -> object:
    return np.random.default_rng(seed).bytes


def patients(count: int, value: float) -> list[Scores]:
    return [dict.fromkeys(REGIONS, value) for _ in range(count)]


def test_with_little_noise_it_is_the_mean() -> None:
    rng = np.random.default_rng(1)
    scores: list[Scores] = [dict(zip(REGIONS, rng.random(3), strict=True)) for _ in range(40)]
    made = noised_dice(scores, noise_multiplier=1e-3)
    for region in REGIONS:
        mean = np.mean([one[region] for one in scores])  # type: ignore[arg-type]
        assert made.dice[region] == pytest.approx(mean, abs=2e-3)
    assert made.deviation < 1e-3


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(REGIONS, SCORE)), max_size=4))
def test_one_patient_moves_the_sum_by_one_at_most(scores: list[Scores]) -> None:
    from client.privacy.dp_dice import _centred

    for one in scores:
        vector = [*(_centred(one[region]) for region in REGIONS), 0.5]
        assert math.sqrt(sum(value**2 for value in vector)) <= SENSITIVITY


@pytest.mark.parametrize("value", [0.1, 0.5, 0.9])
def test_the_said_deviation_covers_the_true_error(value: float) -> None:
    errors, said = [], []
    for seed in range(200):
        made = noised_dice(
            patients(200, value),
            noise_multiplier=4.0,
            entropy=seeded(seed),  # type: ignore[arg-type]
        )
        errors.append(made.dice["WT"] - value)
        said.append(made.deviation)
    assert abs(np.mean(errors)) < 0.01
    assert 0.6 * np.mean(said) < np.std(errors) < 1.1 * np.mean(said)


def test_nobody_is_an_answer_like_any_other() -> None:
    made = noised_dice([], noise_multiplier=4.0)
    assert set(made.dice) == set(REGIONS)
    assert all(0 <= value <= 1 for value in made.dice.values())
    assert made.deviation > 0


def test_noise_is_never_the_same_twice() -> None:
    made = [noised_dice(patients(500, 0.5), noise_multiplier=20.0).dice for _ in range(4)]
    assert len({tuple(one.values()) for one in made}) == 4
