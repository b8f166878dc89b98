"""The regions' probabilities of a whole volume, from one network or several.

Only the box that holds the brain is looked at: elsewhere there is no tumour, and in a BraTS volume
that is about three quarters. A box larger than the crops that the network was trained on is seen
through windows, those without brain left out. Logits are averaged, over windows with Gaussian
weights, over mirrored views and over networks, as nnU-Net does, and become probabilities last.

``ExecutionOptions`` change speed and rounding alone. Out of scope: what is made of probabilities
(``client.segmentation.postprocessing``), whether they are true
(``client.segmentation.calibration``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.imaging.grid import Box, bounding_box
from client.networks.padding import PaddedNetwork
from client.segmentation.sliding_window import Shape, gaussian, window_shape, windows
from client.site.execution import ExecutionOptions, computing, slow_alone
from common.regions import REGIONS
from common.study.segmentation_options import AXES, DEFAULT_PREDICTION, PredictionOptions

_AT_ONCE: Final = 4
"""Windows in a batch on an accelerator."""

_IN_PAIRS: Final = 64**3
"""Voxels of a window up to which a CPU is faster with two; more take memory for nothing."""

Networks = torch.nn.Module | Sequence[torch.nn.Module]
"""One network, or several that predict together."""

View = tuple[int, ...]
"""Axes of a batch (B, C, X, Y, Z) along which it is flipped."""

Forward = Callable[[torch.Tensor], torch.Tensor]


def predict(
    networks: Networks,
    image: NDArray[np.float32],
    *,
    crop_size: Shape,
    execution: ExecutionOptions,
    options: PredictionOptions = DEFAULT_PREDICTION,
) -> NDArray[np.float32]:
    """Return each region's probability, (3, X, Y, Z) float32, for an image (4, X, Y, Z).

    Outside the brain, where every channel is 0, it is 0. The networks are moved to the device and
    left in the mode in which they came.
    """
    members = [networks] if isinstance(networks, torch.nn.Module) else list(networks)
    probabilities = np.zeros((len(REGIONS), *image.shape[1:]), np.float32)
    brain = (image != 0).any(axis=0)
    if not brain.any():
        return probabilities
    box = bounding_box(brain, (0, 0, 0))
    brain = brain[box]
    volume = torch.from_numpy(image[:, *box])
    shape: Shape = brain.shape
    window = window_shape(shape, crop_size)
    looks = [one for one in windows(shape, window, overlap=options.overlap) if brain[one].any()]
    found = torch.zeros((len(REGIONS), *shape))
    with computing(execution):
        for network in members:
            with _ready(network, execution) as forward, torch.inference_mode():
                _add(found, volume, looks, window, _mirrored(forward, options), execution)
        found.div_(len(members)).sigmoid_()
    found[:, torch.from_numpy(~brain)] = 0
    probabilities[:, *box] = found.numpy()
    return probabilities


def _add(
    total: torch.Tensor,
    volume: torch.Tensor,
    looks: Sequence[Box],
    window: Shape,
    forward: Forward,
    execution: ExecutionOptions,
) -> None:
    """Add the network's logits of ``volume``, joined over ``looks``, to ``total``."""
    if len(looks) == 1 and window == tuple(volume.shape[1:]):
        total += forward(volume[None])[0]
        return
    weight = torch.from_numpy(gaussian(window))
    weights = torch.zeros(total.shape[1:])
    for look in looks:
        weights[look] += weight
    # Where no window looks there is no brain; the weight must only not be 0.
    weights[weights == 0] = 1
    at_once = _AT_ONCE
    if execution.kind == "cpu":
        at_once = 2 if math.prod(window) <= _IN_PAIRS else 1
    for first in range(0, len(looks), at_once):
        some = looks[first : first + at_once]
        for look, logits in zip(
            some, forward(torch.stack([volume[:, *look] for look in some])), strict=True
        ):
            total[:, *look] += logits.mul_(weight).div_(weights[look])


def _mirrored(forward: Forward, options: PredictionOptions) -> Forward:
    """Return ``forward`` averaged over the views of ``options``."""
    views: list[View] = [
        tuple(2 + AXES.index(axis) for axis in some)
        for count in range(len(options.mirrors) + 1)
        for some in itertools.combinations(options.mirrors, count)
    ]

    def averaged(images: torch.Tensor) -> torch.Tensor:
        total = forward(images)
        for view in views[1:]:
            total += forward(images.flip(view)).flip(view)
        return total.div_(len(views))

    return forward if len(views) == 1 else averaged


@contextmanager
def _ready(network: torch.nn.Module, execution: ExecutionOptions) -> Iterator[Forward]:
    """Yield what gives a network's logits in float32 on the CPU for images there."""
    training = network.training
    network.to(execution.device).eval()
    kind = next(network.parameters()).dtype
    factor = network.factor if isinstance(network, PaddedNetwork) else 1
    layout = torch.contiguous_format
    if execution.channels_last:
        layout = torch.channels_last_3d
    network.to(memory_format=layout)  # type: ignore[call-overload]

    def forward(images: torch.Tensor) -> torch.Tensor:
        x, y, z = images.shape[2:]
        # Padded here, not by the network: that would be another copy of the whole brain.
        laid = torch.empty(
            (*images.shape[:2], *(-(-n // factor) * factor for n in (x, y, z))),
            dtype=kind,
            device=execution.device,
            memory_format=layout,
        ).zero_()
        laid[..., :x, :y, :z] = images
        if execution.prediction_precision == "float32" and slow_alone(laid):
            laid = torch.cat([laid, laid])
        with torch.autocast(
            torch.device(execution.device).type,
            torch.bfloat16,
            enabled=execution.prediction_precision == "bfloat16",
        ):
            logits: torch.Tensor = network(laid)
        return logits[: len(images), :, :x, :y, :z].float().cpu()

    try:
        yield forward
    finally:
        network.train(training)
