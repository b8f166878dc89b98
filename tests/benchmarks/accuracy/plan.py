"""Which runs there are: cohort, way to learn, recipe, seeds.

A recipe is what it changes in the protocol of its cohort. Recipes for privacy change one thing of
the first, so that each row says what that thing is worth; the last ones join what was worth it.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import Any, Final

from client.privacy.accountant import epsilon
from client.privacy.mechanism import Mechanism
from common.study.protocol import StudyProtocol, parse_protocol

SEEDS: Final = (1, 2, 3)
ONE_SEED: Final = (1,)
DELTA: Final = 1e-3
START_STEPS: Final = 400

_BASE: Final[dict[str, Any]] = {
    "study": "accuracy",
    "title": "How well the models segment",
    "expires": "2099-12-31",
    "rounds": 8,
    "network": {"size": "small"},
    "preprocessing": {"spacing_mm": 6.0},
    "training": {
        "local_steps": 24,
        "crop_size": [24, 24, 24],
        "patients_per_step": 4,
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "warmup_steps": 10,
    },
    "aggregation": {"quorum": 1},
    "privacy": {"mode": "none"},
}
COHORTS: Final[dict[str, dict[str, Any]]] = {
    "phantoms": {},
    "folder": {
        "preprocessing": {"spacing_mm": 3.75},
        "training": {"crop_size": [32, 32, 24], "local_steps": 16},
    },
}
_PRIVATE: Final[dict[str, Any]] = {
    "network": {"size": "tiny"},
    "training": {"local_steps": 4, "learning_rate": 6e-3, "warmup_steps": 0},
    "privacy": {
        "mode": "patient-dp",
        "sampling_rate": 0.5,
        "nominal_patients": 60,
        "clipping_norm": 1.0,
        "delta": DELTA,
    },
}


@dataclass(frozen=True)
class Run:
    """One line of the table; ``key`` names its files."""

    key: str
    says: str
    cohort: str = "phantoms"
    learn: str = "federated"
    changes: dict[str, Any] = field(default_factory=dict)
    epsilon: float | None = None
    pretrained: bool = False
    """Whether it starts from weights that saw phantoms of another hospital, or from random ones."""
    average: int = 1
    """Of so many of the last rounds the model is the mean."""
    seeds: tuple[int, ...] = SEEDS

    @functools.cached_property
    def protocol(self) -> StudyProtocol:
        """The protocol, with the noise that comes to ``epsilon`` at the end."""
        data = _joined(_BASE, COHORTS[self.cohort])
        if self.epsilon is not None:
            data = _joined(data, _PRIVATE)
        data = _joined(data, self.changes)
        if self.epsilon is not None:
            steps = data["rounds"] * data["training"]["local_steps"]
            rate = data["privacy"]["sampling_rate"]
            sigma = noise_for(rate, steps, self.epsilon)
            data["privacy"] |= {"noise_multiplier": sigma, "max_epsilon": self.epsilon}
        return parse_protocol(data, source=self.key)


@functools.cache
def noise_for(rate: float, steps: int, wanted: float) -> float:
    """Return the least noise multiplier, to 0.5 %, for ``steps`` within epsilon ``wanted``."""
    low, high = 0.2, 200.0
    while high / low > 1.005:
        middle = (low * high) ** 0.5
        if epsilon([(Mechanism(middle, rate), steps)], DELTA) > wanted:
            low = middle
        else:
            high = middle
    return round(high, 4)


def _joined(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(base)
    for key, value in changes.items():
        made[key] = _joined(made[key], value) if isinstance(made.get(key), dict) else value
    return made


def _networks(cohort: str, *, private: bool) -> list[Run]:
    names = {
        "mingru": "segresnet_mingru",
        "dynunet": "dynunet",
        "unet": "unet",
    }
    extra: dict[str, Any] = {"epsilon": 8.0, "pretrained": True} if private else {}
    return [
        Run(
            f"{cohort}-fedavg-{'eps8-start-' if private else ''}{short}",
            f"{name}, FedAvg" + (", epsilon 8, pre-trained start" if private else ""),
            cohort=cohort,
            changes={"network": {"name": name}},
            seeds=ONE_SEED,
            **extra,
        )
        for short, name in names.items()
    ]


def _without_privacy(cohort: str) -> list[Run]:
    return [
        Run(f"{cohort}-alone", "each hospital alone", cohort=cohort, learn="alone"),
        Run(f"{cohort}-pooled", "pooled in one place", cohort=cohort, learn="pooled"),
        Run(f"{cohort}-fedavg", "FedAvg", cohort=cohort),
        Run(
            f"{cohort}-fedavg-full",
            "FedAvg, full augmentation",
            cohort=cohort,
            changes={"training": {"augmentation": "full"}},
            seeds=ONE_SEED,
        ),
        Run(
            f"{cohort}-fedavg-deep",
            "FedAvg, deep supervision",
            cohort=cohort,
            changes={"network": {"deep_supervision": True}},
            seeds=ONE_SEED,
        ),
        Run(
            f"{cohort}-fedavg-average",
            "FedAvg, mean of the last 3 rounds",
            cohort=cohort,
            average=3,
            seeds=ONE_SEED,
        ),
        Run(
            f"{cohort}-alone-start",
            "each hospital alone, pre-trained start",
            cohort=cohort,
            learn="alone",
            pretrained=True,
            seeds=ONE_SEED,
        ),
        Run(
            f"{cohort}-fedavg-start",
            "FedAvg, pre-trained start",
            cohort=cohort,
            pretrained=True,
            seeds=ONE_SEED,
        ),
        *_networks(cohort, private=False),
        *(
            Run(
                f"{cohort}-{learn}-dynunet",
                f"dynunet, {says}",
                cohort=cohort,
                learn=learn,
                changes={"network": {"name": "dynunet"}},
                seeds=ONE_SEED,
            )
            for learn, says in (
                ("alone", "each hospital alone"),
                ("pooled", "pooled in one place"),
            )
        ),
    ]


def _private(key: str, says: str, seeds: tuple[int, ...] = ONE_SEED, **extra: Any) -> Run:
    extra = {"epsilon": 8.0, **extra}
    return Run(
        f"phantoms-eps{extra['epsilon']:g}-{key}",
        f"FedAvg, epsilon {extra['epsilon']:g}: {says}",
        seeds=seeds,
        **extra,
    )


_FEW: Final = {"training": {"trainable": ["norms", "head"]}}
_LOW_RANK: Final = {"training": {"trainable": ["norms", "head", "low_rank"], "rank": 4}}

RECIPES: Final = [
    _private("base", "tiny SegResNet, flat clip, Adam, every second patient a step"),
    _private("small", "1.2 M parameters", changes={"network": {"size": "small"}}),
    _private("automatic", "automatic clipping", changes={"privacy": {"clipping": "automatic"}}),
    _private("per-layer", "per-layer clipping", changes={"privacy": {"clipping": "per_layer"}}),
    _private("clip-0.1", "clipping norm 0.1", changes={"privacy": {"clipping_norm": 0.1}}),
    _private(
        "all-patients",
        "all patients a step, half the steps",
        changes={"privacy": {"sampling_rate": 1.0}, "training": {"local_steps": 2}},
    ),
    _private("crops-4", "4 crops a patient", changes={"training": {"crops_per_patient": 4}}),
    _private("average", "mean of the last 4 rounds", average=4),
    _private(
        "sgd",
        "SGD with momentum",
        changes={"training": {"optimizer": "sgd", "learning_rate": 0.1}},
    ),
    _private("start", "pre-trained start", pretrained=True),
    _private("start", "pre-trained start", pretrained=True, epsilon=3.0),
    _private("start", "pre-trained start", pretrained=True, epsilon=20.0),
    _private(
        "start-rate",
        "pre-trained start, learning rate 0.002",
        pretrained=True,
        changes={"training": {"learning_rate": 2e-3}},
    ),
    _private("start-few", "pre-trained start, norms and head", pretrained=True, changes=_FEW),
    _private(
        "start-low-rank",
        "pre-trained start, norms, head, rank 4",
        pretrained=True,
        changes=_LOW_RANK,
    ),
]

RUNS: Final = [
    *_without_privacy("folder"),
    Run("phantoms-alone", "each hospital alone", learn="alone"),
    Run("phantoms-pooled", "pooled in one place", learn="pooled", seeds=ONE_SEED),
    Run("phantoms-fedavg", "FedAvg"),
    Run("phantoms-start", "the pre-trained start, as it is", pretrained=True, learn="start"),
    Run(
        "phantoms-alone-start",
        "each hospital alone, pre-trained start",
        learn="alone",
        pretrained=True,
        seeds=ONE_SEED,
    ),
    Run("phantoms-fedavg-start", "FedAvg, pre-trained start", pretrained=True, seeds=ONE_SEED),
    *RECIPES,
    *_networks("phantoms", private=True),
]
