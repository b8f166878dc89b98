"""What a request and its answer are: tensors, their checks, and what ModelMetadata says of them.

A request has FP32 volumes (X, Y, Z) named after their sequences, each on its own grid, and the
affines (FP64, 4 x 4, voxel to RAS millimetres) of those grids: ``affine`` for all, or
``affine_t1c`` for one. The answer's ``result`` is what ``result.json`` says, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as words

from client.clinic.ood import Familiarity
from client.clinic.result_folder import Origin, Segmentation
from client.imaging.case import Case, Image
from client.imaging.limits import MOST_VOXELS
from client.imaging.nifti import Volume, checked
from common.errors import CaseError, FederationError
from common.regions import MODALITIES

PLATFORM: Final = "gliofed"
AFFINE: Final = "affine"
BRAIN: Final = "brain_"
VOLUMES: Final = ("NCR", "ED", "ET", "TC", "WT")
CASE: Final = "request"
ERROR: Final = "gliofed-error-bin"
"""Trailing metadata of an answer: message, do and code of a refusal, as JSON."""
_TYPES: Final[Mapping[str, str]] = {"FP32": "<f4", "FP64": "<f8", "UINT8": "|u1"}
_READ: Final = "ModelMetadata and the README list the inputs."

INPUTS: Final = (
    *((name, "FP32", (-1, -1, -1)) for name in MODALITIES),
    (AFFINE, "FP64", (4, 4)),
    *((f"{AFFINE}_{name}", "FP64", (4, 4)) for name in MODALITIES),
)
OUTPUTS: Final = (
    ("segmentation", "UINT8", (-1, -1, -1)),
    ("uncertainty", "FP32", (-1, -1, -1)),
    ("affine", "FP64", (4, 4)),
    ("volumes_ml", "FP64", (len(VOLUMES),)),
    ("result", "BYTES", (1,)),
    *((f"{BRAIN}{name}", "FP32", (-1, -1, -1)) for name in ("t2f", "t1c")),
)


@dataclass(frozen=True)
class Asked:
    """A request that was checked. ``outputs`` is empty where all are wanted."""

    case: Case
    read: Mapping[str, Volume]
    inputs_sha256: Mapping[str, str]
    outputs: tuple[str, ...]


def metadata(name: str, version: str) -> words.ModelMetadataResponse:
    """Return what ModelMetadata says of the model."""
    tensor = words.ModelMetadataResponse.TensorMetadata
    return words.ModelMetadataResponse(
        name=name,
        versions=[version],
        platform=PLATFORM,
        inputs=[tensor(name=n, datatype=d, shape=s) for n, d, s in INPUTS],
        outputs=[tensor(name=n, datatype=d, shape=s) for n, d, s in OUTPUTS],
    )


def asked(request: words.ModelInferRequest) -> Asked:
    """Check a request; raise CaseError, code ``request`` or as the reader of a file does."""
    known = {name: (kind, shape) for name, kind, shape in INPUTS}
    if len(request.raw_input_contents) != len(request.inputs):
        raise _refused("The request's tensors are not all in raw_input_contents.")
    arrays: dict[str, NDArray[Any]] = {}
    sums: dict[str, str] = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.name not in known or tensor.name in arrays:
            raise _refused(f"The input {tensor.name[:40]!r} is not known, or given twice.")
        kind, shape = known[tensor.name]
        fits = len(tensor.shape) == len(shape) and all(
            have > 0 and want in (-1, have) for have, want in zip(tensor.shape, shape, strict=True)
        )
        if tensor.datatype != kind or not fits:
            raise _refused(
                f"The input {tensor.name} is {tensor.datatype[:10]} of shape "
                f"{'x'.join(map(str, list(tensor.shape)[:8]))}, not {kind} of "
                f"{'4x4' if shape == (4, 4) else 'three axes'}."
            )
        arrays[tensor.name] = _array(tensor.name, kind, tensor.shape, raw)
        sums[tensor.name] = hashlib.sha256(raw).hexdigest()
    names = [name for name in MODALITIES if name in arrays]
    if not {"t1c", "t2f"} & set(names):
        raise _refused("The request has neither t1c nor t2f; one of them is needed.")
    read: dict[str, Volume] = {}
    for name in names:
        affine = arrays.get(f"{AFFINE}_{name}", arrays.get(AFFINE))
        if affine is None:
            raise _refused(f"The request does not say where {name} lies: its affine is missing.")
        read[name] = checked(Path(name), arrays[name], affine)
    wanted = tuple(one.name for one in request.outputs)
    if unknown := set(wanted) - {name for name, _, _ in OUTPUTS}:
        raise _refused(f"The output {min(unknown)[:40]!r} is not known.")
    case = Case(CASE, "", {name: Image(Path(name)) for name in names}, None, {})
    return Asked(case, read, {name: sums[name] for name in names}, wanted)


def request_of(
    read: Mapping[str, Volume], *, model: str = "", identity: str = ""
) -> words.ModelInferRequest:
    """Return the request for volumes by sequence; without ``model`` for whichever is active."""
    request = words.ModelInferRequest(model_name=model, id=identity)
    for name, volume in read.items():
        _add(request.inputs, request.raw_input_contents, name, "FP32", volume.data)
        where = f"{AFFINE}_{name}"
        _add(request.inputs, request.raw_input_contents, where, "FP64", volume.affine)
    return request


def answer(
    found: Segmentation,
    result: Mapping[str, Any],
    *,
    request: words.ModelInferRequest,
    wanted: Sequence[str],
) -> words.ModelInferResponse:
    """Return the answer; its model and version are those that computed it."""
    model = result["model"]
    response = words.ModelInferResponse(
        model_name=model["name"], model_version=model["version"], id=request.id
    )
    text = json.dumps(result, sort_keys=True).encode()
    arrays: dict[str, NDArray[Any] | bytes | None] = {
        "segmentation": found.labels,
        "uncertainty": found.uncertainty,
        "affine": found.affine,
        "volumes_ml": np.array([result["volumes_ml"][name] for name in VOLUMES]),
        "result": text,
        **{f"{BRAIN}{name}": data for name, data in (found.brain or {}).items()},
    }
    for name, kind, _ in OUTPUTS:
        value = arrays.get(name)
        if value is not None and (not wanted or name in wanted):
            _add(response.outputs, response.raw_output_contents, name, kind, value)
    return response


def answered(response: words.ModelInferResponse) -> tuple[Segmentation, Origin]:
    """Read an answer; raise FederationError where it is none of ours."""
    try:
        arrays: dict[str, NDArray[Any]] = {}
        result: dict[str, Any] = {}
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            if tensor.datatype == "BYTES":
                (length,) = struct.unpack_from("<I", raw)
                result = json.loads(raw[4 : 4 + length])
            else:
                arrays[tensor.name] = _array(tensor.name, tensor.datatype, tensor.shape, raw)
        brain = {n.removeprefix(BRAIN): a for n, a in arrays.items() if n.startswith(BRAIN)}
        found = Segmentation(
            arrays["segmentation"],
            arrays["affine"],
            tuple(result["preparation"]),
            result["prepared_sha256"],
            brain or None,
            arrays["uncertainty"],
            {name: (low, high) for name, (low, high) in result["range_ml"].items()},
            result["confidence"],
            familiarity=None
            if result.get("familiarity") is None
            else Familiarity.model_validate(result["familiarity"]),
        )
        return found, Origin(
            result["model"],
            result["federation"],
            result["together_with"],
            result["postprocessing"],
            result["precision"],
            result["calibrated"],
            trusted=True,
            device=result.get("device"),
            layout=result.get("layout"),
            threads=result.get("threads"),
        )
    except (CaseError, KeyError, TypeError, ValueError, struct.error) as error:
        raise FederationError(
            f"The service's answer is none of this version ({type(error).__name__}).",
            do="Install the same version of gliofed here and at the service.",
            code="service-answer",
        ) from error


def _array(name: str, kind: str, shape: Sequence[int], raw: bytes) -> NDArray[Any]:
    dtype, count = np.dtype(_TYPES[kind]), math.prod(shape)
    if count > MOST_VOXELS:
        raise _refused(f"The input {name} has {count} voxels, more than {MOST_VOXELS}.")
    if len(raw) != count * dtype.itemsize:
        raise _refused(
            f"The input {name} has {len(raw)} bytes; its shape and type need "
            f"{count * dtype.itemsize}."
        )
    return np.frombuffer(raw, dtype).reshape(tuple(shape))


def _add(tensors: Any, contents: Any, name: str, kind: str, value: NDArray[Any] | bytes) -> None:
    tensor = tensors.add(name=name, datatype=kind)
    if isinstance(value, bytes):
        tensor.shape.append(1)
        contents.append(struct.pack("<I", len(value)) + value)
        return
    tensor.shape.extend(value.shape)
    contents.append(np.ascontiguousarray(value, _TYPES[kind]).tobytes())


def _refused(what: str) -> CaseError:
    return CaseError(what, do=_READ, code="request")
