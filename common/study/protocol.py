"""The study protocol: everything that decides what a study does and what it costs, as frozen data.

A protocol is written as TOML by the coordinator, validated here in one pass (every unknown key and
every impossible value is named), and from then on lives as signed, canonical JSON. Sites compare
its digest with the one they approved; the code that a site runs is never part of it.

Out of scope: signing (``common.trust.identity``) and the site's veto (``client.study.consent``).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from common.errors import ProtocolError
from common.study.aggregation_options import ADAPTIVE, MOMENTUM, AggregationOptions
from common.study.cohort_histograms import StatisticsOptions
from common.study.segmentation_options import PostprocessingOptions, PredictionOptions

StudyId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{1,62}$")]
PROTOCOL: Final = "study-protocol"
"""Kind of the signed statement that holds a protocol."""

APPROVAL: Final = "study-approval"
"""Kind of the signed statement by which a hospital approves a protocol."""

RELEASE: Final = "model-release"
"""Kind of the signed statement that names the files of a released model."""

PREPROCESSING_ALGORITHMS: Final = {"brats": "brain-zscore/1", "raw": "raw-n4-rigid-brain-zscore/2"}
"""Steps of ``client.imaging.preprocessing`` for each kind of input. Raise the version whenever any
result changes."""

_LATER: Final = frozenset({"supersedes", "initial_sha256"})
"""Keys that the first form of a protocol did not have."""

Reportable = Literal["dice", "case_count", "privacy_spent", "withdrawals"]
Crop = Annotated[int, Field(ge=8, le=512)]
NetworkName = Literal["segresnet", "segresnet_mingru", "dynunet", "unet"]
NetworkSize = Literal["tiny", "small", "base"]
Group = Literal["norms", "head", "last_decoder", "recurrent"]
Trainable = Literal["all", "low_rank"] | Group


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkOptions(_Frozen):
    """Which network of ``client.networks``, and how large."""

    name: NetworkName = "segresnet"
    size: NetworkSize = "small"
    """About 0.1, 1 and 5 million parameters. Under privacy noise grows with the root of it."""
    deep_supervision: bool = False
    """Whether coarser levels are trained towards the labels too."""

    @model_validator(mode="after")
    def _heads(self) -> NetworkOptions:
        if self.deep_supervision and self.name == "unet":
            raise ValueError("unet has no heads for deep_supervision")
        return self


class PreprocessingOptions(_Frozen):
    """How a case becomes the network's input; hashed into every release."""

    input: Literal["brats", "raw"] = "brats"
    """What every site and clinic hands in: sequences that are co-registered and skull-stripped, as
    BraTS distributes them, or as the scanner wrote them. Raw input is corrected for bias (N4),
    registered to the contrast-enhanced T1, or the FLAIR without it, and freed of all but the
    brain."""
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
    augmentation: Literal["none", "light", "full"] = "light"
    """``full`` is nnU-Net's; see ``client.training.augmentation``."""
    sequence_dropout: float = Field(default=0.0, ge=0, le=1)
    """Chance of a crop to lack some of its sequences, never both t1c and t2f: so that the network
    learns to do without them. Only above 0 do cases that lack some take part, in training and at
    the clinics."""
    loss: Literal["dice_bce", "dice_focal"] = "dice_bce"
    optimizer: Literal["sgd", "adam"] = "adam"
    learning_rate: float = Field(gt=0, le=10)
    schedule: Literal["constant", "cosine"] = "constant"
    """Over the whole study: cosine falls from ``learning_rate`` to 0 with the last round."""
    warmup_steps: int = Field(default=0, ge=0, le=10_000)
    """Steps of the study over which the learning rate rises from 0."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    trainable: tuple[Trainable, ...] = ("all",)
    """Groups of parameters; ``common.study.trained_parameters`` says what each stands for."""
    rank: int = Field(default=8, ge=1, le=64)
    """Of the changes of convolutions in the group ``low_rank``; without it, of no effect."""
    patients_per_step: int = Field(default=4, ge=1, le=1024)
    """Batch of a study without privacy; with privacy the batch is drawn by ``sampling_rate``."""
    proximal_mu: float = Field(default=0.0, ge=0, le=1e3)
    """FedProx: how strongly each step is pulled back to the weights of the round's start."""
    local: tuple[Group, ...] = ()
    """Groups that each site trains and keeps for itself, as FedBN keeps normalisations."""
    personal_lambda: float = Field(default=0.0, ge=0, le=1e3)
    """Ditto: above 0 each site also trains a model of its own, which never leaves it, pulled to the
    round's weights so strongly. It takes as many steps again, charged like the others."""

    @property
    def steps_per_round(self) -> int:
        """How many steps a round takes of each patient, and with privacy is charged."""
        return self.local_steps * (2 if self.personal_lambda else 1)

    @model_validator(mode="after")
    def _own(self) -> TrainingOptions:
        if "all" not in self.trainable and set(self.local) - set(self.trainable):
            raise ValueError("local names groups that are not trainable")
        if self.local and self.personal_lambda:
            raise ValueError(
                "with personal_lambda each site has a whole model of its own: no local"
            )
        return self

    @model_validator(mode="after")
    def _subset(self) -> TrainingOptions:
        if not self.trainable:
            raise ValueError("trainable names at least one group of parameters")
        if "all" in self.trainable and len(self.trainable) > 1:
            raise ValueError("trainable is either all, or a list of groups")
        return self


class MessageOptions(_Frozen):
    """How a site's update travels; see ``common.messages.compression``. Weights always go as
    float32.
    """

    encoding: Literal["float32", "float16", "int8"] = "float32"
    top_share: float = Field(default=1.0, gt=0, le=1)
    """Of an array's entries, the largest of which travel; the others wait for the next update."""


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
    clipping: Literal["flat", "per_layer", "automatic"] = "flat"
    """How a patient's gradient comes to that norm: see ``client.privacy.clipping``."""
    sampling_rate: float = Field(default=0.1, gt=0, le=1)
    nominal_patients: int = Field(default=100, ge=1)
    delta: float = Field(default=1e-3, gt=0, lt=0.1)
    max_epsilon: float = Field(default=10.0, gt=0, le=1000)
    dice_noise_multiplier: float = Field(default=5.0, gt=0, le=1e4)
    """Noise of a Dice report at sites that let scores leave with noise only; see
    ``client.privacy.dp_dice``."""


class StudyProtocol(_Frozen):
    """One study. See ``deploy/demo/protocol.toml`` for a commented example."""

    study: StudyId
    title: str = Field(min_length=1, max_length=200)
    expires: dt.date
    rounds: int = Field(ge=1, le=10_000)
    seed: int = Field(default=0, ge=0, lt=2**31)
    initial_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Digest (``common.records.weights.digest``) of the weights that the first round starts from;
    without it they are random, drawn from ``seed``. `gliofed-server study --initial` fills it in,
    and a site trains in the first round from these alone.
    """
    network: NetworkOptions = NetworkOptions()
    preprocessing: PreprocessingOptions = PreprocessingOptions()
    preprocessing_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Filled in when the protocol is published; a site whose own digest differs refuses."""
    training: TrainingOptions
    aggregation: AggregationOptions
    privacy: PrivacyOptions
    messages: MessageOptions = MessageOptions()
    prediction: PredictionOptions = PredictionOptions()
    postprocessing: PostprocessingOptions = PostprocessingOptions()
    statistics: StatisticsOptions = StatisticsOptions()
    reports: tuple[Reportable, ...] = ("dice", "case_count", "privacy_spent", "withdrawals")
    """What sites may report beside weights; each site may allow less. Histograms of the cohort are
    asked for by ``statistics``."""
    evaluate_every: int = Field(default=1, ge=1)
    """Rounds between two evaluations on the sites' validation patients; the last always is."""
    supersedes: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = Field(
        default=(), max_length=100
    )
    """Digests of the versions before, the oldest first; `gliofed-server amend` fills it in. See
    ``common.study.amendment``."""

    @model_serializer(mode="wrap")
    def _first_form(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later keys at their defaults: a protocol without them keeps its digest, and
        versions of gliofed that do not know them can read it."""
        values: dict[str, Any] = handler(self)
        return {k: v for k, v in values.items() if k not in _LATER or v not in ((), [], "")}

    @property
    def version(self) -> int:
        """1 for a study's first protocol, one more with each amendment."""
        return len(self.supersedes) + 1

    @model_validator(mode="after")
    def _feedback(self) -> StudyProtocol:
        if self.messages.top_share < 1 and "low_rank" in self.training.trainable:
            raise ValueError(
                "messages.top_share must be 1 with low_rank: each round has other axes"
            )
        return self

    @model_validator(mode="after")
    def _rule(self) -> StudyProtocol:
        training, rule = self.training, self.aggregation.rule
        if self.aggregation.late_rounds and "low_rank" in training.trainable:
            raise ValueError(
                "aggregation.late_rounds must be 0 with low_rank: each round has other axes"
            )
        if rule in (*MOMENTUM, *ADAPTIVE, "scaffold") and "low_rank" in training.trainable:
            raise ValueError(
                f"{rule} goes on from round to round, but low_rank has other axes then"
            )
        if rule != "scaffold":
            return self
        if (training.optimizer, training.momentum) != ("sgd", 0.0):
            raise ValueError("scaffold needs training.optimizer sgd and training.momentum 0")
        if training.proximal_mu:
            raise ValueError("scaffold corrects the drift already: proximal_mu must be 0")
        if training.schedule != "constant" or training.warmup_steps:
            raise ValueError("scaffold needs one learning rate: schedule constant, no warmup_steps")
        return self

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
    def start(self) -> str:
        """What the first round starts from, in words."""
        named = self.initial_sha256
        return f"the weights {named[:16]}" if named else f"random weights of seed {self.seed}"

    @property
    def private(self) -> bool:
        return self.privacy.mode == "patient-dp"


def preprocessing_digest(options: PreprocessingOptions, algorithm: str = "") -> str:
    """Return the digest that ties a model to its preprocessing: options and algorithm version.

    Without ``algorithm`` it is that of this release for the kind of input.
    """
    algorithm = algorithm or PREPROCESSING_ALGORITHMS[options.input]
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
