"""The study protocol: everything that decides what a study does and what it costs, as frozen data.

A protocol is written as TOML by the coordinator, validated here in one pass (every unknown key and
every impossible value is named), and from then on lives as signed, canonical JSON. Sites compare
its digest with the one they approved; the code that a site runs is never part of it.

Out of scope: signing (``common.identity``) and the site's veto (``client.consent``).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from common.errors import ProtocolError

StudyId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{1,62}$")]
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
PROTOCOL: Final = "study-protocol"
"""Kind of the signed statement that holds a protocol."""

APPROVAL: Final = "study-approval"
"""Kind of the signed statement by which a hospital approves a protocol."""

RELEASE: Final = "model-release"
"""Kind of the signed statement that names the files of a released model."""

PREPROCESSING_ALGORITHM: Final = "brain-zscore/1"
"""Version of ``client.imaging.preprocessing``: changes whenever its output does."""

Reportable = Literal["dice", "case_count", "privacy_spent"]
Crop = Annotated[int, Field(ge=8, le=512)]
Trainable = Literal["all", "norms", "head", "last_decoder"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkOptions(_Frozen):
    """Which network of ``common.networks`` and its size."""

    name: Literal["segresnet"] = "segresnet"
    filters: int = Field(default=8, ge=8, le=64, multiple_of=8)
    blocks_down: tuple[int, ...] = (1, 2, 2, 4)
    blocks_up: tuple[int, ...] = (1, 1, 1)

    @model_validator(mode="after")
    def _levels(self) -> NetworkOptions:
        if len(self.blocks_up) != len(self.blocks_down) - 1 or len(self.blocks_down) < 2:
            raise ValueError("blocks_up must be one shorter than blocks_down, and both not empty")
        if any(not 1 <= n <= 8 for n in (*self.blocks_down, *self.blocks_up)):
            raise ValueError("each level has 1 to 8 blocks")
        return self


class PreprocessingOptions(_Frozen):
    """How a case becomes the network's input; hashed into every release."""

    spacing_mm: float = Field(default=1.0, ge=0.5, le=6.0)
    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    margin_mm: float = Field(default=4.0, ge=0.0, le=30.0)

    @model_validator(mode="after")
    def _percentiles(self) -> PreprocessingOptions:
        low, high = self.clip_percentiles
        if not 0 <= low < high <= 100:
            raise ValueError("clip_percentiles must be two rising numbers between 0 and 100")
        return self


class TrainingOptions(_Frozen):
    """What a site does between two messages."""

    local_steps: int = Field(ge=1, le=10_000)
    crop_size: tuple[Crop, Crop, Crop] = (64, 64, 64)
    crops_per_patient: int = Field(default=2, ge=1, le=16)
    foreground_probability: float = Field(default=0.66, ge=0, le=1)
    augmentation: Literal["none", "light"] = "light"
    loss: Literal["dice_bce"] = "dice_bce"
    optimizer: Literal["sgd", "adam"] = "adam"
    learning_rate: float = Field(gt=0, le=10)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    trainable: tuple[Trainable, ...] = ("all",)
    patients_per_step: int = Field(default=4, ge=1, le=1024)
    """Batch of a study without privacy; with privacy the batch is drawn by ``sampling_rate``."""

    @model_validator(mode="after")
    def _subset(self) -> TrainingOptions:
        if not self.trainable:
            raise ValueError("trainable names at least one group of parameters")
        if "all" in self.trainable and len(self.trainable) > 1:
            raise ValueError("trainable is either all, or a list of groups")
        return self


class AggregationOptions(_Frozen):
    """How the coordinator combines the sites' updates, and when a round counts."""

    rule: Literal["fedavg"] = "fedavg"
    weights: dict[SiteName, Annotated[float, Field(gt=0, le=1e6)]] = Field(default_factory=dict)
    """Public weight of a site; 1 for each site that is not named. Never taken from a reply."""
    quorum: int = Field(ge=1)
    deadline_s: float = Field(default=3600.0, gt=0)
    max_update_norm: float = Field(default=1e3, gt=0)
    """A reply whose L2 norm is above it is refused."""


class PrivacyOptions(_Frozen):
    """The least privacy that the study grants each patient.

    Unit: the patient. Adjacency: add or remove one patient. A step clips each drawn patient's
    gradient to ``clipping_norm``, adds Gaussian noise of standard deviation ``noise_multiplier *
    clipping_norm`` to the sum and divides by ``sampling_rate * nominal_patients``, a public
    constant, so that the true number of patients does not show.
    """

    mode: Literal["patient-dp", "none"] = "patient-dp"
    noise_multiplier: float = Field(default=1.0, gt=0, le=1e4)
    clipping_norm: float = Field(default=1.0, gt=0)
    sampling_rate: float = Field(default=0.1, gt=0, le=1)
    nominal_patients: int = Field(default=100, ge=1)
    delta: float = Field(default=1e-3, gt=0, lt=0.1)
    max_epsilon: float = Field(default=10.0, gt=0, le=1000)


class StudyProtocol(_Frozen):
    """One study. See ``deploy/demo/protocol.toml`` for a commented example."""

    study: StudyId
    title: str = Field(min_length=1, max_length=200)
    expires: dt.date
    rounds: int = Field(ge=1, le=10_000)
    seed: int = Field(default=0, ge=0, lt=2**31)
    network: NetworkOptions = NetworkOptions()
    preprocessing: PreprocessingOptions = PreprocessingOptions()
    preprocessing_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Filled in when the protocol is published; a site whose own digest differs refuses."""
    training: TrainingOptions
    aggregation: AggregationOptions
    privacy: PrivacyOptions
    reports: tuple[Reportable, ...] = ("dice", "case_count", "privacy_spent")
    """What sites may report beside weights; each site may allow less."""
    evaluate_every: int = Field(default=1, ge=1)
    """Rounds between two evaluations on the sites' validation patients; the last always is."""

    @field_validator("reports")
    @classmethod
    def _once(cls, value: tuple[Reportable, ...]) -> tuple[Reportable, ...]:
        return tuple(dict.fromkeys(value))

    def canonical(self) -> bytes:
        """Return the protocol as canonical JSON: sorted keys, no spaces, UTF-8."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")
        ).encode()

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, as hex."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @property
    def private(self) -> bool:
        return self.privacy.mode == "patient-dp"


def preprocessing_digest(options: PreprocessingOptions, algorithm: str) -> str:
    """Return the digest that ties a model to its preprocessing: options and algorithm version."""
    text = json.dumps({"algorithm": algorithm, **options.model_dump(mode="json")}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_protocol(data: dict[str, Any], *, source: str) -> StudyProtocol:
    """Validate ``data``; raise ProtocolError that names every wrong key and value at once."""
    try:
        return StudyProtocol.model_validate(data)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in item['loc']) or 'protocol'}: {_wrong(item)}"
            for item in error.errors()
        ]
        raise ProtocolError(
            f"{source} is not a valid study protocol ({len(lines)} problems):\n" + "\n".join(lines),
            do="\nCorrect each line named above and publish again.",
        ) from None


def _wrong(item: Any) -> str:
    """Return what is wrong with a key, in words that do not need pydantic."""
    if item["type"] == "extra_forbidden":
        return "unknown key"
    if item["type"] == "missing":
        return "is missing"
    if isinstance(item["input"], str | int | float):
        return f"{item['msg']}; given is {str(item['input'])[:60]!r}"
    return str(item["msg"])


def read_protocol(path: Path) -> StudyProtocol:
    """Read and validate a protocol in TOML; raise ProtocolError."""
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except OSError as error:
        raise ProtocolError(
            f"Cannot read {path}: {error.strerror}.", do="Check the path."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"{path} is not TOML: {error}.", do="Correct that line.") from None
    return parse_protocol(data, source=str(path))
