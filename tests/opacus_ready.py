"""Networks as Opacus bears them: nothing in place, and no layer reached twice.

For Opacus as a reference and as a rival only. Our own step takes every network as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from torch.overrides import TorchFunctionMode

from client.networks.group_norm import ExactGroupNorm

# Opacus looks for a layer by its very type.
GradSampleModule.GRAD_SAMPLERS[ExactGroupNorm] = GradSampleModule.GRAD_SAMPLERS[torch.nn.GroupNorm]


class OutOfPlace(TorchFunctionMode):
    """Computes ``x += y`` as ``x = x + y``: Opacus' hooks do not bear sums in place."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.add_:
            func = torch.add
        return func(*args, **(kwargs or {}))


class DistinctLayers(GradSampleModule):
    """Hooks each layer once, also those of DynUNet, which are reached by two paths."""

    def iterate_submodules(self, module: torch.nn.Module) -> Iterable[torch.nn.Module]:
        return dict.fromkeys(super().iterate_submodules(module))


def bearable(network: torch.nn.Module) -> torch.nn.Module:
    """Return ``network`` without activations in place, which Opacus' hooks do not bear either."""
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return network
