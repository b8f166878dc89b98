"""Entropy and noise: their law, their grid, and that nothing of it repeats."""

import itertools
import math
import os
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.privacy.secure_noise import (
    MOST_CONTRIBUTIONS,
    SystemRandom,
    check_exact,
    grid,
    noise,
    normals,
    uniforms,
)
from common.errors import PrivacyError


def seeded(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def test_noise_has_the_deviation_that_is_charged() -> None:
    count = 200_000
    drawn = noise(SystemRandom(), count, noise_multiplier=2.0, clipping_norm=0.3).numpy()
    # Sum of squares: chi-square, whose relative deviation is sqrt(2 / count); six of them.
    assert (drawn**2).sum() / (0.6**2 * count) == pytest.approx(1, abs=6 * math.sqrt(2 / count))
    assert abs(drawn.mean()) < 6 * 0.6 / math.sqrt(count)
    assert (drawn**4).mean() / (drawn**2).mean() ** 2 == pytest.approx(3, abs=0.15)
    half = count // 2
    assert abs(np.corrcoef(drawn[:half], drawn[half:])[0, 1]) < 6 / math.sqrt(half)
    steps = drawn / grid(0.3)
    assert np.array_equal(steps, np.rint(steps))


def test_normals_follow_the_normal_distribution() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = normals(seeded(1), 100_001)
    assert values.shape == (100_001,)
    assert stats.kstest(values, "norm").pvalue > 1e-4
    assert values.dtype == np.float64


def test_randomness_is_never_repeated() -> None:
    one, other = SystemRandom(), SystemRandom()
    parts = [one(64), one(64), other(64), other(64)]
    assert all(a != b for a, b in itertools.combinations(parts, 2))
    drawn = uniforms(one, 10_000)
    assert 0 <= drawn.min() < drawn.max() < 1
    assert len(np.unique(drawn)) == 10_000


@pytest.mark.parametrize("extreme", [b"\x00", b"\xff"])
def test_extreme_bytes_give_finite_noise(extreme: bytes) -> None:
    values = normals(lambda count: extreme * count, 4)
    assert np.isfinite(values).all()
    assert 0 <= uniforms(lambda count: extreme * count, 1)[0] < 1


def test_each_pair_is_the_sum_of_two_points_over_the_root_of_two() -> None:
    words = [(3, 2**61), (2**40 - 1, 2**62)]  # an eighth and a quarter of the circle
    stream = b"".join(n.to_bytes(8, "little") for pair in words for n in pair)
    calls = iter([stream[:16], stream[16:]])
    found = normals(lambda count: next(calls)[:count], 2)
    lengths = [math.sqrt(2 * 62 * math.log(2)), math.sqrt(2 * 24 * math.log(2))]
    x = lengths[0] * math.sqrt(0.5)
    y = lengths[0] * math.sqrt(0.5) + lengths[1]
    assert found == pytest.approx([x * math.sqrt(0.5), y * math.sqrt(0.5)], rel=1e-14)


def test_tails_end_where_it_is_said() -> None:
    # Of zero bytes are the longest points, at angle zero; both of a pair.
    assert normals(bytes, 1)[0] == pytest.approx(math.sqrt(2) * math.sqrt(128 * math.log(2)))
    check_exact(0, noise_multiplier=39_000, clipping_norm=1.99)
    longest = noise(bytes, 1, noise_multiplier=39_000, clipping_norm=1.99) / grid(1.99)
    assert 2.0**51 < float(longest[0]) < 2.0**52


@pytest.mark.parametrize("count", [0, 1, 2, 3, 2**15 - 1, 2**15, 2**15 + 1, 70_001])
def test_any_number_of_normals(count: int) -> None:
    found = normals(seeded(4), count)
    assert found.shape == (count,)
    assert np.isfinite(found).all()
    assert len(np.unique(found)) == count


@given(st.floats(1e-100, 1e100))
def test_the_grid_is_a_power_of_two_far_below_the_norm(clipping_norm: float) -> None:
    unit = grid(clipping_norm)
    assert math.frexp(unit)[0] == 0.5
    assert 2.0**32 <= clipping_norm / unit < 2.0**33


@pytest.mark.parametrize(
    ("contributions", "noise_multiplier", "clipping_norm"),
    [
        (MOST_CONTRIBUTIONS + 1, 1.0, 1.0),
        (0, 80_000.0, 1.0),
        (0, math.inf, 1.0),
        (0, math.nan, 1.0),
        (0, 1.0, 1e-101),
        (0, 1.0, 1e101),
        (0, 1.0, 0.0),
        (0, 1.0, -1.0),
        (0, 1.0, math.nan),
    ],
)
def test_what_float64_cannot_add_exactly_is_refused(
    contributions: int, noise_multiplier: float, clipping_norm: float
) -> None:
    numbers = {"noise_multiplier": noise_multiplier, "clipping_norm": clipping_norm}
    with pytest.raises(PrivacyError) as error:
        check_exact(contributions, **numbers)
    assert error.value.code == "privacy-exact"
    if not contributions:
        with pytest.raises(PrivacyError):
            noise(SystemRandom(), 1, **numbers)


def test_protocols_may_have_any_noise_multiplier_up_to_their_limit() -> None:
    check_exact(MOST_CONTRIBUTIONS, noise_multiplier=1e4, clipping_norm=1.9999999)


def test_a_forked_process_has_bytes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    entropy = SystemRandom()
    other = SystemRandom.__new__(SystemRandom)
    other.__dict__.update(entropy.__dict__)
    key_stream = entropy._stream
    assert entropy(64) != entropy(64)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    other(1)
    assert other._stream is not key_stream
    assert entropy(64) != other(64)
