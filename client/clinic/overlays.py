"""The pictures of a segmentation: contours on FLAIR and contrast-enhanced T1, R and L marked.

A second picture shows, on the same slices, where the model is unsure.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from client.clinic.lesion_measurements import Diameters
from common.regions import LABEL_COLOURS, LABEL_NAMES, LABELS, MODALITY_NAMES

_SLICES: Final = 5
_LINES: Final = {"ED": 1.2, "ET": 2.4, "NCR": 1.0}
"""Width of each contour, in the order of drawing: necrosis lies on the thicker line around it."""
_TITLES: Final = {"t2f": "FLAIR", "t1c": "T1 with contrast"}
_UNREVIEWED: Final = "Research use only; not reviewed"
_UNSURE_SHOWN: Final = 0.1
"""From here on doubt is coloured."""


def overview(
    images: Mapping[str, NDArray[np.float32]],
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    *,
    volumes: Mapping[str, float],
    diameters: Diameters | None = None,
    title: str = _UNREVIEWED,
) -> bytes:
    """Return a PNG with axial slices spread over the tumour, or over the brain if there is none.

    ``images`` and ``labels`` are (X, Y, Z) on the grid ``affine``; ``title`` stands above. Seen as
    radiologists do: the patient's right is on the left. The slice of ``diameters`` is among them,
    with both drawn.
    """
    turned = {name: _las(image, affine) for name, image in images.items()}
    mask = _las(labels, affine)
    shown = _slices(mask, next(iter(turned.values())), diameters.slice - 1 if diameters else None)
    width, height = _window(next(iter(turned.values())) > 0)
    figure = Figure(figsize=(3 * _SLICES, 3.2 * len(turned) + 0.7), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(turned), _SLICES, squeeze=False)
    for row, (name, image) in zip(axes, turned.items(), strict=True):
        high = _brightest(image)
        for panel, z in zip(row, shown, strict=True):
            _draw(panel, image[width, height, z], high=high, aspect=_aspect(affine))
            for label, line in _LINES.items():
                part = LABELS[label] == mask[width, height, z].T
                if np.any(part):
                    panel.contour(part, [0.5], colors=LABEL_COLOURS[label], linewidths=line)
            if diameters is not None and z == diameters.slice - 1:
                for ends in (diameters.long_ends, diameters.across_ends):
                    x, y = _placed(ends, affine, labels.shape, (width.start, height.start))
                    panel.plot(x, y, color="white", linewidth=1, linestyle=(0, (4, 2)))
            _name(panel, f"{_TITLES[name]}, slice {z + 1} of {image.shape[2]}")
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
        handles=handles, loc="lower center", ncols=3, labelcolor="white", frameon=False, fontsize=11
    )
    return _png(figure, bottom=0.06, title=title)


def doubtful(
    images: Mapping[str, NDArray[np.float32]],
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    *,
    uncertainty: NDArray[np.float32],
    diameters: Diameters | None = None,
) -> bytes:
    """Return a PNG of ``overview``'s slices, in its last image, coloured where the model is unsure.

    ``uncertainty`` (X, Y, Z) runs from 0 (sure) to 1.
    """
    name, image = list(images.items())[-1]
    first = _las(next(iter(images.values())), affine)
    image, doubt, mask = _las(image, affine), _las(uncertainty, affine), _las(labels, affine)
    shown = _slices(mask, first, diameters.slice - 1 if diameters else None)
    width, height = _window(first > 0)
    figure = Figure(figsize=(3 * _SLICES, 4.0), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, _SLICES, squeeze=False)[0]
    for panel, z in zip(axes, shown, strict=True):
        _draw(panel, image[width, height, z], high=_brightest(image), aspect=_aspect(affine))
        part = doubt[width, height, z].T
        colours = _coloured(panel, part, aspect=_aspect(affine), cmap="plasma")
        outline = mask[width, height, z].T > 0
        if np.any(outline):
            panel.contour(outline, [0.5], colors="white", linewidths=1)
        _name(panel, f"{_TITLES[name]}, slice {z + 1} of {image.shape[2]}")
    bar = figure.colorbar(
        colours, cax=figure.add_axes((0.3, 0.12, 0.4, 0.03)), orientation="horizontal"
    )
    bar.set_ticks([0, 0.5, 1], labels=["0 sure", "50", "100 a guess"])
    bar.ax.tick_params(colors="white", labelsize=11)
    return _png(figure, bottom=0.2)


def explained(
    images: Mapping[str, NDArray[np.float32]],
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    *,
    changed: Mapping[str, NDArray[np.float32]],
    diameters: Diameters | None = None,
) -> bytes:
    """Return a PNG of one slice, a panel for each hidden sequence, coloured where it mattered.

    ``changed`` (X, Y, Z) runs from 0 to 1; the slice is that of ``diameters``, or the middle one.
    """
    image = _las(list(images.values())[-1], affine)
    mask = _las(labels, affine)
    z = diameters.slice - 1 if diameters else _slices(mask, image)[_SLICES // 2]
    width, height = _window(image > 0)
    figure = Figure(figsize=(3.5 * len(changed), 4.6), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(changed), squeeze=False)[0]
    for panel, (name, values) in zip(axes, changed.items(), strict=True):
        _draw(panel, image[width, height, z], high=_brightest(image), aspect=_aspect(affine))
        part = _las(values, affine)[width, height, z].T
        colours = _coloured(panel, part, aspect=_aspect(affine), cmap="viridis")
        outline = mask[width, height, z].T > 0
        if np.any(outline):
            panel.contour(outline, [0.5], colors="white", linewidths=1)
        _name(panel, f"{MODALITY_NAMES[name]} hidden, slice {z + 1}")
    bar = figure.colorbar(
        colours, cax=figure.add_axes((0.3, 0.12, 0.4, 0.03)), orientation="horizontal"
    )
    bar.set_ticks([0, 0.5, 1], labels=["0 no change", "50", "100 another answer"])
    bar.ax.tick_params(colors="white", labelsize=11)
    return _png(figure, bottom=0.2, columns=len(changed))


def _coloured(panel: Any, part: NDArray[np.float32], *, aspect: float, cmap: str) -> Any:
    return panel.imshow(
        np.ma.masked_less(part, _UNSURE_SHOWN),
        cmap=cmap,
        origin="lower",
        vmin=0,
        vmax=1,
        alpha=0.75,
        aspect=aspect,
        interpolation="nearest",
    )


def _draw(panel: Any, plane: NDArray[np.float32], *, high: float, aspect: float) -> None:
    panel.imshow(
        plane.T,
        cmap="gray",
        origin="lower",
        vmin=0,
        vmax=high,
        aspect=aspect,
        interpolation="bilinear",
    )


def _name(panel: Any, title: str) -> None:
    panel.set_title(title, color="white", fontsize=11)
    panel.text(0.02, 0.5, "R", color="white", transform=panel.transAxes, fontsize=13)
    panel.text(0.93, 0.5, "L", color="white", transform=panel.transAxes, fontsize=13)
    panel.set_axis_off()


def _png(
    figure: Figure, *, bottom: float, title: str = _UNREVIEWED, columns: int = _SLICES
) -> bytes:
    figure.text(
        0.5,
        0.985,
        title,
        color="#ff6b6b",
        ha="center",
        va="top",
        fontsize=12,
    )
    panels = [one for one in figure.axes if one.get_title()]
    height = figure.get_size_inches()[1]
    rows = len(panels) // columns
    figure.subplots_adjust(
        left=0.005,
        right=0.995,
        bottom=bottom,
        top=1 - 0.62 / height,
        wspace=0.02,
        hspace=0.28 / (height / rows),
    )
    file = io.BytesIO()
    figure.savefig(
        file, format="png", dpi=110, facecolor=figure.get_facecolor(), metadata={"Software": None}
    )
    return file.getvalue()


def _brightest(image: NDArray[np.float32]) -> float:
    inside = image[image > 0]
    return float(np.percentile(inside, 99)) if inside.size else 1.0


def _aspect(affine: NDArray[np.float64]) -> float:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    order = np.abs(nib.orientations.io_orientation(affine)[:, 0].argsort())
    x_mm, y_mm, _ = spacing[order]
    return float(y_mm / x_mm)


def _placed(
    ends: Sequence[Sequence[float]],
    affine: NDArray[np.float64],
    shape: tuple[int, ...],
    corner: tuple[int, int],
) -> tuple[list[float], list[float]]:
    """Return where points in mm of the world lie in a panel whose window begins at ``corner``."""
    source = nib.orientations.io_orientation(affine)
    turn = nib.orientations.ornt_transform(source, nib.orientations.axcodes2ornt(("L", "A", "S")))
    turned = affine @ nib.orientations.inv_ornt_aff(turn, shape)
    voxels = apply_affine(np.linalg.inv(turned), np.asarray(ends, np.float64))
    return list(voxels[:, 0] - corner[0]), list(voxels[:, 1] - corner[1])


def _las(data: NDArray, affine: NDArray[np.float64]) -> NDArray:  # type: ignore[type-arg]
    """Turn an array so that its axes run to the left, anterior and superior."""
    source = nib.orientations.io_orientation(affine)
    target = nib.orientations.axcodes2ornt(("L", "A", "S"))
    turn = nib.orientations.ornt_transform(source, target)
    return np.asarray(nib.orientations.apply_orientation(data, turn))


def _slices(
    mask: NDArray[np.uint8], image: NDArray[np.float32], must: int | None = None
) -> list[int]:
    """Return ``_SLICES`` axial slices with equal shares of the tumour, or brain, between them.

    ``must`` takes the place of the nearest of them.
    """
    chosen = _spread(mask, image)
    if must is not None and must not in chosen:
        nearest = min(range(_SLICES), key=lambda one: abs(chosen[one] - must))
        chosen[nearest] = must
    return sorted(chosen)


def _spread(mask: NDArray[np.uint8], image: NDArray[np.float32]) -> list[int]:
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
