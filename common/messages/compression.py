"""Updates as few bytes: rounded to fewer bits, or only their largest entries, and back again.

``encode`` gives the one safetensors body that travels, ``decode`` the arrays that the receiver goes
on with. Three encodings: ``float32``, bit by bit; ``float16``, halves of an array over a power of
two; ``int8``, whole numbers from -127 to 127 of an array over a scale, which is its largest entry
over 127. Beside the arrays, the body of the latter two holds ``#scales``: one scale for each array,
in the order of the sorted names. One array for all of them: a header for each scale would cost more
than a small array saves.

Rounding is stochastic: x between the neighbours a < b that have a code becomes b with the chance
(x - a) / (b - a), so that its expectation is x (QSGD, Alistarh et al. 2017, arXiv:1610.02132).
Means over sites and rounds stay unbiased. An entry is off by less than b - a: 2**-10 of itself in
``float16`` (2**-38 of the array's largest entry at least), 1/127 of the array's largest entry in
``int8``, up to 2**-15 of that. Zero stays zero. Scales have so few bits that code times scale is
exact in float32. In ``int8`` the noise of rounding may make an update longer, little where the
entries of an array are alike (1e-4 of the norm for Gaussian ones), much where few are large.

With ``top_share`` below 1 only that share of an array's entries travels, those of largest size,
with their places in ``name#index``. What the receiver did not get is the *residual*: the caller
keeps it, and it is added to the next update, so that nothing is lost, but late (error feedback,
Seide et al. 2014; Stich et al. 2018, arXiv:1809.07599). An array of which a share would be no
fewer bytes travels whole. Without ``top_share`` nothing is kept: unbiased rounding needs no
feedback.

Privacy: all of this is done to an update that is noised already, and a residual is made of nothing
but such updates. It is post-processing and costs no privacy, whichever random numbers it uses;
they need not be secret.

A receiver trusts nothing: names, types, shapes and the number of bytes follow from the protocol,
and are compared before anything is unfolded, so that no message can grow beyond the study's own
arrays. Arrays are unfolded one by one, and their parts freed.

Out of scope: whether the entries are finite and the update is not too long, which
``common.records.weights.check_like`` looks at after decoding; the message around the body
(``common.messages.wire_format``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as serialize

from common.errors import StateError, UpdateError
from common.records.weights import Arrays
from common.study.protocol import MessageOptions

Parts = dict[str, dict[str, Any]]
"""The parts of a body by name: their ``dtype``, ``shape`` and ``data``, as the sender says."""

_SCALES: Final = "#scales"
_INDEX: Final = "#index"
_HEADER_BYTES: Final = 1024
"""More than the format's header takes for one array."""

_INDEX_BYTES: Final = 128
"""About what the format's header takes for the places of an array."""

_LARGEST: Final = 2.0**127
"""Of an entry to be rounded, so that what it is rounded to is a float32."""

_EXACT: Final = MessageOptions()
_SIZES: Final = {"F32": 4, "F16": 2, "I8": 1, "U32": 4}
_DTYPES: Final = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U32": "<u4"}
_CODES: Final = {"float32": "F32", "float16": "F16", "int8": "I8"}


class _Part(NamedTuple):
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return _SIZES[self.dtype] * math.prod(self.shape)


def encode(
    arrays: Mapping[str, NDArray[np.float32]],
    options: MessageOptions,
    *,
    rng: np.random.Generator | None = None,
    residual: Mapping[str, NDArray[np.float32]] | None = None,
) -> tuple[bytes, Arrays]:
    """Return the body that stands for ``arrays`` and the old ``residual``, and the new residual.

    The new residual has the names and shapes of ``arrays``, or is empty if ``top_share`` is 1. The
    body differs from call to call: who may be asked twice keeps it. ``rng`` decides the rounding;
    by default it is seeded by the operating system.

    Raises UpdateError (``update-not-finite``, ``update-name``) for arrays that have no code,
    StateError (``residual``) for a residual of other names or shapes.
    """
    rng = np.random.default_rng() if rng is None else rng
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    layout = _layout(shapes, options)
    _check_residual(residual or {}, shapes)
    body: dict[str, NDArray[Any]] = {}
    scales: list[float] = []
    kept: Arrays = {}
    for name in sorted(arrays):
        total = np.asarray(arrays[name], np.float32).ravel()
        if residual:
            with np.errstate(over="ignore"):  # found below
                total = total + np.asarray(residual[name], np.float32).ravel()
        _check_size(name, total, options)
        index = None
        if name + _INDEX in layout:
            (count,) = layout[name].shape
            largest = np.argpartition(np.abs(total), total.size - count)[total.size - count :]
            index = body[name + _INDEX] = np.sort(largest).astype("<u4")
        codes, scale = _coded(total if index is None else total[index], options.encoding, rng)
        body[name] = codes.reshape(layout[name].shape)
        scales.append(scale)
        if options.top_share < 1:
            left = total.copy()
            left[... if index is None else index] -= _restored(codes, scale)
            kept[name] = left.reshape(shapes[name])
    if _SCALES in layout:
        body[_SCALES] = np.array(scales, np.float32)
    return _body(body), kept


def plain(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the body that holds ``arrays`` bit by bit, as float32."""
    return _body({name: np.asarray(array, np.float32) for name, array in arrays.items()})


def encoded_bytes_limit(shapes: Mapping[str, tuple[int, ...]], options: MessageOptions) -> int:
    """Return how many bytes the body of an update of these ``shapes`` never passes."""
    layout = _layout(shapes, options)
    return _HEADER_BYTES + sum(part.nbytes + _HEADER_BYTES for part in layout.values())


def opened(
    body: bytes, shapes: Mapping[str, tuple[int, ...]] | None, options: MessageOptions = _EXACT
) -> Parts:
    """Return the parts of ``body``: all that ``restored`` needs, so that the body can be freed.

    Raises UpdateError (``update-size``, ``update-form``).
    """
    if shapes is not None and len(body) > encoded_bytes_limit(shapes, options):
        raise UpdateError("The arrays are larger than the study says.", code="update-size")
    try:
        return dict(deserialize(body))  # type: ignore[no-untyped-call]  # safetensors has no types
    except SafetensorError:
        raise UpdateError("The arrays cannot be decoded.", code="update-form") from None


def restored(
    parts: Parts, shapes: Mapping[str, tuple[int, ...]] | None, options: MessageOptions = _EXACT
) -> Arrays:
    """Return the arrays that ``parts`` stand for; empties ``parts`` to free memory.

    ``shapes`` gives name and shape of every array; without it, any that are plain float32 pass.
    Values may be anything that float32 can hold, also what is not finite. Raises UpdateError
    (``update-name``, ``update-dtype``, ``update-shape``, ``update-index``, ``update-scale``).
    """
    if shapes is None:
        shapes, options = {name: tuple(part["shape"]) for name, part in parts.items()}, _EXACT
    layout = _layout(shapes, options)
    for name in sorted(layout.keys() ^ parts.keys()):
        state = "is missing" if name in layout else "was not asked for"
        raise _refused(f"array {name[:200]!r} {state}", "name")
    for name, due in layout.items():
        dtype, shape = parts[name]["dtype"], tuple(parts[name]["shape"])
        if dtype != due.dtype:
            raise _refused(f"array {name[:200]!r} is {str(dtype)[:20]}, not {due.dtype}", "dtype")
        if shape != due.shape:
            raise _refused(f"array {name[:200]!r} has shape {shape}, not {due.shape}", "shape")
    scales = [1.0] * len(shapes)
    if _SCALES in layout:
        stored = _taken(parts, _SCALES)
        if not (np.isfinite(stored) & (stored > 0)).all():
            raise _refused("a scale is not a positive number", "scale")
        scales = stored.tolist()
    arrays: Arrays = {}
    for name, scale in zip(sorted(shapes), scales, strict=True):
        values = _restored(_taken(parts, name), scale)
        if name + _INDEX in layout:
            index, found = _taken(parts, name + _INDEX), values
            values = np.zeros(math.prod(shapes[name]), np.float32)
            if not (index[1:] > index[:-1]).all() or index[-1] >= values.size:
                raise _refused(f"the places in {name!r} do not rise or are outside it", "index")
            values[index] = found
        arrays[name] = values.reshape(shapes[name])
    return arrays


def decode(
    body: bytes, shapes: Mapping[str, tuple[int, ...]], options: MessageOptions = _EXACT
) -> Arrays:
    """Return the arrays of ``body`` as the receiver sees them; raise as opened and restored do."""
    return restored(opened(body, shapes, options), shapes, options)


def _layout(shapes: Mapping[str, tuple[int, ...]], options: MessageOptions) -> dict[str, _Part]:
    """Return every part of the body of an update of these ``shapes``: both sides compute it."""
    kind = _CODES[options.encoding]
    layout: dict[str, _Part] = {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        count = math.ceil(options.top_share * size)
        share_bytes = count * (_SIZES[kind] + _SIZES["U32"]) + _INDEX_BYTES
        if options.top_share < 1 and share_bytes < size * _SIZES[kind] and size <= 2**32:
            layout[name] = _Part(kind, (count,))
            layout[name + _INDEX] = _Part("U32", (count,))
        else:
            layout[name] = _Part(kind, tuple(shape))
    if shapes and options.encoding != "float32":
        layout[_SCALES] = _Part("F32", (len(shapes),))
    if options != _EXACT and any("#" in name for name in shapes):
        raise _refused("the name of an array holds '#', which stands for its parts", "name")
    return layout


def _body(parts: Mapping[str, NDArray[Any]]) -> bytes:
    return serialize({name: np.asarray(part, order="C") for name, part in parts.items()})


def _coded(
    values: NDArray[np.float32], encoding: str, rng: np.random.Generator
) -> tuple[NDArray[Any], float]:
    """Return the codes of flat ``values`` and their scale."""
    if encoding == "float32":
        return values, 1.0
    largest = float(np.abs(values).max(initial=0.0))
    scale = _int8_scale(largest) if encoding == "int8" else _float16_scale(largest)
    exact = values / np.float64(scale)
    if encoding == "int8":
        return _rounded(exact, rng).astype(np.int8), scale
    # A half has 11 bits, and none below 2**-24.
    unit = np.maximum(np.frexp(exact)[1], -13) - 11
    return np.ldexp(_rounded(np.ldexp(exact, -unit), rng), unit).astype(np.float16), scale


def _rounded(exact: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return whole numbers whose expectation is ``exact``."""
    below = np.floor(exact)
    below += rng.random(exact.shape) < exact - below
    return below


def _int8_scale(largest: float) -> float:
    """Return ``largest`` / 127, rounded up to 16 bits: its products with codes have 23."""
    if not largest:
        return 1.0
    unit = max(math.frexp(largest / 127)[1] - 16, -149)  # float32 has nothing below 2**-149
    return math.ldexp(math.ceil(math.ldexp(largest / 127, -unit)), unit)


def _float16_scale(largest: float) -> float:
    """Return a power of two that ``largest`` is less than 2**15 times of, and halves reach far.

    Not below 2**-125: the smallest half times that is the smallest float32.
    """
    return math.ldexp(1.0, max(math.frexp(largest)[1] - 15, -125)) if largest else 1.0


def _restored(codes: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """Return ``codes`` times ``scale``; float32 is its own code and is not copied."""
    if codes.dtype == np.float32:
        return codes
    values = codes.astype(np.float32)
    with np.errstate(all="ignore"):  # of a forged scale or half: whoever checks the values finds it
        values *= np.float32(scale)
    return values


def _taken(parts: Parts, name: str) -> NDArray[Any]:
    part = parts.pop(name)
    return np.frombuffer(part["data"], _DTYPES[part["dtype"]]).reshape(part["shape"])


def _check_size(name: str, total: NDArray[np.float32], options: MessageOptions) -> None:
    most = np.finfo(np.float32).max if options.encoding == "float32" else _LARGEST
    if not (np.abs(total) <= most).all():
        raise _refused(
            f"array {name!r} holds a value that is not finite or too large", "not-finite"
        )


def _check_residual(
    residual: Mapping[str, NDArray[np.float32]], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    if residual and {name: np.shape(value) for name, value in residual.items()} != shapes:
        raise StateError(
            "What was kept of earlier updates has other arrays than this update.",
            do="Remove the kept residual of this study; the next update goes without it.",
            code="residual",
        )


def _refused(reason: str, kind: str) -> UpdateError:
    return UpdateError(
        f"The update is refused: {reason}.",
        do="Check that both sides run the same version of gliofed and the same protocol.",
        code=f"update-{kind}",
    )
