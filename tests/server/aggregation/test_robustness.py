"""What hostile sites can do to each rule, and what privacy's noise does to the robust ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.server.aggregation.cases import CASES, Case, Reply, flat

Vector = NDArray[np.float32]
SIZE = 500
ROBUST: dict[str, dict[str, Any]] = {
    "norm_bounded_mean": {"norm_bound": 12.0},
    "coordinate_median": {},
    "trimmed_mean": {},
    "geometric_median": {},
    "krum": {},
    "multi_krum": {},
}
SUMS = ("fedavg", "fednova", "fedavgm", "scaffold")
ATTACKS: dict[str, Callable[[Vector], Vector]] = {
    "sign flipped, ten times": lambda honest: -10 * honest,
    "norm 1e3": lambda _: _long(np.random.default_rng(9), 1e3),
    "norm 1e15": lambda _: _long(np.random.default_rng(9), 1e15),
    "one coordinate": lambda honest: honest + 1e4 * np.eye(SIZE, dtype=np.float32)[3],
}


def _long(rng: np.random.Generator, length: float) -> Vector:
    way = rng.normal(size=SIZE)
    return np.asarray(way / np.linalg.norm(way) * length, np.float32)


def named(rule: str) -> Case:
    return next(case for case in CASES if case.rule == rule)


def honest_updates(rng: np.random.Generator, sites: int) -> list[Vector]:
    """Updates that agree on a direction of length 10 and differ by about 5."""
    common = _long(rng, 10.0)
    return [common + _long(rng, 5.0) for _ in range(sites)]


def combined(rule: str, updates: list[Vector], **options: Any) -> NDArray[np.float64]:
    replies = [Reply(f"site-{number}", {"w": value}) for number, value in enumerate(updates)]
    return flat(named(rule).combine(replies, **options))


def apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.linalg.norm(one.astype(np.float64) - other.astype(np.float64)))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_one_hostile_site_of_five_is_withstood_by_robust_rules_alone(
    attack: str, place: int
) -> None:
    rng = np.random.default_rng(1)
    updates = honest_updates(rng, 4)
    middle = np.mean(updates, axis=0)
    spread = max(apart(update, middle) for update in updates)
    updates.insert(place, ATTACKS[attack](middle))
    for rule, options in ROBUST.items():
        assert apart(combined(rule, updates, **options), middle) < 1.05 * spread, rule
    for rule in SUMS:
        assert apart(combined(rule, updates), middle) > 3 * spread, rule


@pytest.mark.parametrize("attack", ATTACKS)
def test_two_hostile_sites_of_seven_are_withstood_with_options_for_two(attack: str) -> None:
    rng = np.random.default_rng(2)
    updates = honest_updates(rng, 5)
    middle = np.mean(updates, axis=0)
    spread = max(apart(update, middle) for update in updates)
    bad = ATTACKS[attack](middle)
    for rule, options in {
        "coordinate_median": {},
        "trimmed_mean": {"trim_share": 2 / 7},
        "geometric_median": {},
        "krum": {"malicious_sites": 2},
        "multi_krum": {"malicious_sites": 2},
    }.items():
        found = combined(rule, [bad, *updates, bad], quorum=7, **options)
        # Two that agree pull the geometric median further than one.
        assert apart(found, middle) < 1.5 * spread, rule


def test_far_updates_do_not_widen_the_smoothing_of_the_geometric_median() -> None:
    rng = np.random.default_rng(10)
    updates = honest_updates(rng, 3)
    middle = np.mean(updates, axis=0)
    bad = _long(rng, 1e9)
    found = combined("geometric_median", [bad, *updates, bad])
    # Of 5 sites 2 hostile: at most 2 (1 - 0.4) / (1 - 0.8) = 6 spreads (Pillutla et al. 2022).
    assert apart(found, middle) < 6 * max(apart(update, middle) for update in updates)


def test_equal_updates_outvote_any_other_exactly() -> None:
    same = np.full(SIZE, 0.1, np.float32)
    for length in (1e-3, 1e3, 1e15):
        updates = [same, same, _long(np.random.default_rng(9), length), same, same]
        for rule in ("coordinate_median", "trimmed_mean", "geometric_median", "krum"):
            assert np.allclose(combined(rule, updates), same, rtol=1e-6, atol=0), rule


def test_a_share_of_exactly_two_sites_lets_no_sliver_of_them_through() -> None:
    """Ten shares of 0.1 add up to 0.7999... at the eighth: what is left over must not count."""
    updates: list[Vector] = [*np.ones((8, SIZE), np.float32), *np.full((2, SIZE), 1e30, np.float32)]
    for weight in (1.0, 0.3):
        replies = [
            Reply(f"s{number}", {"w": value}, weight) for number, value in enumerate(updates)
        ]
        assert flat(named("trimmed_mean").combine(replies, quorum=10)).tolist() == [1.0] * SIZE
    # The same where weights differ, and two sites have exactly a fifth of them.
    weights = [0.5, 1.5, 0.7, 1.3, 0.9, 1.1, 0.6, 1.4, 1.2, 0.8]
    replies = [
        Reply(f"s{n}", {"w": u}, w) for n, (u, w) in enumerate(zip(updates, weights, strict=True))
    ]
    assert flat(named("trimmed_mean").combine(replies, quorum=10)).tolist() == [1.0] * SIZE


def test_nobody_moves_the_norm_bounded_mean_by_more_than_their_share_of_the_bound() -> None:
    rng = np.random.default_rng(3)
    updates = honest_updates(rng, 4)
    one = combined("norm_bounded_mean", [*updates, _long(rng, 1e6)], norm_bound=2.0)
    other = combined("norm_bounded_mean", [*updates, _long(rng, 1e6)], norm_bound=2.0)
    assert 0 < apart(one, other) <= 2 * 2.0 / 5 * (1 + 1e-6)
    unbounded = combined("norm_bounded_mean", updates, norm_bound=1e3)
    assert unbounded.tolist() == combined("fedavg", updates).tolist()


@pytest.mark.parametrize("weights", [[1.0] * 6, [3.0, 1.0, 2.0, 1.0, 0.5, 1.0]])
def test_no_point_has_a_smaller_sum_of_distances_than_the_geometric_median(
    weights: list[float],
) -> None:
    rng = np.random.default_rng(5)
    updates = [_long(rng, float(rng.uniform(1, 100)))[:4] for _ in weights]
    replies = [
        Reply(f"site-{n}", {"w": value}, weight)
        for n, (value, weight) in enumerate(zip(updates, weights, strict=True))
    ]
    found = flat(named("geometric_median").combine(replies))

    def cost(point: NDArray[Any]) -> float:
        return sum(w * apart(point, u) for w, u in zip(weights, updates, strict=True))

    least = cost(found)
    for length in (1e-3, 0.1, 1.0):
        for _ in range(50):
            step = rng.normal(size=4)
            assert cost(found + length * step / np.linalg.norm(step)) > least
    assert all(cost(update) > least for update in updates)


def test_krum_takes_the_update_that_came_without_noise() -> None:
    """The limit that its docstring names: under privacy the most central update is the liar's."""
    rng = np.random.default_rng(6)
    noisy = [rng.normal(size=SIZE).astype(np.float32) for _ in range(6)]
    liar = np.full(SIZE, 0.3, np.float32)  # a third of a deviation off, in every coordinate
    updates = [*noisy, liar]
    assert combined("krum", updates).tolist() == flat({"w": liar}).tolist()
    for rule in ("coordinate_median", "trimmed_mean"):
        assert apart(combined(rule, updates), liar) > 0.3 * np.sqrt(SIZE)


def test_the_noise_that_is_left_is_what_the_docstrings_say() -> None:
    rng = np.random.default_rng(7)
    sites, size = 21, 4_000
    updates = list(rng.normal(size=(sites, size)).astype(np.float32))
    mean = 1 / np.sqrt(sites)
    left = {
        rule: float(combined(rule, updates, quorum=sites, **options).std() / mean)
        for rule, options in (
            ("fedavg", {}),
            ("geometric_median", {}),
            ("coordinate_median", {}),
            ("trimmed_mean", {"trim_share": 0.1}),
            ("krum", {}),
        )
    }
    assert left["fedavg"] == pytest.approx(1, abs=0.04)
    assert left["geometric_median"] == pytest.approx(1, abs=0.04)
    assert left["coordinate_median"] == pytest.approx(1.25, abs=0.05)
    assert 1 < left["trimmed_mean"] < left["coordinate_median"]
    assert left["krum"] == pytest.approx(np.sqrt(sites), rel=0.05)
    # Hostile sites that all pull one way shift the median by about 1.25 s f / (S - f).
    hostile = 3
    pulled = [*updates[hostile:], *np.full((hostile, size), 100, np.float32)]
    shift = combined("coordinate_median", pulled, quorum=sites).mean()
    assert shift == pytest.approx(1.25 * hostile / (sites - hostile), rel=0.1)
