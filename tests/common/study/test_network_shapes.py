from __future__ import annotations

from collections.abc import Callable

import pytest

from client.networks.registry import NETWORKS, build
from common.study.network_shapes import (
    PREFIX,
    Shapes,
    all_options,
    identified,
    misfit,
    shapes,
    title,
)
from common.study.protocol import NetworkOptions

OPTIONS = list(all_options())
TINY = NetworkOptions(name="unet", size="tiny")


@pytest.mark.parametrize("options", OPTIONS, ids=title)
def test_every_network_has_these_names_and_shapes(options: NetworkOptions) -> None:
    built = build(options, seed=0).state_dict()
    assert shapes(options) == {name: tuple(value.shape) for name, value in built.items()}
    assert all(value.dtype.is_floating_point for value in built.values())


def test_every_network_is_among_them_and_no_two_are_alike() -> None:
    assert len(OPTIONS) == 21
    assert {one.name for one in OPTIONS} == NETWORKS.keys()
    assert [identified(shapes(one)) for one in OPTIONS] == OPTIONS


def test_no_other_option_of_a_protocol_says_what_a_network_has() -> None:
    """An option that is added to a network must be looked at here."""
    assert set(NetworkOptions.model_fields) == {"name", "size", "deep_supervision"}


def without(name: str) -> Callable[[Shapes], Shapes]:
    return lambda whole: {key: shape for key, shape in whole.items() if key != name}


FIRST = "body.model.0.conv.unit0.conv.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda whole: whole, ""),
        (without(FIRST), f"they lack {FIRST}. They look like a unet of size tiny."),
        (
            lambda whole: {**whole, "head.weight": (2, 2)},
            "they have head.weight, which the network does not. They look like a unet of size tiny",
        ),
        (
            lambda whole: {**whole, FIRST: (8, 1, 3, 3, 3)},
            f"{FIRST} is 8x1x3x3x3 there, 8x4x3x3x3 is expected. They look like a unet of size",
        ),
        (lambda whole: {**whole, FIRST: ()}, f"{FIRST} is a single number there"),
        (
            lambda whole: {key.removeprefix(PREFIX): shape for key, shape in whole.items()},
            "But for the missing prefix 'body.' they are those of a unet of size tiny.",
        ),
        (lambda _: {}, "and 50 others"),
        (lambda _: {"a": (1,)}, "they have a, which the network does not"),
        (
            lambda _: shapes(NetworkOptions(name="dynunet", size="tiny")),
            "They are those of a dynunet of size tiny.",
        ),
        (
            lambda _: shapes(NetworkOptions(name="unet", size="small")),
            "others differ too. They are those of a unet of size small.",
        ),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[Shapes], Shapes], said: str) -> None:
    found = misfit(change(shapes(TINY)), TINY)
    assert said in found
    assert bool(found) is bool(said)
    assert len(found) < 900
