"""Random numbers that nobody can foresee, and Gaussian noise whose bits tell nothing.

The method. All that is added up are whole multiples of one grid, a power of two 2**32 to 2**33
times smaller than the clipping norm C.

1. A clipped gradient is cut towards zero to multiples of the grid. No entry grows, so its norm
   stays at or below C, and one patient moves the sum S by at most C: nothing has to be inflated.
2. The noise y is drawn with standard deviation sigma * C and rounded to the grid.
3. In units of the grid all are whole numbers below 2**53, so that float64 adds them exactly, in
   any order. The sum is S + round(y), and as S is on the grid, that is round(S + y): the Gaussian
   mechanism, and then a rounding that does not look at the patients. Rounding after the mechanism
   costs no privacy, whatever the grid.

Why so. If S + y were added as floats, the last bits of the result would show which S can give it
(Mironov 2012, "On significance of the least significant bits for differential privacy"), and the
size of the numbers would show in how finely they are rounded (Haney et al. 2022, "Precision-based
attacks and interval refining", arXiv:2207.13793). On one grid, with an exact sum, there are no such
bits: each y is rounded before it meets S, and its own float64 steps are finer than the grid.

What remains. Box and Muller (1958) turn two uniform numbers into the length and the direction of a
point in the plane. From few bits, only certain lengths occur, and two noises that are seen together
can betray them (Holohan & Braghin 2021, "Secure random sampling in differential privacy",
arXiv:2107.10138). Therefore lengths are drawn from 64 bits, and each pair of numbers is the sum of
two such points over sqrt(2), as they advise. The lengths that can occur are further apart than the
grid where the uniform number is below sigma * 2**-31; that shows only if it is for both points of
a pair, whose chance is sigma**2 * 2**-62. Lengths above sqrt(2 * 64 * log(2)) = 9.4 do not occur;
a true one has the chance 2**-64. A step draws as many lengths as there are trained parameters, so
that T steps of P parameters add at most (1 + exp(epsilon)) * T * P * 2**-64 to delta: 8e-7 for
1,000 steps of 4.7 million at epsilon 8, beside a delta of 1e-3; 8e-9 for 50,000 parameters. The
elementary functions used err by few last bits, at most 2**-13 of the grid at ten deviations for
sigma 1: no formal bound is claimed for that. An exact discrete Gaussian (Canonne et al. 2020,
arXiv:2004.00010) would leave nothing, but takes 11 s a step at 4.7 million parameters where this
takes about 0.11 s.

Never torch's or numpy's own generators: their state can be computed from what they gave.

Out of scope: clipping and the step (``client.privacy.dp_sgd``).
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from common.errors import PrivacyError

GRID_BITS: Final = 32
MOST_CONTRIBUTIONS: Final = 2**19
"""Clipped gradients in one sum: 2**19 * 2**33 = 2**52. The noise has the other half of 2**53."""

_REACH: Final = math.sqrt(2 * 2 * 64 * math.log(2))
"""The largest that ``normals`` gives: sqrt(2) times the largest length."""

_NORMS: Final = (1e-100, 1e100)
_BLOCK: Final = 2**14
"""Points at a time: what they need stays in the processor's cache."""

RandomBytes = Callable[[int], bytes]
"""Gives that many unpredictable bytes, never the same twice."""


class SystemRandom:
    """AES-256-CTR under a key of the operating system: ``RandomBytes`` for everything private.

    A process that is forked off takes a key of its own, or it would repeat its parent's bytes.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._stream = _stream()

    def __call__(self, count: int) -> bytes:
        if self._process != os.getpid():
            self._process, self._stream = os.getpid(), _stream()
        return self._stream.update(bytes(count))


def _stream() -> CipherContext:
    return Cipher(algorithms.AES(secrets.token_bytes(32)), modes.CTR(bytes(16))).encryptor()


def uniforms(entropy: RandomBytes, count: int) -> NDArray[np.float64]:
    """Return ``count`` numbers from [0, 1), multiples of 2**-53."""
    whole = np.frombuffer(entropy(8 * count), "<u8") >> np.uint64(11)
    return whole.astype(np.float64) * 2.0**-53


def normals(entropy: RandomBytes, count: int) -> NDArray[np.float64]:
    """Return ``count`` standard normal numbers, float64, each from two draws of Box and Muller."""
    found = np.empty(count)
    for start in range(0, count, 2 * _BLOCK):
        part = found[start : start + 2 * _BLOCK]
        half = (len(part) + 1) // 2
        (x, y), (more_x, more_y) = _points(entropy, half), _points(entropy, half)
        part[:half] = x + more_x
        part[half:] = (y + more_y)[: len(part) - half]
    found *= math.sqrt(0.5)
    return found


def _points(entropy: RandomBytes, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the coordinates of ``count`` points, normal in the plane, by Box and Muller 1958."""
    whole = np.frombuffer(entropy(16 * count), "<u8").astype(np.float64)
    # From 2**-64 to 1, where the logarithm is finite; small numbers, of long lengths, are exact.
    length = np.sqrt(-2 * np.log((whole[:count] + 1) * 2.0**-64))
    # torch's sine and cosine take a quarter of numpy's time, and err by one last bit as well.
    angle = torch.from_numpy(whole[count:] * (2 * math.pi * 2.0**-64))
    return length * torch.cos(angle).numpy(), length * torch.sin(angle).numpy()


def grid(clipping_norm: float) -> float:
    """Return the grid that gradients and noise are whole multiples of, a power of two.

    Raises PrivacyError (code ``privacy-exact``) for a norm that float64 has no such grid for.
    """
    if not _NORMS[0] <= clipping_norm <= _NORMS[1]:
        raise _inexact(f"A clipping norm of {clipping_norm:g} is outside {_NORMS}")
    return math.ldexp(1.0, math.frexp(clipping_norm)[1] - 1 - GRID_BITS)


def noise(
    entropy: RandomBytes, count: int, *, noise_multiplier: float, clipping_norm: float
) -> torch.Tensor:
    """Return Gaussian noise of deviation ``noise_multiplier * clipping_norm``, on the grid.

    Raises PrivacyError as ``check_exact`` does.
    """
    check_exact(0, noise_multiplier=noise_multiplier, clipping_norm=clipping_norm)
    unit = grid(clipping_norm)
    found = normals(entropy, count)
    found *= noise_multiplier * clipping_norm / unit
    np.rint(found, out=found)
    found *= unit
    return torch.from_numpy(found)


def check_exact(contributions: int, *, noise_multiplier: float, clipping_norm: float) -> None:
    """Check that sums of so many clipped gradients and their noise are exact in float64.

    Raises PrivacyError (code ``privacy-exact``).
    """
    unit = grid(clipping_norm)
    if contributions > MOST_CONTRIBUTIONS:
        raise _inexact(f"A step of more than {MOST_CONTRIBUTIONS} patients")
    if not _REACH * noise_multiplier * (clipping_norm / unit) <= 2.0**52:
        raise _inexact(f"A noise multiplier of {noise_multiplier:g}")


def _inexact(what: str) -> PrivacyError:
    return PrivacyError(
        f"{what} cannot be added up exactly, and an inexact sum is not private.",
        do="Ask for a protocol with other numbers.",
        code="privacy-exact",
    )
