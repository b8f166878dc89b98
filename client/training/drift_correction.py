"""What a site adds to the gradient of each step where sites differ: a pull, and a correction.

Both are added after clipping and noise, before the optimiser. They depend on no patient but by
what was published or noised already, so that they cost no privacy.

The pull is mu (w - w0). With w0 the weights of the round's start it is the gradient of FedProx's
mu / 2 |w - w0|^2 (Li et al. 2020, "Federated optimization in heterogeneous networks",
arXiv:1812.06127). With w0 the global weights, and w a model of the site's own, it is that of Ditto
(Li et al. 2021, arXiv:2012.04221). Where a weight changes by low rank, B A, what is exchanged is B:
the pull back to the start is mu B, and that to another weight w0 is mu (w - w0) A^T, the gradient
of the term by B.

The correction is SCAFFOLD's c - c_i (Karimireddy et al. 2020, arXiv:1910.06378); c_i becomes
c_i - c - update / (K r) after K steps of plain SGD at learning rate r (option II), computed from
the update as it was sent: noised and rounded.

Invariant: arrays that stay at the site get no term; without terms nothing is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from common.records.weights import Arrays


@dataclass(frozen=True)
class Terms:
    """``centre`` is what the pull goes to, by name; None is the start of the training.

    ``correction`` has the names and shapes of the update, or is empty.
    """

    centre: Mapping[str, NDArray[np.float32]] | None = None
    correction: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


NO_TERMS = Terms()


class Drift:
    """Computes the terms of each array, float64 on ``device``, from where the training is.

    ``leading`` is what the optimiser changes: parameters, or in their place factors B, whose A are
    in ``bases``; ``trained`` are the parameters themselves. ``names`` are the arrays that have
    terms.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        mu: float,
        names: frozenset[str],
        leading: Mapping[str, torch.Tensor],
        trained: Mapping[str, torch.Tensor],
        bases: Mapping[str, torch.Tensor],
        device: torch.device,
    ) -> None:
        self._mu = mu
        self._leading, self._trained, self._bases = leading, trained, bases
        self._device = device
        self._correction = {
            name: self._exact(torch.from_numpy(np.array(value)))
            for name, value in terms.correction.items()
            if name in names
        }
        self._start: dict[str, torch.Tensor] = {}
        self._centre: dict[str, torch.Tensor] = {}
        if mu and terms.centre is None:
            self._start = {name: self._exact(leading[name]).clone() for name in names}
        elif mu and terms.centre is not None:
            self._centre = {
                name: self._exact(torch.from_numpy(np.array(terms.centre[name]))) for name in names
            }

    def added(self, name: str) -> torch.Tensor | None:
        """Return what to add to the gradient of ``name``, in its shape, or None for nothing."""
        total = self._correction.get(name)
        if name in self._start:
            pull = self._mu * (self._exact(self._leading[name]) - self._start[name])
        elif name in self._centre:
            away = self._exact(self._trained[name]) - self._centre[name]
            if name in self._bases:
                away = away.flatten(1) @ self._exact(self._bases[name]).T
            pull = self._mu * away
        else:
            return total
        return pull if total is None else total + pull

    def _exact(self, values: torch.Tensor) -> torch.Tensor:
        return values.detach().to(self._device).double()


def correction(control: Arrays, own: Arrays) -> Arrays:
    """Return c - c_i of each array; an absent c or c_i is zero, as both are at first."""
    return {
        name: np.asarray(control.get(name, 0.0), np.float32)
        - np.asarray(own.get(name, 0.0), np.float32)
        for name in control.keys() | own.keys()
    }


def next_control(
    own: Arrays, control: Arrays, sent: Arrays, *, steps: int, learning_rate: float
) -> Arrays:
    """Return the c_i that follows ``own`` once the update ``sent`` has become part of a round."""
    return {
        name: (
            np.asarray(own.get(name, 0.0), np.float64)
            - np.asarray(control.get(name, 0.0), np.float64)
            - np.asarray(update, np.float64) / (steps * learning_rate)
        ).astype(np.float32)
        for name, update in sent.items()
    }
