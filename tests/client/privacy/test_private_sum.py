"""Who is drawn, the clip and the sum, over all that floats can hold; norms are exact fractions."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.privacy.clipping import clip
from client.privacy.dp_sgd import clipped_sum, sample
from client.privacy.secure_noise import MOST_CONTRIBUTIONS, grid
from common.errors import PrivacyError

torch.set_num_threads(1)


def seeded(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


vectors = st.lists(
    st.tuples(st.floats(-1, 1), st.integers(-300, 300)).map(lambda x: x[0] * 10.0 ** x[1]),
    min_size=1,
    max_size=40,
)
norms = st.floats(1e-6, 1e6)


def square(values: torch.Tensor) -> Fraction:
    """Return the square of the true norm."""
    return sum((Fraction(value) ** 2 for value in values.tolist()), Fraction(0))


@given(vectors, norms)
@settings(max_examples=100)
def test_a_clipped_gradient_is_never_too_long(values: list[float], clipping_norm: float) -> None:
    gradient = torch.tensor(values, dtype=torch.float64)
    clipped = clip(gradient, clipping_norm)
    limit = Fraction(clipping_norm)
    assert square(clipped) <= limit**2
    if square(gradient) <= (limit * Fraction(1 - 1e-12)) ** 2:
        assert torch.equal(clipped, gradient)
    else:
        # As long as allowed but for rounding, and in the gradient's direction.
        assert square(clipped) >= (limit * Fraction(1 - 1e-12)) ** 2
        largest = int(gradient.abs().argmax())
        ratios = gradient / gradient[largest]
        assert torch.allclose(clipped / clipped[largest], ratios, rtol=1e-12, atol=1e-300)
    total, _ = clipped_sum([gradient], torch.zeros_like(gradient), clipping_norm=clipping_norm)
    assert square(total) <= limit**2
    assert bool((total.abs() <= clipped.abs()).all())
    assert bool(((clipped - total).abs() < grid(clipping_norm)).all())


@pytest.mark.parametrize("size", [1, 1000, 3_000_000])
def test_the_norm_of_many_entries_is_bounded_too(size: int) -> None:
    gradient = torch.from_numpy(np.random.default_rng(0).normal(9, size=size))
    scaled, _ = clipped_sum([gradient], torch.zeros(size).double(), clipping_norm=1.0)
    whole = (scaled / grid(1.0)).numpy().astype(np.int64).astype(object)
    assert (1 - 1e-5) * 2**64 < sum(whole**2) <= 2**64


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_clipped_to_zero(wrong: float) -> None:
    gradient = torch.tensor([1.0, wrong, -2.0], dtype=torch.float64)
    assert not clip(gradient, 1.0).any()
    assert not clip(torch.zeros(3, dtype=torch.float64), 1.0).any()


@given(st.lists(vectors.map(lambda v: (v * 40)[:7]), min_size=1, max_size=12), norms, st.randoms())
@settings(max_examples=50)
def test_sums_are_exact_in_any_order(
    rows: list[list[float]], clipping_norm: float, random: Random
) -> None:
    zero = torch.zeros(7, dtype=torch.float64)
    gradients: list[torch.Tensor | None] = [torch.tensor(row).double() for row in rows]
    total, missing = clipped_sum([None, *gradients], zero, clipping_norm=clipping_norm)
    assert missing == 1
    parts = [clipped_sum([one], zero, clipping_norm=clipping_norm)[0] for one in gradients]
    exact = [sum(Fraction(float(part[k])) for part in parts) for k in range(7)]
    assert [Fraction(value) for value in total.tolist()] == exact
    random.shuffle(gradients)
    assert torch.equal(clipped_sum(gradients, zero, clipping_norm=clipping_norm)[0], total)


def test_more_gradients_than_can_be_added_exactly_are_refused() -> None:
    absent = itertools.repeat(None, MOST_CONTRIBUTIONS + 1)
    with pytest.raises(PrivacyError, match="exactly") as error:
        clipped_sum(absent, torch.zeros(1).double(), clipping_norm=1.0)
    assert error.value.code == "privacy-exact"


@pytest.mark.parametrize("clipping_norm", [1e-3, 0.3, 1.0, 70.0])
def test_one_patient_moves_the_sum_by_the_clipping_norm_at_most(clipping_norm: float) -> None:
    rng = np.random.default_rng(0)
    zero = torch.zeros(50, dtype=torch.float64)
    vectors: list[torch.Tensor | None] = [
        torch.from_numpy(rng.normal(size=50) * 10.0**power) for power in range(-4, 5)
    ]
    whole, _ = clipped_sum(vectors, zero, clipping_norm=clipping_norm)
    for left_out in range(len(vectors)):
        others = [v for place, v in enumerate(vectors) if place != left_out]
        without, _ = clipped_sum(others, zero, clipping_norm=clipping_norm)
        # Exact: both sums are whole multiples of the grid.
        assert float((whole - without).norm()) <= clipping_norm
    steps = whole / grid(clipping_norm)
    assert torch.equal(steps, steps.round())
    assert not zero.any()


@given(st.floats(0.001, 1), st.integers(0, 2**31))
@settings(max_examples=40)
def test_each_patient_is_drawn_with_the_rate(rate: float, seed: int) -> None:
    count = 20_000
    drawn = sample(seeded(seed), count, rate=rate)
    assert drawn == sorted(set(drawn))
    deviation = math.sqrt(count * rate * (1 - rate))
    assert abs(len(drawn) - count * rate) <= 6 * deviation + 1
    assert sample(seeded(seed), count, rate=1.0) == list(range(count))


def test_patients_are_drawn_independently() -> None:
    patients, steps, rate = 12, 4000, 0.3
    entropy = seeded(5)
    drawn = np.zeros((steps, patients))
    for row in drawn:
        row[sample(entropy, patients, rate=rate)] = 1
    # The number that is drawn is binomial, neither fixed nor bound to the step before.
    counts = drawn.sum(1)
    variance = patients * rate * (1 - rate)
    assert counts.var() == pytest.approx(variance, rel=6 * math.sqrt(2 / steps))
    between = np.corrcoef(drawn.T)[np.triu_indices(patients, 1)]
    assert np.abs(between).max() < 6 / math.sqrt(steps)
    assert abs(np.corrcoef(counts[1:], counts[:-1])[0, 1]) < 6 / math.sqrt(steps)


def test_nobody_else_decides_whether_a_patient_is_drawn() -> None:
    stream = seeded(1)(8 * 6)
    whole = sample(lambda count: stream[:count], 6, rate=0.5)
    assert sample(lambda count: stream[:count], 5, rate=0.5) == [n for n in whole if n < 5]
