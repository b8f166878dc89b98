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

PREPROCESSING_ALGORITHMS: Final = {"brats": "brain-zscore/1", "raw": "raw-n4-rigid-brain-zscore/1"}
"""Steps of ``client.imaging.preprocessing`` for each kind of input. Raise the version whenever any
result changes."""

Reportable = Literal["dice", "case_count", "privacy_spent", "withdrawals"]
Crop = Annotated[int, Field(ge=8, le=512)]
Group = Literal["norms", "head", "last_decoder"]
Trainable = Literal["all", "low_rank"] | Group


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

    input: Literal["brats", "raw"] = "brats"
    """What every site and clinic hands in: sequences that are co-registered and skull-stripped, as
    BraTS distributes them, or as the scanner wrote them. Raw input is corrected for bias (N4),
    registered to the contrast-enhanced T1 and freed of all but the brain."""
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
    """Groups of parameters; ``common.parameters`` says what each stands for."""
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


_ADAPTIVE: Final = ("fedadam", "fedyogi", "fedadagrad")
_MOMENTUM: Final = ("fedavgm", "fedadam", "fedyogi")
_MEDIANS: Final = ("coordinate_median", "geometric_median")
_KRUM: Final = ("krum", "multi_krum")
_PARAMETERS: Final = {
    "server_learning_rate": ("fedavgm", "scaffold", *_ADAPTIVE),
    "server_momentum": ("fedavgm", *_ADAPTIVE),
    "server_decay": ("fedadam", "fedyogi"),
    "server_adaptivity": _ADAPTIVE,
    "norm_bound": ("norm_bounded_mean",),
    "trim_share": ("trimmed_mean",),
    "malicious_sites": _KRUM,
    "krum_keep": ("multi_krum",),
    "geometric_median_iterations": ("geometric_median",),
}
"""Which rules use a parameter of ``AggregationOptions``."""


class AggregationOptions(_Frozen):
    """How the coordinator combines the sites' updates, and when a round counts.

    ``server.aggregation`` says what each rule does. A parameter that the rule does not use must
    be left out or at its default: who reads a protocol may trust that what it says has an effect.
    """

    rule: Literal[
        "fedavg",
        "fednova",
        "fedavgm",
        "fedadam",
        "fedyogi",
        "fedadagrad",
        "scaffold",
        "norm_bounded_mean",
        "coordinate_median",
        "trimmed_mean",
        "geometric_median",
        "krum",
        "multi_krum",
    ] = "fedavg"
    weights: dict[SiteName, Annotated[float, Field(gt=0, le=1e6)]] = Field(default_factory=dict)
    """Public weight of a site; 1 for each site that is not named. Never taken from a reply."""
    quorum: int = Field(ge=1)
    quorum_weight: float = Field(default=0.0, ge=0, le=1)
    """Share of the approved sites' total weight that must answer, beside the quorum."""
    deadline_s: float = Field(default=3600.0, gt=0)
    """The longest that a round waits for anybody. A site is waited for less if its last trainings
    say so; see ``server.deadlines``."""
    deadline_slack: float = Field(default=3.0, ge=1, le=1000)
    """How many times the slowest of its last trainings a site is waited for."""
    late_rounds: int = Field(default=0, ge=0, le=1000)
    """How many rounds late an update may come and still count, the less the later it comes; see
    ``server.late``. With 0 a late update is dropped."""
    buffer: int | None = Field(default=None, ge=1)
    """A round closes as soon as so many updates are in; the others come late. None: a round waits
    for all sites."""
    max_update_norm: float = Field(default=1e3, gt=0)
    """A reply whose L2 norm is above it is refused."""
    server_learning_rate: float = Field(
        default_factory=lambda given: 0.01 if given.get("rule") in _ADAPTIVE else 1.0,
        gt=0,
        le=10,
    )
    """Factor of the change of the weights: 0.01 for rules with a step size of their own, else 1."""
    server_momentum: float = Field(
        default_factory=lambda given: 0.9 if given.get("rule") in _MOMENTUM else 0.0, ge=0, lt=1
    )
    """How much of its last direction the server keeps: 0.9 for fedavgm, fedadam, fedyogi."""
    server_decay: float = Field(default=0.99, ge=0, lt=1)
    """How much of the mean squared change the server keeps from round to round."""
    server_adaptivity: float = Field(default=1e-3, ge=1e-12, le=1)
    """Added to the root of the mean squared change; the smaller, the more weights' steps differ."""
    norm_bound: float | None = Field(default=None, gt=0)
    """L2 norm to which a longer update is scaled down; depends on network and learning rate."""
    trim_share: float = Field(default=0.2, gt=0, lt=0.5)
    """Share of the weight that is left out at either end of each coordinate."""
    malicious_sites: int = Field(default=1, ge=1)
    """How many hostile sites Krum shall withstand."""
    krum_keep: int = Field(
        default_factory=lambda given: (
            max(1, given.get("quorum", 1) - given.get("malicious_sites", 1))
            if given.get("rule") == "multi_krum"
            else 1
        ),
        ge=1,
    )
    """How many updates multi_krum averages: by default as many as the quorum has honest sites."""
    geometric_median_iterations: int = Field(default=100, ge=1, le=10_000)
    """Weiszfeld iterations; they cost nothing beside the distances between updates."""

    @model_validator(mode="after")
    def _used(self) -> AggregationOptions:
        given = dict(self)
        for name, rules in _PARAMETERS.items():
            default = (
                type(self)
                .model_fields[name]
                .get_default(call_default_factory=True, validated_data=given)
            )
            if self.rule not in rules and given[name] != default:
                raise ValueError(
                    f"{name} is of no use to {self.rule}, it is for {', '.join(rules)}"
                )
        if self.weights and self.rule in _KRUM:
            raise ValueError(f"{self.rule} counts all sites alike, weights are of no use to it")
        return self

    @model_validator(mode="after")
    def _timely(self) -> AggregationOptions:
        late = self.late_rounds > 0 or self.buffer is not None
        if late and self.rule == "scaffold":
            raise ValueError("scaffold needs updates of the open round: no late_rounds, no buffer")
        if late and self.rule in _KRUM:
            raise ValueError(
                f"{self.rule} counts all updates alike, a late one as well: no late_rounds, "
                "no buffer"
            )
        if self.buffer is not None and not self.late_rounds:
            raise ValueError(
                "a buffer without late_rounds would drop the work of all who come after it is full"
            )
        if self.buffer is not None and self.buffer < self.quorum:
            raise ValueError("buffer is below the quorum, without which no round counts")
        return self

    @model_validator(mode="after")
    def _sensible(self) -> AggregationOptions:
        if self.rule == "norm_bounded_mean" and self.norm_bound is None:
            raise ValueError("norm_bounded_mean needs a norm_bound")
        if self.norm_bound is not None and self.norm_bound > self.max_update_norm:
            raise ValueError("norm_bound is above max_update_norm and would bound nothing")
        if self.rule in _MEDIANS and self.quorum < 3:
            raise ValueError(f"{self.rule} of fewer than 3 sites is their mean: raise the quorum")
        if self.rule == "trimmed_mean" and self.trim_share * self.quorum < 1 - 1e-9:
            raise ValueError("trim_share is less than one site of the quorum and keeps nobody out")
        if self.rule in _KRUM:
            least = 2 * self.malicious_sites + 3
            if self.quorum < least:
                raise ValueError(f"{self.rule} needs a quorum of 2 malicious_sites + 3 = {least}")
            if self.krum_keep > self.quorum - self.malicious_sites:
                raise ValueError("krum_keep is more than the quorum without the malicious_sites")
        return self


class MessageOptions(_Frozen):
    """How a site's update travels; see ``common.compression``. Weights always go as float32."""

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
    sampling_rate: float = Field(default=0.1, gt=0, le=1)
    nominal_patients: int = Field(default=100, ge=1)
    delta: float = Field(default=1e-3, gt=0, lt=0.1)
    max_epsilon: float = Field(default=10.0, gt=0, le=1000)
    dice_noise_multiplier: float = Field(default=5.0, gt=0, le=1e4)
    """Noise of a Dice report at sites that let scores leave with noise only; see
    ``client.noised_dice``."""


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
    messages: MessageOptions = MessageOptions()
    reports: tuple[Reportable, ...] = ("dice", "case_count", "privacy_spent", "withdrawals")
    """What sites may report beside weights; each site may allow less."""
    evaluate_every: int = Field(default=1, ge=1)
    """Rounds between two evaluations on the sites' validation patients; the last always is."""

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
        if rule in (*_MOMENTUM, *_ADAPTIVE, "scaffold") and "low_rank" in training.trainable:
            raise ValueError(
                f"{rule} goes on from round to round, but low_rank has other axes then"
            )
        if rule != "scaffold":
            return self
        if (training.optimizer, training.momentum) != ("sgd", 0.0):
            raise ValueError("scaffold needs training.optimizer sgd and training.momentum 0")
        if training.proximal_mu:
            raise ValueError("scaffold corrects the drift already: proximal_mu must be 0")
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
