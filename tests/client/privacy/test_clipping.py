import math
from fractions import Fraction
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.privacy.clipping import Clipping, clip, clipper

SIZES = [3, 1, 5]
KINDS = get_args(Clipping)

numbers = st.floats(allow_nan=False, allow_infinity=False, width=64)
gradients = st.lists(numbers, min_size=9, max_size=9).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
norms = st.floats(1e-6, 1e6)


def squared(values: torch.Tensor) -> Fraction:
    """Return the square of the true L2 norm."""
    return sum((Fraction(value) ** 2 for value in values.tolist()), Fraction(0))


@pytest.mark.parametrize("kind", KINDS)
@given(gradient=gradients, bound=norms)
def test_nothing_is_longer_than_the_bound(
    kind: Clipping, gradient: torch.Tensor, bound: float
) -> None:
    found = clipper(kind, bound, SIZES)(gradient)
    assert found.shape == gradient.shape
    assert squared(found) <= Fraction(bound) ** 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_adds_nothing(kind: Clipping) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        found = clipper(kind, 1.0, [2, 2])(torch.tensor([1.0, bad, 0.0, 0.0]).double())
        assert not found.any()


def test_flat_keeps_what_is_short_and_the_direction_of_what_is_long() -> None:
    flat = clipper("flat", 2.0, SIZES)
    short = torch.full((9,), 0.1, dtype=torch.float64)
    assert torch.equal(flat(short), short)
    long = torch.arange(9, dtype=torch.float64)
    assert torch.allclose(flat(long), long * (2.0 / long.norm()))
    assert torch.equal(flat(long), clip(long, 2.0))


def test_every_layer_has_a_share_of_its_own() -> None:
    each = 3.0 / math.sqrt(3)
    gradient = torch.tensor([100.0, 0, 0, 0.5, 0, 0, 0, 7.0, 0], dtype=torch.float64)
    found = clipper("per_layer", 3.0, SIZES)(gradient)
    expected = torch.tensor([each, 0, 0, 0.5, 0, 0, 0, each, 0], dtype=torch.float64)
    assert torch.allclose(found, expected)


def test_automatic_makes_short_gradients_weigh_nearly_as_much_as_long_ones() -> None:
    automatic = clipper("automatic", 2.0, SIZES)
    gradient = torch.arange(9, dtype=torch.float64)
    for scale in (1e-120, 1e-3, 1.0, 1e120):
        norm = float((gradient * scale).div(scale).norm()) * scale
        found = automatic(gradient * scale)
        expected = gradient / gradient.norm() * (2.0 * (norm / (norm + 0.01)))
        assert torch.allclose(found, expected, rtol=1e-9)
    assert not automatic(torch.zeros(9, dtype=torch.float64)).any()
