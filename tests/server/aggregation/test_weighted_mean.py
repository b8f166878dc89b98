"""The mean that keeps no update: to the last bit the same in whatever order sites answer."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.records.weights import Arrays
from server.aggregation.weighted_mean import Mean

# Terms within 2**30 of each other, of either sign, and zero.
numbers = st.builds(
    lambda sign, part, power: float(np.float32(sign * part * 2.0**power)),
    st.sampled_from([-1.0, 0.0, 1.0]),
    st.floats(1.0, 2.0, width=32),
    st.integers(-14, 13),
)
weights = st.floats(1.0, 4.0)
terms = st.lists(st.tuples(numbers, weights), min_size=1, max_size=12)


def mean(given_: list[tuple[float, float]]) -> tuple[float, float]:
    made = Mean()
    for value, weight in given_:
        made.add({"x": np.array([value], np.float32)}, weight=weight)
    ((_, found),) = made.items()
    return float(found[0]), made.weight


@given(terms, st.randoms(use_true_random=False))
def test_the_order_changes_no_bit(given_: list[tuple[float, float]], random: object) -> None:
    other = list(given_)
    random.shuffle(other)  # type: ignore[attr-defined]  # hypothesis's own random.Random
    assert mean(other) == mean(given_)


@given(terms)
def test_the_sum_is_exact(given_: list[tuple[float, float]]) -> None:
    found, weight = mean(given_)
    exact = sum((Fraction(np.float32(v) * np.float64(w)) for v, w in given_), Fraction(0))
    assert weight == math.fsum(w for _, w in given_)
    assert found == float(exact) / weight


def test_a_plain_sum_would_depend_on_the_order() -> None:
    given_ = [(10.0, 1.0), (-10.0, 1.0), (3e-4, 1.7)]
    orders = [given_, given_[::-1], given_[1:] + given_[:1]]
    assert len({sum(np.float32(v) * np.float64(w) for v, w in order) for order in orders}) > 1
    assert len({mean(order) for order in orders}) == 1


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4), (1 << 15,), (3, 40_001)])
def test_arrays_of_every_shape_come_out_as_they_went_in(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    updates: list[Arrays] = [
        {"x": np.asarray(rng.normal(size=shape), np.float32, order=order)} for order in ("C", "F")
    ]
    kept = [update["x"].astype(np.float64) for update in updates]
    made = Mean()
    made.add(updates[0], weight=1.0)
    made.add(updates[1], weight=3.0, factor=0.5)
    ((_, found),) = made.items()
    assert found.shape == shape
    assert np.allclose(found, (kept[0] + 1.5 * kept[1]) / 4, rtol=1e-14)
    assert all(np.array_equal(u["x"], k) for u, k in zip(updates, kept, strict=True))


def test_what_overflows_is_not_finite_and_nobody_is_warned() -> None:
    made = Mean()
    for _ in range(2):
        made.add({"x": np.array([3e38], np.float32)}, weight=1.0, factor=1e300)
    ((_, found),) = made.items()
    assert not np.isfinite(found).any()
