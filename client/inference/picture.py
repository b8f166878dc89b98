"""The picture of a segmentation: contours on FLAIR and contrast-enhanced T1, R and L marked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from common.files import replacing
from common.regions import LABEL_COLOURS, LABEL_NAMES, LABELS

_SLICES = 4
_LINES = {"ED": 1.2, "ET": 2.4, "NCR": 1.0}
"""Width of each contour, in the order of drawing: necrosis lies on the thicker line around it."""
_TITLES = {"t2f": "FLAIR", "t1c": "T1 with contrast"}


def draw_overview(
    path: Path,
    images: Mapping[str, NDArray[np.float32]],
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    *,
    volumes: Mapping[str, float],
) -> None:
    """Write a PNG with axial slices spread over the tumour, or over the brain if there is none.

    ``images`` and ``labels`` are (X, Y, Z) on the grid ``affine``. Seen as radiologists do: the
    patient's right is on the left.
    """
    turned = {name: _las(image, affine) for name, image in images.items()}
    mask = _las(labels, affine)
    shown = _slices(mask, next(iter(turned.values())))
    width, height = _window(next(iter(turned.values())) > 0)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    order = np.abs(nib.orientations.io_orientation(affine)[:, 0].argsort())
    x_mm, y_mm, _ = spacing[order]
    figure = Figure(figsize=(3 * _SLICES, 3.2 * len(turned) + 0.7), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(turned), _SLICES, squeeze=False)
    for row, (name, image) in zip(axes, turned.items(), strict=True):
        inside = image[image > 0]
        high = float(np.percentile(inside, 99)) if inside.size else 1.0
        for panel, z in zip(row, shown, strict=True):
            panel.imshow(
                image[width, height, z].T,
                cmap="gray",
                origin="lower",
                vmin=0,
                vmax=high,
                aspect=float(y_mm / x_mm),
                interpolation="bilinear",
            )
            for label, line in _LINES.items():
                part = LABELS[label] == mask[width, height, z].T
                if np.any(part):
                    panel.contour(part, [0.5], colors=LABEL_COLOURS[label], linewidths=line)
            title = f"{_TITLES[name]}, slice {z + 1} of {image.shape[2]}"
            panel.set_title(title, color="white", fontsize=9)
            panel.text(0.02, 0.5, "R", color="white", transform=panel.transAxes, fontsize=9)
            panel.text(0.93, 0.5, "L", color="white", transform=panel.transAxes, fontsize=9)
            panel.set_axis_off()
    handles = [
        Line2D(
            [],
            [],
            color=LABEL_COLOURS[label],
            label=f"{label} ({LABEL_NAMES[label]}) {volumes[label]:.1f} mL",
        )
        for label in LABELS
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=3, labelcolor="white", frameon=False, fontsize=9
    )
    figure.text(
        0.5, 0.985, "Research use only; not reviewed", color="#ff6b6b", ha="center", va="top"
    )
    figure.tight_layout(rect=(0, 0.06, 1, 0.96))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor=figure.get_facecolor())


def _las(data: NDArray, affine: NDArray[np.float64]) -> NDArray:  # type: ignore[type-arg]
    """Turn an array so that its axes run to the left, anterior and superior."""
    source = nib.orientations.io_orientation(affine)
    target = nib.orientations.axcodes2ornt(("L", "A", "S"))
    turn = nib.orientations.ornt_transform(source, target)
    return np.asarray(nib.orientations.apply_orientation(data, turn))


def _slices(mask: NDArray[np.uint8], image: NDArray[np.float32]) -> list[int]:
    """Return ``_SLICES`` axial slices with equal shares of the tumour, or brain, between them."""
    area = ((mask if mask.any() else image) > 0).sum(axis=(0, 1))
    depth = image.shape[2]
    places = np.flatnonzero(area) if area.any() else np.arange(depth)
    shares = (np.arange(_SLICES) + 0.5) / _SLICES
    if places.size < _SLICES:  # a small tumour is shown with the slices around it
        near = sorted(range(depth), key=lambda z: int(np.abs(places - z).min()))[:_SLICES]
        return sorted(near) + [depth - 1] * (_SLICES - len(near))
    chosen = np.searchsorted(np.cumsum(area) / max(1, area.sum()), shares)
    if np.unique(chosen).size < _SLICES:
        chosen = places[(shares * places.size).astype(int)]
    return [min(int(z), depth - 1) for z in chosen]


def _window(inside: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the part of the axial plane that holds the head, with a margin for R and L."""
    window = []
    for axis, size in enumerate(inside.shape[:2]):
        places = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
        low, high = (int(places[0]), int(places[-1])) if places.size else (0, size - 1)
        margin = 2 + (high - low) // 10
        window.append(slice(max(0, low - margin), min(size, high + margin + 1)))
    return window[0], window[1]
