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
_TITLES = {"t2f": "FLAIR", "t1c": "T1 with contrast"}


def draw_overview(
    path: Path,
    images: Mapping[str, NDArray[np.float32]],
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    *,
    volumes: Mapping[str, float],
) -> None:
    """Write a PNG with the axial slices that show most tumour, or the middle ones if none does.

    ``images`` and ``labels`` are (X, Y, Z) on the grid ``affine``. Seen as radiologists do: the
    patient's right is on the left.
    """
    turned = {name: _las(image, affine) for name, image in images.items()}
    mask = _las(labels, affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    order = np.abs(nib.orientations.io_orientation(affine)[:, 0].argsort())
    x_mm, y_mm, _ = spacing[order]
    figure = Figure(figsize=(3 * _SLICES, 3.2 * len(turned) + 0.7), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(turned), _SLICES, squeeze=False)
    for row, (name, image) in zip(axes, turned.items(), strict=True):
        inside = image[image > 0]
        high = float(np.percentile(inside, 99.5)) if inside.size else 1.0
        for panel, z in zip(row, _slices(mask, image), strict=True):
            panel.imshow(
                image[:, :, z].T,
                cmap="gray",
                origin="lower",
                vmin=0,
                vmax=high,
                aspect=float(y_mm / x_mm),
                interpolation="bilinear",
            )
            for label, value in LABELS.items():
                part = value == mask[:, :, z].T
                if np.any(part):
                    panel.contour(part, [0.5], colors=LABEL_COLOURS[label], linewidths=1.2)
            panel.set_title(f"{_TITLES[name]}, slice {z + 1}", color="white", fontsize=9)
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
    """Return ``_SLICES`` axial slices spread over the tumour, or over the brain without one."""
    shown = (mask if mask.any() else image > 0).any(axis=(0, 1))
    places = np.flatnonzero(shown)
    if not places.size:
        places = np.arange(image.shape[2])
    shares = (np.arange(_SLICES) + 0.5) / _SLICES
    return [int(places[int(share * len(places))]) for share in shares]
