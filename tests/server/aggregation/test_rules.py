"""One suite that every aggregation rule passes."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.errors import FederationError
from common.weights import Arrays
from server.aggregation import RULES, Rule

finite = st.floats(-1e3, 1e3, width=32)
updates = st.fixed_dictionaries(
    {"a": arrays(np.float32, (2, 3), elements=finite), "b": arrays(np.float32, (), elements=finite)}
)
weighted = st.lists(st.tuples(updates, st.floats(1e-3, 1e6)), min_size=1, max_size=4)

Make = Callable[[], Rule]


@pytest.fixture(params=RULES.values(), ids=RULES.keys(), scope="session")
def make(request: pytest.FixtureRequest) -> Make:
    factory: Make = request.param
    return factory


def combine(make: Make, sites: list[tuple[Arrays, float]]) -> Arrays:
    rule = make()
    for update, weight in sites:
        rule.fold(update, weight=weight)
    return rule.result()


def same(one: Arrays, other: Arrays, *, rtol: float = 1e-5) -> bool:
    return one.keys() == other.keys() and all(
        np.allclose(one[name], other[name], rtol=rtol, atol=1e-3) for name in one
    )


@settings(max_examples=50)
@given(sites=weighted)
def test_the_order_of_sites_does_not_matter(make: Make, sites: list[tuple[Arrays, float]]) -> None:
    first = combine(make, sites)
    for order in itertools.islice(itertools.permutations(sites), 6):
        assert same(combine(make, list(order)), first)


@settings(max_examples=50)
@given(update=updates, weight=st.floats(1e-3, 1e6))
def test_one_site_alone_is_the_result(make: Make, update: Arrays, weight: float) -> None:
    assert same(combine(make, [(update, weight)]), update)


@settings(max_examples=50)
@given(update=updates, weights=st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=4))
def test_agreement_is_kept(make: Make, update: Arrays, weights: list[float]) -> None:
    assert same(combine(make, [(update, weight) for weight in weights]), update)


@settings(max_examples=50)
@given(sites=weighted)
def test_the_result_lies_between_the_updates(make: Make, sites: list[tuple[Arrays, float]]) -> None:
    result = combine(make, sites)
    for name, value in result.items():
        stack = np.stack([update[name] for update, _ in sites])
        assert (value >= stack.min(0) - 1e-3).all()
        assert (value <= stack.max(0) + 1e-3).all()


@settings(max_examples=50)
@given(sites=weighted)
def test_names_shapes_and_dtype_are_those_of_the_updates(
    make: Make, sites: list[tuple[Arrays, float]]
) -> None:
    result = combine(make, sites)
    assert {name: value.shape for name, value in result.items()} == {"a": (2, 3), "b": ()}
    assert all(value.dtype == np.float32 for value in result.values())


@settings(max_examples=25)
@given(sites=weighted)
def test_updates_are_left_as_they_were(make: Make, sites: list[tuple[Arrays, float]]) -> None:
    before = [{name: value.copy() for name, value in update.items()} for update, _ in sites]
    combine(make, sites)
    for (update, _), kept in zip(sites, before, strict=True):
        assert all(np.array_equal(update[name], kept[name]) for name in kept)


def test_weights_count(make: Make) -> None:
    sites = [({"a": np.zeros(2, np.float32)}, 1.0), ({"a": np.full(2, 4, np.float32)}, 3.0)]
    assert combine(make, sites)["a"].tolist() == [3.0, 3.0]


def test_small_updates_are_not_lost_beside_large_ones(make: Make) -> None:
    big, small = np.full(1, 1e8, np.float32), np.ones(1, np.float32)
    sites: list[tuple[Arrays, float]] = [({"a": big}, 1.0)]
    sites += [({"a": small}, 1.0)] * 8 + [({"a": -big}, 1.0)]
    assert combine(make, sites)["a"][0] == pytest.approx(0.8)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_positive_and_finite_is_refused(make: Make, weight: float) -> None:
    rule = make()
    rule.fold({"a": np.ones(1, np.float32)}, weight=1.0)
    with pytest.raises(FederationError, match="weight must be positive"):
        rule.fold({"a": np.full(1, 9, np.float32)}, weight=weight)
    assert rule.result()["a"].tolist() == [1.0]


def test_nothing_folded_is_no_result(make: Make) -> None:
    with pytest.raises(FederationError, match="no update"):
        make().result()
