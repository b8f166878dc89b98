"""What ``result.json`` says, field by field: the source of ``result.schema.json``.

``RESULT_VERSION`` rises when a field changes its meaning or goes; new fields leave it, and have a
default here, so that older results of the same version can be read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.clinic.lesion_measurements import Findings
from client.clinic.ood import Familiarity
from client.clinic.rano_response import Before, Change
from client.clinic.review_outcome import Review
from client.clinic.sequence_importance import Explained
from client.clinic.stage_times import Spent, Stage
from common.errors import StateError
from common.records.regular_files import read_regular

RESULT_VERSION: Final = 1
MOST_RESULT_BYTES: Final = 2**26

Millilitres = Annotated[float, Field(ge=0)]
Millimetres = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Sequence = Literal["t1n", "t1c", "t2w", "t2f"]
Region = Literal["WT", "TC", "ET"]
Side = Literal["left", "right", "midline", "both"]
Device = Literal["cpu", "cuda", "mps"]
Layout = Literal["channels last", "channels first"]
World = tuple[float, float, float]

DEVICE_NAMES: Final[Mapping[str, str]] = {
    "cpu": "the CPU",
    "cuda": "a CUDA GPU",
    "mps": "Apple's GPU",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Identity(_Part):
    """The model that predicted."""

    name: str
    version: str
    round: int
    weights_sha256: Sha256
    preprocessing_sha256: Sha256


class Input(_Part):
    """One sequence, as it was read; ``sha256`` is of its content."""

    file: str
    channel: int | None
    series: str | None
    sha256: Sha256


class Measured(_Part):
    """A lesion: 26-connected, at least 50 mm3. Ends are in mm of the world (RAS)."""

    volume_ml: Millilitres
    side: Side | None
    measurable: bool
    long_mm: Millimetres
    across_mm: Millimetres
    product_mm2: Annotated[float, Field(ge=0)]
    slice: Annotated[int, Field(ge=1, description="axial, counted from the feet, from 1")]
    slices: Annotated[int, Field(ge=1)]
    long_ends: tuple[World, World]
    across_ends: tuple[World, World]


class Lesions(_Part):
    """``of`` is the region that was measured: ET, or WT where nothing enhances."""

    of: Literal["ET", "WT"]
    count: Annotated[int, Field(ge=0)]
    side: Side | None
    sum_of_products_mm2: Annotated[float, Field(ge=0)]
    lesions: tuple[Measured, ...]


class Plane(_Part):
    """The midline: ``normal`` . world = ``offset_mm``; the normal points to the right (RAS)."""

    normal: World
    offset_mm: float


class TrainedAt(_Part):
    """What one site gave: rounds it took part in, and what its patients' privacy cost there."""

    site: str
    rounds: Annotated[int, Field(ge=0)]
    epsilon: Annotated[float, Field(ge=0)] | None
    delta: Annotated[float, Field(ge=0)] | None


class Federation(_Part):
    """From the model's signed card."""

    consortium: str
    private: bool
    privacy_unit: str
    intended_use: str
    sites: tuple[TrainedAt, ...]


class Result(_Part):
    """A segmentation's result: research use only, reviewed by a person or not."""

    result_version: Literal[1]
    case: str = Field("", description="the folder or file that was given")
    source: str = Field("", description="where that lay, for the review; it stays in the hospital")
    study_date: str | None = Field(None, description="of a DICOM study, YYYY-MM-DD")
    made: str = Field("", description="when it was segmented, ISO 8601")
    volumes_ml: dict[Literal["NCR", "ED", "ET", "TC", "WT"], Millilitres]
    range_ml: dict[Region, tuple[Millilitres, Millilitres]]
    missing: tuple[Sequence, ...]
    grid_of: Sequence
    confidence: dict[Region, Share]
    calibrated: bool
    explanation: Explained | None = Field(
        None, description="what each sequence mattered; None where it was not asked for"
    )
    familiarity: Familiarity | None = Field(
        None, description="whether the scan is unlike what the model learnt from"
    )
    findings: Lesions | None = None
    midline: Plane | None = Field(None, description="what sides were told by")
    change: Change | None = None
    review: Review | None = Field(None, description="None: nobody has reviewed the mask")
    model: Identity
    together_with: tuple[Identity, ...]
    federation: Federation | None = None
    postprocessing: dict[str, Any]
    precision: str = Field(description="in which the network predicted: float32 or bfloat16")
    device: Device | None = Field(None, description="on which; None: an older gliofed did not say")
    layout: Layout | None = Field(None, description="how the volumes lay in memory")
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="CPU threads that it computed with"
    )
    inputs: dict[Sequence, Input]
    preparation: tuple[dict[str, Any], ...]
    prepared_sha256: str
    dicom: dict[str, str] = Field({}, description="DICOM objects: SOPInstanceUID by file's name")
    outputs: dict[str, Sha256] = Field({}, description="every other file of the result, by name")
    software: dict[str, str] = Field({}, description="versions that the result depends on")
    warnings: tuple[str, ...]
    stages: dict[Stage, Spent] = Field({}, description="what each stage of the work took")
    seconds: Annotated[float, Field(ge=0)]


def schema() -> dict[str, Any]:
    """Return the JSON Schema of ``result.json``."""
    body = Result.model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"gliofed-result-{RESULT_VERSION}",
        **body,
    }


def federation_json(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``result.json`` says of who trained a model, from its card."""
    spent: Mapping[str, Any] = card.get("privacy_spent") or {}
    rounds: Mapping[str, int] = card.get("rounds_per_site") or {}
    return {
        "consortium": str(card.get("consortium", "")),
        "private": bool(card.get("private")),
        "privacy_unit": str(card.get("privacy_unit", "")),
        "intended_use": str(card.get("intended_use", "")),
        "sites": [
            {
                "site": str(site),
                "rounds": int(rounds.get(site, 0)),
                "epsilon": spent[site]["epsilon"] if site in spent else None,
                "delta": spent[site]["delta"] if site in spent else None,
            }
            for site in card.get("sites", ())
        ],
    }


def computed(result: Result) -> str:
    """Return in words how the mask was computed, as far as the result says it."""
    if result.device is None:
        return f"Computed in {result.precision}."
    said = f"Computed on {DEVICE_NAMES[result.device]} in {result.precision}"
    if result.layout is not None:
        said += f", {result.layout}"
    if result.threads is not None:
        said += f", {result.threads} CPU {'thread' if result.threads == 1 else 'threads'}"
    return f"{said}."


def findings_json(found: Findings) -> dict[str, Any]:
    """Return findings as ``result.json`` holds them."""
    lesions = [
        {
            "volume_ml": round(one.volume_ml, 3),
            "side": one.side,
            "measurable": one.measurable,
            "long_mm": round(one.diameters.long_mm, 1),
            "across_mm": round(one.diameters.across_mm, 1),
            "product_mm2": round(one.diameters.product_mm2, 1),
            "slice": one.diameters.slice,
            "slices": one.diameters.count,
            "long_ends": [list(end) for end in one.diameters.long_ends],
            "across_ends": [list(end) for end in one.diameters.across_ends],
        }
        for one in found.lesions
    ]
    return {
        "of": found.of,
        "count": len(found.lesions),
        "side": found.side,
        "sum_of_products_mm2": round(found.sum_of_products_mm2, 1),
        "lesions": lesions,
    }


def read_prior(folder: Path) -> Before:
    """Return what the result in ``folder``, or a review of one, measured.

    Raises StateError if it holds none, or one of another version or without what it must say.
    """
    found = read_result(
        folder,
        do="Give --prior the folder that an earlier `gliofed-clinic segment` wrote.",
        code="prior",
    )
    measured = found.findings
    return Before(
        folder=folder.resolve().name,
        case=found.case,
        date=found.study_date or found.made[:10],
        volumes_ml={str(name): value for name, value in found.volumes_ml.items()},
        range_ml={str(name): ends for name, ends in found.range_ml.items()},
        lesions=None if measured is None else measured.count,
        of=None if measured is None else measured.of,
        sum_of_products_mm2=None if measured is None else measured.sum_of_products_mm2,
        model_sha256=found.model.weights_sha256,
    )


def read_result(folder: Path, *, do: str, code: str) -> Result:
    """Return what ``result.json`` in ``folder`` says; ``do`` is what to do where that fails.

    Raises StateError (``code``) if there is none, or one that this version cannot read.
    """
    path = folder / "result.json"
    try:
        return Result.model_validate(json.loads(read_regular(path, most_bytes=MOST_RESULT_BYTES)))
    except FileNotFoundError:
        raise StateError(f"{folder} holds no result.json.", do=do, code=code) from None
    except OSError as error:
        raise StateError(f"Cannot read {path}: {error.strerror}.", do=do, code=code) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StateError(
            f"{path} is not a result that this gliofed knows: {place}: {first['msg']}.",
            do=do,
            code=code,
        ) from None
    except ValueError as error:
        raise StateError(f"{path} is damaged: {error}.", do=do, code=code) from error
