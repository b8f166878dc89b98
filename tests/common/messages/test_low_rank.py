import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UpdateError
from common.messages.low_rank import basis, expand

PINNED = "a6286b40e745079e1ddfa5734757034324bbddf5a31a0b498c3e236e3a95030c"
ROUND = {"seed": 7, "round_number": 3}
SHAPES = {"a.weight": (4, 2, 3, 3, 3), "b.weight": (3, 5, 1, 1, 1), "b.bias": (3,)}


def test_the_basis_is_read_off_shake_256() -> None:
    found = basis("a.weight", **ROUND, rank=3, columns=54)
    said = '["gliofed low-rank basis", 1, 7, 3, "a.weight"]'
    bits = int.from_bytes(hashlib.shake_256(said.encode()).digest(21), "little")
    expected = [(1 - 2 * (bits >> place & 1)) / math.sqrt(54) for place in range(3 * 54)]
    assert found.dtype == np.float64
    assert np.array_equal(found, np.reshape(expected, (3, 54)))


def test_the_basis_never_changes() -> None:
    """Sites and coordinators of different versions must agree; this is what all have."""
    signs = (basis("a.weight", **ROUND, rank=8, columns=864) < 0).tobytes()
    assert hashlib.sha256(signs).hexdigest() == PINNED


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("a.weight", {"seed": 8}),
        ("a.weight", {"round_number": 4}),
        ("b.weight", {}),
        # Numbers that would run together without separators.
        ("a.weight", {"seed": 73, "round_number": 3}),
    ],
)
def test_seed_round_and_name_decide(name: str, changes: dict[str, int]) -> None:
    one = basis("a.weight", **ROUND, rank=4, columns=100)
    other = basis(name, **{**ROUND, **changes}, rank=4, columns=100)
    assert np.array_equal(one, basis("a.weight", **ROUND, rank=4, columns=100))
    # 400 fair coins: equal in half of the places, to six deviations of 10.
    assert abs(int((one == other).sum()) - 200) < 60


@given(rank=st.integers(1, 64), columns=st.integers(65, 700), number=st.integers(0, 10**4))
@settings(max_examples=30)
def test_rows_are_nearly_orthonormal(rank: int, columns: int, number: int) -> None:
    rows = basis("w", seed=1, round_number=number, rank=rank, columns=columns)
    gram = rows @ rows.T
    assert np.allclose(np.diag(gram), 1, atol=1e-12)
    # Each product is a sum of n signs over n: six deviations, and some for the many pairs.
    assert np.abs(gram - np.diag(np.diag(gram))).max(initial=0) < 7.5 / math.sqrt(columns)


def test_a_change_of_low_rank_becomes_one_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    update = {
        "a.weight": rng.normal(size=(4, 2)).astype(np.float32),
        "b.weight": rng.normal(size=(3, 2)).astype(np.float32),
        "b.bias": rng.normal(size=3).astype(np.float32),
    }
    found = expand(update, SHAPES, **ROUND, rank=2)
    assert {name: array.shape for name, array in found.items()} == SHAPES
    assert all(array.dtype == np.float32 for array in found.values())
    assert np.array_equal(found["b.bias"], update["b.bias"])
    for name, columns in (("a.weight", 54), ("b.weight", 5)):
        known = basis(name, **ROUND, rank=2, columns=columns)
        for out in range(SHAPES[name][0]):
            expected = sum(float(update[name][out, k]) * known[k] for k in range(2))
            assert np.allclose(found[name][out].ravel(), expected, rtol=1e-6, atol=1e-7)
        assert np.linalg.matrix_rank(found[name].reshape(-1, columns).astype(np.float64), 1e-5) <= 2


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.integers(0, 2**31 - 1))
@settings(max_examples=30)
def test_the_mean_of_the_factors_is_the_mean_of_the_changes(
    weights: list[float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    updates = [{"a.weight": rng.normal(size=(4, 2)).astype(np.float32)} for _ in weights]
    shares = np.array(weights) / sum(weights)
    mean = sum(share * update["a.weight"] for share, update in zip(shares, updates, strict=True))
    once = expand({"a.weight": np.asarray(mean)}, SHAPES, **ROUND, rank=2)["a.weight"]
    each = [expand(update, SHAPES, **ROUND, rank=2)["a.weight"] for update in updates]
    assert np.allclose(once, sum(s * e for s, e in zip(shares, each, strict=True)), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("a.weight", (4, 3)), ("a.weight", (2, 4)), ("a.weight", (8,)), ("c.weight", (4, 2))],
)
def test_other_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UpdateError, match=name) as error:
        expand({name: np.zeros(shape, np.float32)}, SHAPES, **ROUND, rank=2)
    assert error.value.code == "update-shape"
