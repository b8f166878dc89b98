"""Named arrays: a model's weights or an update of them, with digest, file and checks. numpy only.

Invariants: arrays are float32; the same arrays and metadata give the same bytes on every machine;
a file appears complete or not at all; nothing is trusted because of where it came from.

Out of scope: which names and shapes a network has (``common.networks``), signing
(``common.identity``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from common.errors import ModelError, UpdateError
from common.files import write_bytes

Arrays = dict[str, NDArray[np.float32]]

_METADATA_KEY: Final = "gliofed"
_STORED: Final = (np.dtype(np.float32), np.dtype(np.float16))


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
    """Read the arrays of ``path``; half precision is widened to float32.

    Raises ModelError when the file is missing, damaged or holds another kind of number.
    """
    try:
        stored = from_safetensors(path.read_bytes())
    except OSError as error:
        raise ModelError(
            f"Cannot read the weights {path}: {error.strerror}.",
            do="Check the path.",
            code="model-file",
        ) from None
    except SafetensorError as error:
        raise _damaged(path, str(error)) from None
    except KeyError as error:  # a kind of number that numpy does not have
        raise _damaged(path, f"an array is stored as {error}") from None
    arrays: Arrays = {}
    for name, array in stored.items():
        if array.dtype not in _STORED:
            raise _damaged(path, f"array {name} is {array.dtype}, not float32 or float16")
        arrays[name] = array.astype(np.float32)
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


def _damaged(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"The weights {path} are damaged: {reason}.",
        do="Fetch the file again from where it was published.",
        code="model-damaged",
    )
