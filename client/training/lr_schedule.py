"""The learning rate of each step of a study.

The schedule spans the study, not the round: a site knows which round it trains and how many there
are, and needs nothing else.

Source: Loshchilov & Hutter 2017, "SGDR", arXiv:1608.03983 (one cosine, no restart); Goyal et al.
2017, arXiv:1706.02677 (linear warm-up).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.study.protocol import TrainingOptions


@dataclass(frozen=True)
class Place:
    """Where in the study a training stands: steps done before it, of ``total``."""

    done: int
    total: int

    @classmethod
    def of_round(cls, round_number: int, rounds: int, options: TrainingOptions) -> Place:
        """Return the place at which a site begins a round, the first being 1."""
        steps = options.local_steps
        return cls((round_number - 1) * steps, rounds * steps)


def learning_rate(options: TrainingOptions, step: int, total: int) -> float:
    """Return the learning rate of a step from 0 to ``total - 1``."""
    rate = options.learning_rate
    if step < options.warmup_steps:
        return rate * (step + 1) / options.warmup_steps
    if options.schedule == "constant":
        return rate
    after = max(1, total - options.warmup_steps)
    along = min(1.0, (step - options.warmup_steps) / after)
    return rate * (1 + math.cos(math.pi * along)) / 2
