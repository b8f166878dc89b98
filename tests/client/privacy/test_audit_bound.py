"""The bound from right guesses, against exact sums and against simulated mechanisms."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.privacy.audit_bound import correct_guesses, lower_bound, p_value


def exact(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The formula of theorem 5.2, summed term by term."""
    right = 1 / (1 + math.exp(-epsilon))

    def chance(low: int, high: int) -> float:
        return math.fsum(
            math.comb(guesses, k) * right**k * (1 - right) ** (guesses - k)
            for k in range(max(low, 0), high + 1)
        )

    worst = max((chance(correct - i, correct - 1) / i for i in range(1, canaries + 1)), default=0.0)
    return min(1.0, chance(correct, guesses) + 2 * canaries * delta * worst)


@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.05])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
@pytest.mark.parametrize(
    ("canaries", "guesses", "correct"), [(1, 1, 1), (30, 30, 21), (90, 40, 40), (50, 10, 0)]
)
def test_p_value_is_the_sum_of_the_theorem(
    canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> None:
    found = p_value(
        canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta
    )
    assert found == pytest.approx(exact(canaries, guesses, correct, epsilon, delta), abs=1e-12)


@pytest.mark.parametrize("guesses", [5, 100, 2000])
def test_all_right_gives_the_closed_form(guesses: int) -> None:
    """Randomised response is right n times with chance q**n, and has epsilon log(q / (1 - q))."""
    right = 0.05 ** (1 / guesses)
    found = lower_bound(
        canaries=guesses, guesses=guesses, correct=guesses, delta=0.0, confidence=0.95
    )
    assert found == pytest.approx(math.log(right / (1 - right)), abs=2e-6)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_more_right_guesses_never_lower_the_bound(data: st.DataObject) -> None:
    canaries = data.draw(st.integers(1, 2000))
    guesses = data.draw(st.integers(1, canaries))
    delta = data.draw(st.sampled_from([0.0, 1e-6, 1e-4, 1e-2]))
    correct = sorted(data.draw(st.lists(st.integers(0, guesses), min_size=2, max_size=4)))
    bounds = [
        lower_bound(canaries=canaries, guesses=guesses, correct=v, delta=delta, confidence=0.95)
        for v in correct
    ]
    assert all(low <= high + 1e-6 for low, high in pairwise(bounds))
    # And where it stops, the search has not jumped over an epsilon that cannot be refused.
    for below in np.linspace(0, bounds[-1], 7)[:-1] if bounds[-1] else ():
        p = p_value(
            canaries=canaries, guesses=guesses, correct=correct[-1], epsilon=below, delta=delta
        )
        assert p <= 0.05 + 1e-12


@pytest.mark.parametrize(
    ("epsilon", "reveal", "guesses"), [(1.0, 0.0, 400), (3.0, 0.0, 120), (1.0, 0.02, 400)]
)
def test_the_bound_is_above_the_truth_at_most_as_often_as_allowed(
    epsilon: float, reveal: float, guesses: int
) -> None:
    """Randomised response that shows all coins with chance ``reveal`` is (epsilon, reveal)-DP."""
    rng = np.random.default_rng(3)
    canaries, runs = 400, 1500
    right = 1 / (1 + math.exp(-epsilon))
    counts = np.where(rng.random(runs) < reveal, guesses, rng.binomial(guesses, right, runs))
    bounds = {
        int(v): lower_bound(
            canaries=canaries, guesses=guesses, correct=int(v), delta=reveal, confidence=0.95
        )
        for v in np.unique(counts)
    }
    above = np.mean([bounds[int(v)] > epsilon for v in counts])
    assert above <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    if not reveal:  # Randomised response is what the bound is tight for.
        assert above >= 0.01


def test_guesses_are_the_extremes_and_the_rest_abstains() -> None:
    members = np.array([True, True, False, True, False, False])
    scores = np.array([9.0, -5.0, 8.0, 0.5, -4.0, 0.4])
    assert correct_guesses(scores, members, each=1) == 1
    assert correct_guesses(scores, members, each=2) == 2
    assert correct_guesses(scores, members, each=3) == 4
    assert correct_guesses(scores, members, each=0) == 0


def test_no_canary_proves_nothing() -> None:
    assert lower_bound(canaries=0, guesses=0, correct=0, delta=0.1, confidence=0.95) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"correct": 11},
        {"guesses": 101},
        {"correct": -1},
        {"delta": -0.1},
        {"delta": 1.1},
        {"confidence": 1.0},
    ],
)
def test_impossible_counts_are_refused(wrong: dict[str, float]) -> None:
    good = {"canaries": 100, "guesses": 10, "correct": 5, "delta": 0.0, "confidence": 0.95}
    with pytest.raises(ValueError, match=r"impossible|privacy|between"):
        lower_bound(**(good | wrong))  # type: ignore[arg-type]
