import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load

from client.networks import registry
from common.errors import StateError, UpdateError
from common.messages.compression import decode, encode, encoded_bytes_limit, plain
from common.records.weights import Arrays, norm
from common.study.protocol import MessageOptions, NetworkOptions

FLOAT32 = MessageOptions()
FLOAT16 = MessageOptions(encoding="float16")
INT8 = MessageOptions(encoding="int8")
LOSSY = [FLOAT16, INT8]
SPARSE = [MessageOptions(encoding=e, top_share=0.1) for e in ("float32", "float16", "int8")]
EVERY = [FLOAT32, *LOSSY, *SPARSE]
SMALLEST = 2.0**-149

LARGE = st.sampled_from([1e-45, 3e-44, 1e-38, 1e-30, 1e-3, 1.0, 77.7, 1e6, 1e30, 9e37])
SHAPE = st.sampled_from([(), (0,), (0, 3), (1,), (1, 1), (7,), (2, 3), (3, 1, 4), (40, 30)])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sizes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def there_and_back(arrays: Arrays, options: MessageOptions, seed: int = 0) -> Arrays:
    body, _ = encode(arrays, options, rng=rng(seed))
    return decode(body, sizes(arrays), options)


@st.composite
def updates(draw: st.DrawFn) -> Arrays:
    """Arrays of all shapes, of one scale each, some entries zero, some far below the largest."""
    arrays = {}
    for name in draw(st.sets(st.sampled_from("abcd"), max_size=3)):
        shape = draw(SHAPE)
        numbers = rng(draw(st.integers(0, 2**32 - 1)))
        values = numbers.uniform(-1, 1, shape) * 10.0 ** numbers.uniform(-9, 0, shape)
        values = values * (numbers.random(shape) < draw(st.sampled_from([0.0, 0.8, 1.0])))
        arrays[name] = np.asarray(values * draw(LARGE), np.float32)
    return arrays


def bound(array: np.ndarray, options: MessageOptions) -> np.ndarray:
    """Return how far off each entry may be, as the module promises."""
    size = np.abs(array.astype(np.float64))
    largest = size.max(initial=0.0)
    if options.encoding == "int8":
        return np.full(array.shape, largest / 127 * (1 + 2**-15) + SMALLEST)
    return np.maximum(size * 2**-10, max(largest * 2**-38, SMALLEST))


@given(updates(), st.sampled_from(LOSSY))
@settings(deadline=None, max_examples=200)
def test_rounding_is_bounded_and_zero_stays_zero(arrays: Arrays, options: MessageOptions) -> None:
    got = there_and_back(arrays, options)
    assert sizes(got) == sizes(arrays)
    for name, array in arrays.items():
        assert got[name].dtype == np.float32
        assert np.isfinite(got[name]).all()
        off = np.abs(got[name].astype(np.float64) - array.astype(np.float64))
        assert (off <= bound(array, options)).all()
        assert (got[name][array == 0] == 0).all()
        assert (np.sign(got[name]) * np.sign(array) >= 0).all()


@given(updates())
@settings(deadline=None, max_examples=50)
def test_float32_survives_bit_by_bit(arrays: Arrays) -> None:
    body, residual = encode(arrays, FLOAT32)
    got = decode(body, sizes(arrays), FLOAT32)
    assert {name: value.tobytes() for name, value in got.items()} == {
        name: value.tobytes() for name, value in arrays.items()
    }
    assert body == plain(arrays)
    assert residual == {}


@pytest.mark.parametrize("options", LOSSY, ids=lambda options: options.encoding)
@pytest.mark.parametrize("largest", [2.0**-140, 2.0**-120, 1e-30, 1.0, 3e4, 1e30, 2.0**127])
def test_rounding_is_unbiased(options: MessageOptions, largest: float) -> None:
    """The mean of many draws is the value: within five deviations, as each is off by < bound."""
    values = np.asarray(
        largest * np.array([1, -1, 0.7, -0.3, 1 / 127, 1e-3, -1e-4, 3e-5, -3e-12, 1e-12, 0]),
        np.float32,
    )
    draws = 4000
    many = {"a": np.repeat(values[:, None], draws, axis=1)}
    mean = there_and_back(many, options)["a"].astype(np.float64).mean(axis=1)
    deviation = bound(values, options) / 2 / math.sqrt(draws)
    assert (np.abs(mean - values.astype(np.float64)) <= 5 * deviation).all()


@given(updates(), st.sampled_from(LOSSY))
@settings(deadline=None, max_examples=50)
def test_code_times_scale_is_exact(arrays: Arrays, options: MessageOptions) -> None:
    body, _ = encode(arrays, options, rng=rng())
    parts = load(body)
    got = decode(body, sizes(arrays), options)
    for name, scale in zip(sorted(arrays), parts.get("#scales", ()), strict=True):
        exact = parts[name].astype(np.float64) * np.float64(scale)
        assert np.array_equal(got[name].astype(np.float64), exact)


def test_halves_are_not_rounded_to_the_nearest() -> None:
    value = np.full(20_000, np.float32(1 + 2**-12))  # a quarter of the way to the next half
    got = there_and_back({"a": np.append(value, np.float32(1.5))}, FLOAT16)["a"][:-1]
    assert set(got.tolist()) == {1.0, 1 + 2**-10}
    assert np.mean(got > 1) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("options", [*LOSSY, *SPARSE[1:]])
def test_the_generator_decides_the_bytes(options: MessageOptions) -> None:
    arrays = {"a": rng().standard_normal(3000).astype(np.float32)}
    assert encode(arrays, options, rng=rng(1))[0] == encode(arrays, options, rng=rng(1))[0]
    assert encode(arrays, options, rng=rng(1))[0] != encode(arrays, options, rng=rng(2))[0]
    assert encode(arrays, options)[0] != encode(arrays, options)[0]


@pytest.mark.parametrize("options", LOSSY, ids=lambda options: options.encoding)
def test_an_update_of_like_entries_hardly_grows(options: MessageOptions) -> None:
    arrays = {"a": rng().standard_normal((64, 32, 27)).astype(np.float32)}
    assert norm(there_and_back(arrays, options)) == pytest.approx(norm(arrays), rel=2e-4)


SHARES = st.sampled_from([1e-4, 0.01, 0.1, 0.3, 0.7])


@given(updates(), st.sampled_from(["float32", "float16", "int8"]), SHARES, st.integers(0, 99))
@settings(deadline=None, max_examples=150)
def test_what_is_not_sent_is_kept(arrays: Arrays, encoding: Any, share: float, seed: int) -> None:
    options = MessageOptions(encoding=encoding, top_share=share)
    numbers = rng(seed)
    old: Arrays = {
        name: np.asarray(value * numbers.uniform(-0.8, 0.8, value.shape), np.float32)
        for name, value in arrays.items()
    }
    body, residual = encode(arrays, options, rng=rng(seed), residual=old)
    got = decode(body, sizes(arrays), options)
    assert sizes(residual) == sizes(arrays)
    for name in arrays:
        new, before, sent = (x[name].astype(np.float64) for x in (arrays, old, got))
        rounding = (np.abs(new) + np.abs(before) + np.abs(sent)) * 2.0**-23 + SMALLEST
        assert (np.abs(new + before - sent - residual[name]) <= rounding).all()


def test_the_largest_travel_and_the_rest_in_later_rounds() -> None:
    value = np.arange(1, 1001, dtype=np.float32) * np.float32(0.5)
    options = MessageOptions(top_share=0.1)
    body, residual = encode({"a": value}, options)
    first = decode(body, {"a": (1000,)}, options)["a"]
    assert np.array_equal(np.flatnonzero(first), np.arange(900, 1000))
    assert np.array_equal(first[900:], value[900:])
    assert not residual["a"][900:].any()

    total, nothing = first.astype(np.float64), {"a": np.zeros(1000, np.float32)}
    for _ in range(9):
        body, residual = encode(nothing, options, residual=residual)
        total += decode(body, {"a": (1000,)}, options)["a"]
    assert np.array_equal(total, value)
    assert not residual["a"].any()


def test_without_a_share_nothing_is_kept_but_what_was_kept_is_sent() -> None:
    one = {"a": np.ones(5, np.float32)}
    for options in (FLOAT32, *LOSSY):
        body, residual = encode(one, options, residual=one)
        assert residual == {}
        assert decode(body, sizes(one), options)["a"] == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("residual", [{"a": np.ones(4)}, {"b": np.ones(5)}, {"a": np.ones((5, 1))}])
def test_a_residual_of_another_study_is_refused(residual: Arrays) -> None:
    with pytest.raises(StateError) as caught:
        encode({"a": np.ones(5, np.float32)}, SPARSE[0], residual=residual)
    assert caught.value.code == "residual"


@pytest.mark.parametrize("options", EVERY)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_has_no_code(options: MessageOptions, bad: float) -> None:
    with pytest.raises(UpdateError) as caught:
        encode({"a": np.array([1, bad], np.float32)}, options)
    assert caught.value.code == "update-not-finite"


def test_an_update_and_its_residual_may_be_too_large_together() -> None:
    huge = {"a": np.full(4, 3e38, np.float32)}
    assert np.array_equal(there_and_back(huge, FLOAT32)["a"], huge["a"])
    for options, residual in ((INT8, None), (FLOAT16, None), (FLOAT32, huge)):
        with pytest.raises(UpdateError):
            encode(huge, options, residual=residual)


@pytest.mark.parametrize("options", EVERY[1:])
def test_a_name_that_could_be_a_part_is_refused(options: MessageOptions) -> None:
    with pytest.raises(UpdateError) as caught:
        encode({"a": np.ones(3, np.float32), "a#index": np.ones(3, np.float32)}, options)
    assert caught.value.code == "update-name"


@pytest.fixture(scope="module")
def segresnet() -> Arrays:
    """An update of the shapes of the real network, of noise as private training gives it."""
    shapes = sizes(registry.state_arrays(registry.build(NetworkOptions(size="base"), seed=0)))
    numbers = rng()
    return {
        name: np.float32(1e-3) * numbers.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }


BUDGETS = [
    (INT8, 0.27),
    (FLOAT16, 0.51),
    (MessageOptions(top_share=0.01), 0.025),
    (MessageOptions(encoding="float16", top_share=0.05), 0.085),
    (MessageOptions(encoding="int8", top_share=0.01), 0.02),
    (MessageOptions(encoding="int8", top_share=0.5), 0.27),  # a half would be more than all
]


@pytest.mark.parametrize(("options", "most"), BUDGETS)
def test_the_network_takes_few_bytes(
    segresnet: Arrays, options: MessageOptions, most: float
) -> None:
    assert sum(array.size for array in segresnet.values()) > 4_000_000
    body, _ = encode(segresnet, options, rng=rng())
    assert len(body) <= most * len(plain(segresnet))
    assert len(body) <= encoded_bytes_limit(sizes(segresnet), options)


@pytest.mark.parametrize("options", EVERY[1:])
def test_many_small_arrays_take_no_more_bytes(options: MessageOptions) -> None:
    small = {f"body.down_layers.{i}.norm.weight": np.ones(8, np.float32) for i in range(60)}
    assert len(encode(small, options)[0]) <= len(plain(small))
    assert len(encode(small, INT8)[0]) < 0.88 * len(plain(small))  # nearly all is headers


@pytest.mark.parametrize("options", [INT8, FLOAT16, *SPARSE])
def test_decoding_takes_one_array_more_than_the_result(
    segresnet: Arrays, options: MessageOptions
) -> None:
    body, _ = encode(segresnet, options, rng=rng())
    shapes = sizes(segresnet)
    result = sum(array.nbytes for array in segresnet.values())
    largest = max(array.nbytes for array in segresnet.values())
    tracemalloc.start()
    try:
        decode(body, shapes, options)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= result + largest


@given(hnp.arrays(np.float32, st.integers(0, 300), elements=st.floats(-8, 8, width=32)), SHARES)
@settings(deadline=None, max_examples=60)
def test_no_body_passes_its_limit(value: np.ndarray, share: float) -> None:
    for encoding in ("float32", "float16", "int8"):
        options = MessageOptions.model_validate({"encoding": encoding, "top_share": share})
        body, _ = encode({"a": value}, options, rng=rng())
        assert len(body) <= encoded_bytes_limit({"a": value.shape}, options)
        assert len(body) <= len(plain({"a": value})) + 80  # of the scale
