"""Which law holds for which rule, and short references written from the papers' formulas.

The references know nothing of blocks, streams or files: one vector a site, all in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from server.aggregation import RULES, Rule

Vector = NDArray[np.float64]
Memory = dict[str, Any]
"""What a reference keeps between rounds, in whatever form it likes."""


@dataclass(frozen=True)
class Reply:
    """What one site brings to a round."""

    site: str
    update: Arrays
    weight: float = 1.0
    steps: int = 10


Round = list[Reply]


@dataclass(frozen=True)
class Given:
    """What a reference is given: one row or number a site, in the order of their names."""

    updates: Vector
    shares: Vector
    steps: Vector
    options: AggregationOptions
    memory: Memory


@dataclass(frozen=True)
class Case:
    """One rule, its options, and the laws that hold for its first round."""

    rule: str
    reference: Callable[[Given], Vector]
    options: dict[str, Any] = field(default_factory=dict)
    least: int = 1
    """Fewest sites that it aggregates."""
    identity: bool = True
    """One site's update alone, or the same update of all sites, is the result."""
    between: bool = True
    """Every coordinate of the result lies in the range of the updates."""
    weighted: bool = True
    """Weights count."""
    scales: bool = True
    """Updates twice as large give a result twice as large."""
    kept: tuple[str, ...] = ()
    """Kinds of arrays that the rule keeps between rounds."""
    exact: bool = False
    """The order of folding changes no bit."""

    def make(self, state: Arrays | None = None, **options: Any) -> Rule:
        parsed = self.parsed(**options)
        return RULES[self.rule](parsed, {} if state is None else state)

    def parsed(self, **options: Any) -> AggregationOptions:
        given = {"rule": self.rule, "quorum": 5, **self.options, **options}
        return AggregationOptions.model_validate(given)

    def combine(self, replies: Round, **options: Any) -> Arrays:
        return fold(self.make(**options), replies).result()


def fold(rule: Rule, replies: Round) -> Rule:
    for reply in replies:
        rule.fold(reply.site, reply.update, weight=reply.weight, steps=reply.steps)
    return rule


def flat(arrays: Arrays) -> Vector:
    """Return all numbers of ``arrays`` in the order of their names."""
    return np.concatenate([arrays[name].astype(np.float64).ravel() for name in sorted(arrays)])


def expected(case: Case, replies: Round, memory: Memory, **options: Any) -> Vector:
    """Return what the reference gives, and let it change ``memory``."""
    replies = sorted(replies, key=lambda reply: reply.site)
    weights = np.array([reply.weight for reply in replies], np.float64)
    return case.reference(
        Given(
            updates=np.array([flat(reply.update) for reply in replies]),
            shares=weights / weights.sum(),
            steps=np.array([reply.steps for reply in replies], np.float64),
            options=case.parsed(**options),
            memory=memory,
        )
    )


def _mean(given: Given) -> Vector:
    return given.shares @ given.updates


def _fednova(given: Given) -> Vector:
    directions = given.updates / given.steps[:, None]
    return (given.shares @ given.steps) * (given.shares @ directions)


def _fedavgm(given: Given) -> Vector:
    v = given.options.server_momentum * given.memory.get("v", 0) + _mean(given)
    given.memory["v"] = v
    return np.asarray(given.options.server_learning_rate * v)


def _adaptive(given: Given) -> Vector:
    options, memory, delta = given.options, given.memory, _mean(given)
    tau, beta, decay = options.server_adaptivity, options.server_momentum, options.server_decay
    v = memory.get("v", np.full_like(delta, tau * tau))
    memory["m"] = beta * memory.get("m", 0) + (1 - beta) * delta
    memory["v"] = {
        "fedadam": decay * v + (1 - decay) * delta**2,
        "fedyogi": v - (1 - decay) * delta**2 * np.sign(v - delta**2),
        "fedadagrad": v + delta**2,
    }[options.rule]
    return np.asarray(options.server_learning_rate * memory["m"] / (np.sqrt(memory["v"]) + tau))


def _bounded(given: Given) -> Vector:
    lengths = np.linalg.norm(given.updates, axis=1) / (given.options.norm_bound or 0)
    return given.shares @ (given.updates / np.maximum(1.0, lengths)[:, None])


def _median(given: Given) -> Vector:
    """A median is where the weighted sum of distances is least; the middle of all such points."""
    scale = np.abs(given.updates).max()

    def of(column: Vector) -> float:
        costs = np.array([(given.shares * abs(column - at)).sum() for at in column])
        best = column[costs <= costs.min() + 1e-9 * scale]
        return float(best.min() + best.max()) / 2

    return np.array([of(column) for column in given.updates.T])


def _trimmed(given: Given) -> Vector:
    def of(column: Vector) -> float:
        left = given.shares.copy()
        order = column.argsort(kind="stable")
        for path in (order, order[::-1]):
            cut = given.options.trim_share
            for site in path:
                taken = min(left[site], cut)
                left[site] -= taken
                cut -= taken
        return float(left @ column / left.sum())

    return np.array([of(column) for column in given.updates.T])


def _geometric(given: Given) -> Vector:
    updates, point = given.updates, _mean(given)
    apart = [sorted(float(np.linalg.norm(one - two)) for two in updates) for one in updates]
    if not any(max(row) for row in apart):
        return point
    radius = min(row[len(row) // 2] for row in apart)
    least = 1e-6 * radius or 1e-30 * min(length for row in apart for length in row if length)
    for _ in range(given.options.geometric_median_iterations):
        pulls = given.shares / np.maximum(np.linalg.norm(updates - point, axis=1), least)
        point = pulls @ updates / pulls.sum()
    return point


def _krum(given: Given) -> Vector:
    near = len(given.updates) - given.options.malicious_sites - 2
    scores = []
    for one in given.updates:
        squares = sorted(float(((one - other) ** 2).sum()) for other in given.updates)
        scores.append(sum(squares[1 : near + 1]))  # the first is the distance to itself
    best = sorted(range(len(scores)), key=lambda site: scores[site])[: given.options.krum_keep]
    return np.asarray(given.updates[best].mean(axis=0))


def _scaffold(given: Given) -> Vector:
    """Only the step; what it keeps has a test of its own, against sites that keep their c_i."""
    return given.options.server_learning_rate * _mean(given)


CASES = [
    Case("fedavg", _mean),
    Case("fednova", _fednova),
    Case("fedavgm", _fedavgm, kept=("momentum",)),
    Case(
        "fedadam",
        _adaptive,
        {"server_learning_rate": 1.0},
        identity=False,
        between=False,
        scales=False,
        kept=("momentum", "second"),
    ),
    Case(
        "fedyogi",
        _adaptive,
        {"server_learning_rate": 0.5},
        identity=False,
        between=False,
        scales=False,
        kept=("momentum", "second"),
    ),
    Case(
        "fedadagrad",
        _adaptive,
        {"server_adaptivity": 0.1},
        identity=False,
        between=False,
        scales=False,
        kept=("momentum", "second"),
    ),
    Case("scaffold", _scaffold, kept=("step", "weight")),
    Case(
        "norm_bounded_mean",
        _bounded,
        {"norm_bound": 50.0},
        identity=False,
        between=False,
        scales=False,
    ),
    Case("coordinate_median", _median, exact=True),
    Case("trimmed_mean", _trimmed, exact=True),
    Case("geometric_median", _geometric, exact=True),
    Case("krum", _krum, least=5, weighted=False, exact=True),
    Case("multi_krum", _krum, least=5, weighted=False, exact=True),
]
