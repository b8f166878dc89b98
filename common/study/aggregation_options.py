"""How a study combines its sites' updates, and when a round counts, as its protocol says it.

Out of scope: what each rule does (``server.aggregation``), how a round runs
(``server.rounds.round_loop``).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]

ADAPTIVE: Final = ("fedadam", "fedyogi", "fedadagrad")
MOMENTUM: Final = ("fedavgm", "fedadam", "fedyogi")
_MEDIANS: Final = ("coordinate_median", "geometric_median")
_KRUM: Final = ("krum", "multi_krum")
_PARAMETERS: Final = {
    "server_learning_rate": ("fedavgm", "scaffold", *ADAPTIVE),
    "server_momentum": ("fedavgm", *ADAPTIVE),
    "server_decay": ("fedadam", "fedyogi"),
    "server_adaptivity": ADAPTIVE,
    "norm_bound": ("norm_bounded_mean",),
    "trim_share": ("trimmed_mean",),
    "malicious_sites": _KRUM,
    "krum_keep": ("multi_krum",),
    "geometric_median_iterations": ("geometric_median",),
}
"""Which rules use a parameter of ``AggregationOptions``."""


class AggregationOptions(BaseModel):
    """How the coordinator combines the sites' updates, and when a round counts.

    ``server.aggregation`` says what each rule does. A parameter that the rule does not use must
    be left out or at its default: who reads a protocol may trust that what it says has an effect.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
    say so; see ``server.rounds.deadlines``."""
    deadline_slack: float = Field(default=3.0, ge=1, le=1000)
    """How many times the slowest of its last trainings a site is waited for."""
    late_rounds: int = Field(default=0, ge=0, le=1000)
    """How many rounds late an update may come and still count, the less the later it comes; see
    ``server.rounds.late_updates``. With 0 a late update is dropped."""
    buffer: int | None = Field(default=None, ge=1)
    """A round closes as soon as so many updates are in; the others come late. None: a round waits
    for all sites."""
    max_update_norm: float = Field(default=1e3, gt=0)
    """A reply whose L2 norm is above it is refused."""
    server_learning_rate: float = Field(
        default_factory=lambda given: 0.01 if given.get("rule") in ADAPTIVE else 1.0,
        gt=0,
        le=10,
    )
    """Factor of the change of the weights: 0.01 for rules with a step size of their own, else 1."""
    server_momentum: float = Field(
        default_factory=lambda given: 0.9 if given.get("rule") in MOMENTUM else 0.0, ge=0, lt=1
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
