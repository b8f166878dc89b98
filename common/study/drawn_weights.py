"""Random starting weights that a protocol's network and seed determine, bit by bit, on any machine.

Coordinator and sites draw them each for themselves and compare digests: nobody chooses what a study
starts from, and the coordinator needs no torch to know it.

The law is that of the layers as their networks set them up. A convolution's weight is uniform in
(-b, b) with b = 1 / sqrt(f), f being the numbers that one output is made of as torch counts them,
and so is its bias (torch's default, He et al. 2015 with a = sqrt(5), arXiv:1502.01852). DynUNet
sets up its weights wider, with variance 2 / (1.0001 f), and its biases to 0; there the law is
uniform too, where MONAI takes a normal one of the same variance. Norms start at 1 and 0, PReLU at
0.25.

Invariants: an entry depends on the seed and the name of its parameter alone; it is read off
SHAKE-256, never off a library's random numbers, which change with versions. From 24 bits k it
becomes (2 k + 1 - 2**24) / 2**24 times b: the first factor is exact in float64, b is a root and a
quotient, and the product is rounded twice, all of which IEEE 754 lays down to the last bit.

Out of scope: weights that are given as a file (``common.study.starting_weights``).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.records.weights import Arrays, digest
from common.study.network_shapes import Shape, shapes
from common.study.protocol import NetworkOptions, StudyProtocol

_BITS: Final = 24
_PRELU: Final = 0.25
_LEAK: Final = 0.01
"""Slope of the leaky ReLU that DynUNet sets its weights up for."""

_VOLUME_KERNEL: Final = 5
"""Axes of the weight of a convolution over volumes."""


def draw(options: NetworkOptions, *, seed: int) -> Arrays:
    """Return the weights of a network by name, as float32."""
    named = shapes(options)
    arrays: Arrays = {}
    for name, shape in named.items():
        bound = _bound(name, named, options)
        if bound is None:
            arrays[name] = np.full(shape, _constant(name), np.float32)
        else:
            arrays[name] = _uniform(name, shape, bound=bound, seed=seed)
    return arrays


@functools.lru_cache(maxsize=64)
def drawn_digest(options: NetworkOptions, *, seed: int) -> str:
    """Return the digest of what ``draw`` gives."""
    return digest(draw(options, seed=seed))


def start_in_words(protocol: StudyProtocol) -> str:
    """Return what the first round of a study starts from, with its digest."""
    if protocol.initial_sha256:
        return protocol.start
    return f"{protocol.start} ({drawn_digest(protocol.network, seed=protocol.seed)[:16]})"


def _bound(name: str, named: dict[str, Shape], options: NetworkOptions) -> float | None:
    """Return up to where the entries of a parameter reach, or None if it starts as a constant."""
    own, _, last = name.rpartition(".")
    kernel = named.get(f"{own}.weight", ())
    if len(kernel) != _VOLUME_KERNEL:
        return None
    inputs = math.prod(kernel[1:])
    if options.name != "dynunet":
        return 1 / math.sqrt(inputs)
    return math.sqrt(6 / ((1 + _LEAK * _LEAK) * inputs)) if last == "weight" else None


def _constant(name: str) -> float:
    if name.endswith(".adn.A.weight"):
        return _PRELU
    return 1.0 if name.endswith(".weight") else 0.0


def _uniform(name: str, shape: Shape, *, bound: float, seed: int) -> NDArray[np.float32]:
    """Return numbers between -bound and bound; both ends are left out before the last rounding."""
    said = json.dumps(["gliofed starting weights", 1, seed, name])
    count = math.prod(shape)
    drawn = np.frombuffer(hashlib.shake_256(said.encode()).digest(4 * count), "<u4")
    whole = (drawn >> np.uint32(32 - _BITS)).astype(np.float64)
    unit = (2 * whole + 1 - 2.0**_BITS) / 2.0**_BITS
    return (unit * bound).astype(np.float32).reshape(shape)
