"""What one patient gives to one step: random crops of their scans.

Invariants: all chance comes from the generator that is handed in, and what is drawn of a patient
depends on nothing but that generator, the patient and the options.

Out of scope: who is drawn (``client.training.loop``, ``client.privacy.dp_sgd``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from client.imaging.missing_sequences import blank, present, sparser
from client.training.augmentation import Turn, mirrored, recoloured
from common.errors import CaseError
from common.regions import labels_to_regions
from common.study.protocol import TrainingOptions


class PreparedCase(Protocol):
    """What training reads of a prepared case."""

    @property
    def image(self) -> NDArray[np.float32]:
        """Normalised image, (4, X, Y, Z), 0 outside the brain."""

    @property
    def labels(self) -> NDArray[np.uint8] | None:
        """Label map, (X, Y, Z)."""


Patient = Sequence[Callable[[], PreparedCase]]
"""One loader for each scan session of a patient, called when that scan is drawn."""

Crops = tuple[torch.Tensor, torch.Tensor]
"""Images (K, 4, *crop) float32 and regions (K, 3, *crop) uint8, on one device."""


def draw_crops(
    case: PreparedCase,
    options: TrainingOptions,
    rng: np.random.Generator,
    *,
    count: int | None = None,
    device: str = "cpu",
) -> Crops:
    """Return ``count`` random crops of a case, ``crops_per_patient`` by default, on ``device``.

    With ``foreground_probability`` a crop is centred on a random tumour voxel, if there is one,
    else its place is uniform. Where the volume is smaller than the crop, zeros fill up. With
    ``sequence_dropout`` a crop lacks some of its sequences, drawn anew, as a case may lack them;
    of a case that lacks some already, more of them, where one may still be spared.

    Raises CaseError for a case without labels.
    """
    count = options.crops_per_patient if count is None else count
    labels = case.labels
    if labels is None:
        raise CaseError(
            "A case without a label map cannot be trained on.",
            do="Add its label map or leave the case out of the cohort.",
            code="case-unlabelled",
        )
    tumour = np.flatnonzero(labels)
    drawn = []
    for _ in range(count):
        centre: Sequence[np.intp] | None = None
        if tumour.size and rng.random() < options.foreground_probability:
            centre = np.unravel_index(rng.choice(tumour), labels.shape)
        start = _start(labels.shape, options.crop_size, centre, rng)
        turn = Turn.draw(rng) if options.augmentation == "full" else None
        margin = turn.margin(options.crop_size) if turn else (0, 0, 0)
        box, inside = _box(case.image, labels, start, options.crop_size, margin)
        if options.augmentation == "light":
            _augment(box, inside, rng)
        if options.sequence_dropout and rng.random() < options.sequence_dropout:
            ways = sparser(tuple(present(box).tolist()))
            if ways:
                blank(box, ways[rng.integers(len(ways))])
        image, regions = torch.from_numpy(box).to(device), torch.from_numpy(inside).to(device)
        if turn:
            image, regions = turn.apply(image, regions, options.crop_size)
        if options.augmentation == "full":
            image, regions = mirrored(recoloured(image, rng), regions, rng)
        drawn.append((image, regions))
    images, masks = zip(*drawn, strict=True)
    return torch.stack(images), torch.stack(masks)


def _start(
    shape: Sequence[int],
    crop: Sequence[int],
    centre: Sequence[np.intp] | None,
    rng: np.random.Generator,
) -> tuple[int, ...]:
    """Return where in a volume a crop begins; below 0 where the volume is smaller than the crop."""
    start = []
    for axis, (size, wanted) in enumerate(zip(shape, crop, strict=True)):
        spare = size - wanted
        if spare < 0:
            start.append(-((wanted - size) // 2))
        elif centre is None:
            start.append(int(rng.integers(0, spare + 1)))
        else:
            start.append(min(max(int(centre[axis]) - wanted // 2, 0), spare))
    return tuple(start)


def _box(
    image: NDArray[np.float32],
    labels: NDArray[np.uint8],
    start: Sequence[int],
    crop: Sequence[int],
    margin: Sequence[int],
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return a box of the case as image and regions, with zeros where it is beyond the volume."""
    sides = [wanted + 2 * beyond for wanted, beyond in zip(crop, margin, strict=True)]
    source, target = [], []
    for size, first, side, beyond in zip(labels.shape, start, sides, margin, strict=True):
        begin = first - beyond
        low, high = max(begin, 0), min(begin + side, size)
        source.append(slice(low, high))
        target.append(slice(low - begin, high - begin))
    box = np.zeros((len(image), *sides), np.float32)
    regions = np.zeros((3, *sides), np.uint8)
    box[:, *target] = image[:, *source]
    regions[:, *target] = labels_to_regions(labels[*source])
    return box, regions


def _augment(
    image: NDArray[np.float32], region: NDArray[np.uint8], rng: np.random.Generator
) -> None:
    """Flip, rescale, shift and add noise, in place; outside the brain and what is absent stay."""
    axes = tuple(axis for axis in (1, 2, 3) if rng.random() < 0.5)
    image[...] = np.flip(image, axes)
    region[...] = np.flip(region, axes)
    brain = (image != 0).any(axis=0)
    scale = rng.uniform(0.9, 1.1, (4, 1)).astype(np.float32)
    shift = rng.uniform(-0.1, 0.1, (4, 1)).astype(np.float32)
    values = image[:, brain] * scale + shift
    values += rng.uniform(0, 0.1) * rng.standard_normal(values.shape, np.float32)
    for channel in np.flatnonzero(present(image)):
        image[channel, brain] = values[channel]


def draw_patient(
    patient: Patient, options: TrainingOptions, rng: np.random.Generator, *, device: str = "cpu"
) -> Crops:
    """Return ``crops_per_patient`` crops, each from a random one of the patient's scans.

    Raises CaseError if a scan cannot be read.
    """
    drawn = rng.integers(0, len(patient), options.crops_per_patient)
    scans, counts = np.unique(drawn, return_counts=True)
    parts = [
        draw_crops(patient[scan](), options, rng, count=int(count), device=device)
        for scan, count in zip(scans, counts, strict=True)
    ]
    return torch.cat([images for images, _ in parts]), torch.cat([regions for _, regions in parts])
