"""The private step is exact: for every network it sums what two independent references sum.

One reference is a plain loop in float64 over patients and crops, with a loss of its own. The other
is Opacus: its hooks for the gradient of each crop, its optimiser for the clip. In float64 networks
are as they are. In float32 they are made smooth first: where the last bit of a sum decides which
side of a ReLU is taken, two kernels that are both right differ by 1e-4 and tell nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pytest
import torch
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch.func import functional_call

from client.networks.registry import NETWORKS, build
from client.privacy.clipping import clip
from client.privacy.dp_sgd import clipped_sum
from client.privacy.secure_noise import grid
from client.site.execution import ExecutionOptions
from client.training.crops import Crops
from client.training.loop import Learner, contributions
from client.training.losses import dice_bce
from common.messages.low_rank import Subspace, basis
from common.study.protocol import NetworkOptions, TrainingOptions
from common.study.trained_parameters import GROUPS, update_shapes
from tests.opacus_ready import DistinctLayers, OutOfPlace, bearable

PATIENTS: Final = 3
SIDE: Final = 16
TOLERANCE: Final = {torch.float64: 1e-10, torch.float32: 1e-5}
RANK: Final = 4
SUBSPACE: Final = Subspace(seed=3, round_number=5)
LOW_RANK_GROUPS: Final = ("norms", "low_rank")
AHEAD: Final = 2.0**24
"""Opacus adds 1e-6 to the norm that it divides by. Its losses and its clipping norm are multiplied
by this much, which changes nothing else, so that 1e-6 is lost beside the norm."""


def _segresnet(**changes: object) -> torch.nn.Module:
    small: dict[str, Any] = {"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)}
    return SegResNet(spatial_dims=3, in_channels=4, out_channels=3, **{**small, **changes})


def _dynunet() -> torch.nn.Module:
    return DynUNet(3, 4, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 8, 16], res_block=True)


MONAI: Final[Mapping[str, Callable[[], torch.nn.Module]]] = {
    "SegResNet-8": _segresnet,
    "SegResNet-16": lambda: _segresnet(init_filters=16),
    "SegResNet-deconv": lambda: _segresnet(upsample_mode="deconv"),
    "SegResNet-GELU": lambda: _segresnet(act="GELU"),
    "SegResNet-instance": lambda: _segresnet(norm=("INSTANCE", {"affine": True})),
    "UNet-PReLU": lambda: UNet(3, 4, 3, (8, 16), (2,), num_res_units=2),
    "BasicUNet": lambda: BasicUNet(
        3, 4, 3, features=(8, 8, 8, 8, 8, 8), norm=("GROUP", {"num_groups": 4})
    ),
    "DynUNet": _dynunet,
}


@dataclass(frozen=True)
class Case:
    """One network with the parameters of ``groups`` trained, and ``crops`` for each patient."""

    network: str
    groups: tuple[str, ...]
    crops: int

    def build(self) -> torch.nn.Module:
        if self.network not in NETWORKS:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return MONAI[self.network]()
        return build(NetworkOptions.model_validate({"name": self.network, "size": "tiny"}), seed=0)

    def network_in(self, dtype: torch.dtype) -> torch.nn.Module:
        network = self.build()
        return (smoothed(network) if dtype == torch.float32 else network).to(dtype)

    def shapes(self, network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
        """Return name and shape of what is trained, in the network's order."""
        known = {name: tuple(p.shape) for name, p in network.named_parameters()}
        kind = self.network if self.network in NETWORKS else ""
        wanted = update_shapes(known, kind, self.options)
        return {name: wanted[name] for name in known if name in wanted}

    def basis(self, name: str, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """Return A of a weight that changes by low rank."""
        known = basis(name, **dataclasses.asdict(SUBSPACE), rank=RANK, columns=columns)
        return torch.from_numpy(known).to(dtype)

    @property
    def options(self) -> TrainingOptions:
        return TrainingOptions.model_validate(
            {
                "local_steps": 1,
                "learning_rate": 0.1,
                "crops_per_patient": self.crops,
                "crop_size": (SIDE, SIDE, SIDE),
                "trainable": self.groups,
                "rank": RANK,
            }
        )

    def patients(self) -> list[Crops]:
        """Patients of unlike strength, so that a clipping norm can lie between their gradients."""
        return [_patient(seed, self.crops, scale=0.3 * 3**seed) for seed in range(PATIENTS)]


CASES: Final = [
    *(
        Case(name, groups, crops)
        for name in NETWORKS
        for groups in (("all",), *((group,) for group in GROUPS.get(name, {})), LOW_RANK_GROUPS)
        for crops in (1, 2)
    ),
    *(Case(name, ("all",), crops) for name in MONAI for crops in (1, 2)),
]
WHOLE: Final = [case for case in CASES if case.groups == ("all",) and case.crops == 2]


def _named(case: Case) -> str:
    return "-".join((case.network, *case.groups, str(case.crops)))


def _patient(seed: int, crops: int, *, scale: float = 1.0) -> Crops:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 2, (crops, 3, 4, 4, 4))
    regions = np.kron(blocks, np.ones((1, 1, 4, 4, 4))).astype(np.uint8)
    images = rng.normal(0, 0.5, (crops, 4, SIDE, SIDE, SIDE))
    images[:, :3] += regions
    return torch.from_numpy((scale * images).astype(np.float32)), torch.from_numpy(regions)


def smoothed(module: torch.nn.Module) -> torch.nn.Module:
    """Return ``module`` with every kink of it replaced by something smooth, or nearly so."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.ReLU | torch.nn.LeakyReLU):
            setattr(module, name, torch.nn.SiLU())
        elif isinstance(child, torch.nn.MaxPool3d):
            setattr(module, name, torch.nn.AvgPool3d(child.kernel_size))
        elif isinstance(child, torch.nn.PReLU):
            torch.nn.init.constant_(child.weight, 0.99)  # a part of the network that is trained
        else:
            smoothed(child)
    return module


# What we find.


@functools.cache
def ours(case: Case, dtype: torch.dtype, *, channels_last: bool) -> list[torch.Tensor]:
    """Return the gradient of each patient."""
    execution = ExecutionOptions(channels_last=channels_last, prefetch=0)
    learner = Learner(case.network_in(dtype), case.options, execution, subspace=SUBSPACE)
    return [learner.gradient(crops) for crops in case.patients()]


# The first reference: a loop.


def _plain_loss(logits: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Return the loss of one crop, written anew: regions one by one, entropy by softplus."""
    total = torch.zeros((), dtype=torch.float64)
    for z, t in zip(logits, regions.double(), strict=True):
        p = 1 / (1 + torch.exp(-z))
        total += 1 - (2 * (p * t).sum() + 1) / ((p * p).sum() + (t * t).sum() + 1)
        total += (torch.log1p(torch.exp(-z.abs())) + z.clamp(min=0) - z * t).mean()
    return total / 3


@functools.cache
def loop(case: Case, dtype: torch.dtype) -> list[NDArray[np.float64]]:
    """Return each patient's gradient before the clip: crop after crop, in float64 whatever ours."""
    network = case.network_in(dtype).double()
    values = dict(network.named_parameters())
    leading = []
    for name, shape in case.shapes(network).items():
        whole = values[name]
        leading.append(whole)
        if shape != tuple(whole.shape):
            leading[-1] = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
            known = case.basis(name, whole[0].numel(), torch.float64)
            values[name] = whole.detach() + (leading[-1] @ known).reshape(whole.shape)
    found = []
    for images, regions in case.patients():
        total = np.zeros(sum(parameter.numel() for parameter in leading))
        for image, region in zip(images.double(), regions, strict=True):
            logits = functional_call(network, values, (image[None],))
            parts = torch.autograd.grad(
                _plain_loss(logits[0], region), leading, retain_graph=True, allow_unused=True
            )
            total += np.concatenate(
                [
                    np.zeros(parameter.numel()) if part is None else part.numpy().ravel()
                    for parameter, part in zip(leading, parts, strict=True)
                ]
            )
        found.append(total / case.crops)
    return found


@functools.cache
def loop_norms(case: Case, dtype: torch.dtype) -> list[float]:
    return [math.sqrt(math.fsum(gradient**2)) for gradient in loop(case, dtype)]


def clipping_norm(case: Case, dtype: torch.dtype) -> float:
    """Return a norm above the shortest gradient and below the longest."""
    norms = sorted(loop_norms(case, dtype))
    assert norms[-1] > 1.001 * norms[0] > 0
    return math.sqrt(norms[0] * norms[-1])


def loop_sum(case: Case, dtype: torch.dtype) -> torch.Tensor:
    bound = clipping_norm(case, dtype)
    return torch.from_numpy(
        sum(
            gradient * min(1.0, bound / norm)
            for gradient, norm in zip(loop(case, dtype), loop_norms(case, dtype), strict=True)
        )
    )


# The second reference: Opacus.


def opacus_losses(
    module: GradSampleModule,
    case: Case,
    dtype: torch.dtype,
    mode: contextlib.AbstractContextManager[Any],
) -> torch.Tensor:
    """Return the loss of each crop of all patients as one batch."""
    images = torch.cat([images for images, _ in case.patients()]).to(dtype)
    regions = torch.cat([regions for _, regions in case.patients()])
    with mode:
        # The hooks of a first layer need a gradient of its input.
        return dice_bce(module(images.requires_grad_()), regions)


@functools.cache
def opacus_sum(case: Case, dtype: torch.dtype) -> torch.Tensor:
    """Return the clipped sum of Opacus; the mean over a patient's crops is one sample."""
    network = bearable(case.network_in(dtype))
    shapes = case.shapes(network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in shapes)
    module = DistinctLayers(network, loss_reduction="sum")
    (opacus_losses(module, case, dtype, OutOfPlace()).sum() * AHEAD).backward()
    leading = []
    for name, shape in shapes.items():
        parameter = network.get_parameter(name)
        rows = parameter.grad_sample
        if shape != tuple(parameter.shape):
            # W = W0 + B A: the gradient of B is that of W times A transposed.
            rows = rows.flatten(2) @ case.basis(name, parameter[0].numel(), dtype).T
            parameter = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
        parameter.grad_sample = rows.reshape(PATIENTS, case.crops, *shape).mean(1)
        leading.append(parameter)
    optimizer = DPOptimizer(
        torch.optim.SGD(leading, 1.0),
        noise_multiplier=0.0,
        max_grad_norm=clipping_norm(case, dtype) * AHEAD,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    optimizer.clip_and_accumulate()
    return torch.cat([p.summed_grad.reshape(-1) for p in leading]).double() / AHEAD


# What must hold.


@pytest.mark.parametrize("reference", [loop_sum, opacus_sum], ids=["loop", "opacus"])
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=_named)
def test_the_clipped_sum_is_that_of_the_reference(
    case: Case,
    dtype: torch.dtype,
    channels_last: bool,
    reference: Callable[[Case, torch.dtype], torch.Tensor],
) -> None:
    bound = clipping_norm(case, dtype)
    gradients = ours(case, dtype, channels_last=channels_last)
    assert {gradient.dtype for gradient in gradients} == {torch.float64}
    found = sum((clip(gradient, bound) for gradient in gradients), torch.zeros(()))
    expected = reference(case, dtype)
    assert (found - expected).norm() <= TOLERANCE[dtype] * expected.norm()
    # The step's own sum is cut to the grid: less than one unit for each patient and entry.
    on_grid, missing = clipped_sum(gradients, torch.zeros_like(gradients[0]), clipping_norm=bound)
    assert missing == 0
    assert (on_grid - found).abs().max() <= (PATIENTS + 1e-3) * grid(bound)


@pytest.mark.parametrize("case", WHOLE, ids=_named)
def test_a_gradient_depends_on_nobody_else(case: Case) -> None:
    broken = torch.full((2, 4, SIDE, SIDE, SIDE), math.nan), torch.zeros(2, 3, SIDE, SIDE, SIDE)
    patients = [*case.patients(), broken]
    alone = [*ours(case, torch.float32, channels_last=True), None]
    learner = Learner(case.network_in(torch.float32), case.options, ExecutionOptions(prefetch=0))
    bound = clipping_norm(case, torch.float32)
    zero = learner.zero()
    expected, missing = clipped_sum(alone, zero, clipping_norm=bound)
    assert missing == 1
    # One order is computed; the others are known when each gradient is the same to the last bit.
    order = [3, 1, 0, 2]
    drawn = [functools.partial(_given, patients[place]) for place in order]
    for place, gradient in zip(order, contributions(learner, drawn, prefetch=0), strict=True):
        one = alone[place]
        assert (gradient is None) == (one is None)
        assert gradient is None or one is None or torch.equal(gradient, one)
    for places in itertools.permutations(range(len(patients))):
        found, _ = clipped_sum([alone[place] for place in places], zero, clipping_norm=bound)
        assert torch.equal(found, expected)
    without, _ = clipped_sum(alone[:-1], zero, clipping_norm=bound)
    assert torch.equal(without, expected)


def _given(crops: Crops) -> Crops:
    return crops


# The deepest maps of BasicUNet are 2 voxels deep here. There the weight gradient of a convolution
# in bfloat16 is memory that nobody has written, on CPUs with torch 2.13.
@pytest.mark.parametrize("case", [c for c in WHOLE if c.network != "BasicUNet"], ids=_named)
def test_bfloat16_keeps_the_bound_and_the_direction(case: Case) -> None:
    execution = ExecutionOptions(precision="bfloat16", prefetch=0)
    learner = Learner(case.network_in(torch.float32), case.options, execution)
    found = [learner.gradient(crops) for crops in case.patients()]
    bound = 0.1 * min(float(gradient.norm()) for gradient in found)  # each is clipped
    total, _ = clipped_sum(found, learner.zero(), clipping_norm=bound)
    assert float(total.norm()) <= PATIENTS * bound
    exact, _ = clipped_sum(
        ours(case, torch.float32, channels_last=True), learner.zero(), clipping_norm=bound
    )
    assert torch.nn.functional.cosine_similarity(total, exact, dim=0) > 0.98


@pytest.mark.parametrize(
    "name",
    [
        "segresnet",
        "segresnet_mingru",
        *(name for name in MONAI if name.startswith("SegResNet")),
        "DynUNet",
    ],
)
def test_opacus_does_not_bear_the_network_as_it_is(name: str) -> None:
    case = Case(name, ("all",), 1)
    module = GradSampleModule(case.build(), loss_reduction="sum")
    with pytest.raises(RuntimeError, match="is being modified inplace"):
        opacus_losses(module, case, torch.float32, contextlib.nullcontext()).sum().backward()


def test_opacus_hooks_layers_of_dynunet_twice() -> None:
    case = Case("DynUNet", ("all",), 1)
    network = bearable(case.build())
    module = GradSampleModule(network, loss_reduction="sum")
    hooked = list(module.iterate_submodules(network))
    assert len(hooked) > len(set(hooked))
    losses = opacus_losses(module, case, torch.float32, OutOfPlace())
    with pytest.raises(RuntimeError, match="functorch"):
        losses.sum().backward()
    # Our reference hooks all of them, and each once.
    distinct = DistinctLayers(bearable(case.build()), loss_reduction="sum")
    assert len(list(distinct.iterate_submodules(distinct._module))) == len(set(hooked))
