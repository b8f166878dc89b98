"""Low-rank changes of convolutions: what a site sends of them, and how it becomes weights again.

A weight W of shape (o, ...) with n columns (the product of the other axes) changes by B A: A
(rank, n) is fixed for a round and known to everybody, B (o, rank) starts at zero, is trained and
is all that leaves a site. The mean of the sites' B times A is the mean of their B A, so that
averaging is exact, which it is not when both factors are trained (FFA-LoRA, Sun et al. 2024,
arXiv:2403.12313). Each round has a new A, so that the rounds together are not bound to one
subspace (Flora, Hao et al. 2024, arXiv:2402.03293), and nobody keeps anything between rounds.

Invariants: A depends on the protocol's seed, the round's number and the name of the weight alone,
and is read off SHAKE-256, never off a library's random numbers, which change with versions; A
comes from public numbers and is the same for all patients, so that clipping and noise of B are
those of any other array. The entries of A are signs over sqrt(n): its rows have length 1, and B A
is about as long as B.

Out of scope: which weights change so (``common.study.trained_parameters``), the gradient
(``client.training.loop``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import UpdateError
from common.records.weights import Arrays


@dataclass(frozen=True)
class Subspace:
    """What decides every A of a round: the protocol's seed and the round's number."""

    seed: int
    round_number: int


def basis(
    name: str, *, seed: int, round_number: int, rank: int, columns: int
) -> NDArray[np.float64]:
    """Return A of the weight ``name``: (rank, columns), signs over sqrt(columns)."""
    said = json.dumps(["gliofed low-rank basis", 1, seed, round_number, name])
    count = rank * columns
    drawn = hashlib.shake_256(said.encode()).digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8), count=count, bitorder="little")
    signs: NDArray[np.float64] = 1 - 2 * bits.astype(np.float64)
    return signs.reshape(rank, columns) / math.sqrt(columns)


def expand(
    update: Mapping[str, NDArray[np.floating]],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    seed: int,
    round_number: int,
    rank: int,
) -> Arrays:
    """Return ``update`` as changes of the full arrays, whose ``shapes`` are given by name.

    An array of its full shape passes as it is; one of shape (o, rank) becomes B A in that shape,
    computed in float64, one array at a time. All come out as float32.

    Raises UpdateError (code ``update-shape``) for an array that is neither.
    """
    full: Arrays = {}
    for name, array in update.items():
        shape = tuple(shapes.get(name, ()))
        if array.shape == shape:
            full[name] = np.asarray(array, np.float32)
        elif shape and array.shape == (shape[0], rank):
            known = basis(
                name,
                seed=seed,
                round_number=round_number,
                rank=rank,
                columns=math.prod(shape[1:]),
            )
            product = np.asarray(array, np.float64) @ known
            full[name] = product.astype(np.float32).reshape(shape)
        else:
            raise UpdateError(
                f"Array {name!r} of shape {array.shape} is no change of one of shape {shape}.",
                do="Check that both sides run the same version of gliofed and the same protocol.",
                code="update-shape",
            )
    return full
