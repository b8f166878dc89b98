"""Named arrays: a model's weights or an update of them, with digest, file and checks. numpy only.

Invariants: arrays are float32; the same arrays and metadata give the same bytes on every machine;
a file appears complete or not at all; nothing is trusted because of where it came from.

Floating point of 16, 32 and 64 bits is read, bfloat16 too, and becomes float32. A digest is of what
was read, not of the file's bytes: a file in bfloat16 and its conversion have the same.

Out of scope: which names and shapes a network has (``common.study.network_shapes``), weights that a
person hands in (``common.study.starting_weights``), signing (``common.trust.identity``).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save as to_safetensors

from common.errors import ModelError, UpdateError
from common.records.atomic_files import write_bytes
from common.records.regular_files import read_regular

Arrays = dict[str, NDArray[np.float32]]

_METADATA_KEY: Final = "gliofed"
_LENGTH: Final = 8
"""Bytes at the start of a safetensors file that say how long its header is."""

_MOST_BYTES: Final = 2**32
"""In a file of weights: a thousand million parameters in float32."""

_COUNTER: Final = "num_batches_tracked"
"""Ends the name of the number of batches that torch's batch norm has seen: no weight."""


def _bfloat16(data: bytes) -> NDArray[np.float32]:
    """Widen bfloat16, which is the upper half of a float32."""
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")


_FLOATS: Final[Mapping[str, Callable[[bytes], NDArray[Any]]]] = {
    "F16": lambda data: np.frombuffer(data, "<f2"),
    "BF16": _bfloat16,
    "F32": lambda data: np.frombuffer(data, "<f4"),
    "F64": lambda data: np.frombuffer(data, "<f8"),
}
"""How the numbers of a kind, by safetensors' name for it, are read."""


def digest(arrays: Mapping[str, NDArray[np.float32]]) -> str:
    """Return the SHA-256, as hex, over sorted names, dtypes, shapes and little-endian bytes."""
    whole = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        stored = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        header = json.dumps([name, stored.dtype.str, list(array.shape), stored.nbytes])
        whole.update(len(header.encode()).to_bytes(8, "little"))
        whole.update(header.encode())
        whole.update(stored.tobytes())
    return whole.hexdigest()


def norm(arrays: Mapping[str, NDArray[np.float32]]) -> float:
    """Return the L2 norm over all arrays, accumulated in float64."""
    squares = (np.asarray(array, np.float64).ravel() for array in arrays.values())
    return math.sqrt(math.fsum(float(values @ values) for values in squares))


def save(
    path: Path,
    arrays: Mapping[str, NDArray[np.float32]],
    metadata: Mapping[str, str],
    *,
    half: bool = False,
) -> None:
    """Write ``arrays`` and ``metadata`` as safetensors, atomically and in reproducible bytes.

    ``half`` stores half precision, for starting weights that ship as a small file.

    Raises StateError when the disk is full or the folder cannot be written.
    """
    # safetensors keeps metadata in an unordered map; one key makes its order ours.
    text = json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"))
    data = to_safetensors(
        {
            name: np.asarray(array, np.float16 if half else array.dtype, order="C")
            for name, array in arrays.items()
        },
        metadata={_METADATA_KEY: text},
    )
    write_bytes(path, data)


def load(path: Path) -> Arrays:
    """Read the arrays of ``path`` as float32; counters of batch norm are left out.

    What is too large for float32 becomes infinite.

    Raises ModelError: ``model-file`` if it cannot be read, ``model-format`` if it is of another
    format, ``model-damaged`` if it is not whole, ``model-dtype`` if it holds other numbers.
    """
    try:
        data = read_regular(path, most_bytes=_MOST_BYTES)
    except OSError as error:
        raise ModelError(
            f"Cannot read the weights {path}: {error.strerror}.",
            do="Check the path.",
            code="model-file",
        ) from None
    try:
        stored = deserialize(data)  # type: ignore[no-untyped-call]  # of a compiled module
    except SafetensorError as error:
        raise _unreadable(path, data, str(error)) from None
    arrays: Arrays = {}
    for name, about in stored:
        kind = str(about["dtype"])
        if kind in _FLOATS:
            with np.errstate(over="ignore"):
                values = _FLOATS[kind](about["data"]).astype(np.float32)
            arrays[name] = values.reshape(about["shape"])
        elif not is_counter(name):
            raise ModelError(
                f"The array {name} in {path} holds {kind}, which is no kind of number for weights.",
                do="Store it as float32, float16, bfloat16 or float64, or leave it out.",
                code="model-dtype",
            )
    return arrays


def load_metadata(path: Path) -> dict[str, str]:
    """Read the metadata that ``save`` wrote; raise ModelError when the file is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            stored = (file.metadata() or {}).get(_METADATA_KEY, "{}")
        metadata = json.loads(stored)
        if not isinstance(metadata, dict):
            raise ValueError("the metadata is not a table")
        return {str(key): str(value) for key, value in metadata.items()}
    except OSError as error:
        raise ModelError(
            f"Cannot read the weights {path}: {error}.", do="Check the path.", code="model-file"
        ) from None
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, str(error)) from None


def check_like(
    arrays: Mapping[str, NDArray[np.float32]],
    template: Mapping[str, tuple[int, ...]],
    *,
    max_norm: float,
) -> None:
    """Check that ``arrays`` are finite float32 of the names and shapes in ``template``.

    Raises UpdateError, coded ``update-name``, ``update-dtype``, ``update-shape``,
    ``update-not-finite`` or, when the L2 norm over all arrays passes ``max_norm``,
    ``update-norm``.
    """
    for name in sorted(template.keys() ^ arrays.keys()):
        state = "is missing" if name in template else "was not asked for"
        raise _refused(f"array {name!r} {state}", "name")
    largest = ("", 0.0)
    for name in sorted(template):
        array = arrays[name]
        if array.dtype != np.float32:
            raise _refused(f"array {name!r} is {array.dtype}, not float32", "dtype")
        if array.shape != tuple(template[name]):
            raise _refused(
                f"array {name!r} has shape {array.shape}, not {tuple(template[name])}", "shape"
            )
        if not np.isfinite(array).all():
            raise _refused(f"array {name!r} holds a value that is not finite", "not-finite")
        largest = max(largest, (name, norm({name: array})), key=lambda item: item[1])
    length = norm(arrays)
    if not length <= max_norm:
        raise _refused(
            f"the L2 norm is {length:.4g}, above {max_norm:.4g}; "
            f"the largest part is array {largest[0]!r} with {largest[1]:.4g}",
            "norm",
        )


def _refused(reason: str, kind: str) -> UpdateError:
    return UpdateError(
        f"The update is refused: {reason}.",
        do="Check that both sides run the same version of gliofed and the same protocol.",
        code=f"update-{kind}",
    )


def _unreadable(path: Path, data: bytes, reason: str) -> ModelError:
    """Return what is to be said of a file that is no whole safetensors.

    Its first bytes are a length, then comes a JSON object.
    """
    if len(data) <= _LENGTH or is_safetensors(data):
        return _damaged(path, reason)
    if is_torch(io.BytesIO(data)):
        return ModelError(
            f"{path} is a file of PyTorch, which may hold code; weights are read as safetensors.",
            do="`gliofed-site convert-weights FILE --out FILE.safetensors` converts it, at any "
            "machine with gliofed's site extra.",
            code="model-format",
        )
    return ModelError(
        f"{path} is no safetensors file.",
        do="Weights are read as safetensors; `gliofed-site convert-weights` makes them from a "
        "PyTorch file.",
        code="model-format",
    )


def is_counter(name: str) -> bool:
    """Return whether an array of this name counts batches, and is no weight."""
    return name.rpartition(".")[2] == _COUNTER


def is_safetensors(head: bytes) -> bool:
    """Return whether a file that begins so says that it is safetensors; it may be damaged."""
    return head[_LENGTH : _LENGTH + 1] == b"{"


def is_torch(file: BinaryIO) -> bool:
    """Return whether a file is one of PyTorch: a pickle, or a zip file with one."""
    head = file.read(4)
    if head != b"PK\x03\x04":
        return head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())
    except zipfile.BadZipFile:
        return True  # cut short


def _damaged(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"The weights {path} are damaged: {reason}.",
        do="Fetch the file again from where it was published.",
        code="model-damaged",
    )
