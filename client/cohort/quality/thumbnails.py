"""A case in one small picture: three slices of each sequence, with the outline of the mask.

In place of a sequence that the case lacks it says "missing".

Seen as radiologists do: the patient's right is on the left.
"""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from client.imaging.missing_sequences import present
from client.imaging.preprocessing import Prepared
from common.regions import LABEL_COLOURS, LABELS, MODALITIES

_TILE: Final = 128
_PLACES: Final = (0.35, 0.5, 0.65)
"""Of the tumour's height, or of the brain's without one, where the slices are."""

_WINDOW: Final = (-1.5, 2.5)
"""Z-scores that are shown black and white."""


def thumbnail(prepared: Prepared) -> bytes:
    """Return a PNG: a row for each slice, a column for each sequence in the order of MODALITIES."""
    shown = prepared.labels if prepared.labels is not None and prepared.labels.any() else None
    where = (prepared.image != 0).any(axis=0) if shown is None else shown > 0
    heights = np.flatnonzero(where.any(axis=(0, 1)))
    there = present(prepared.image)
    rows = []
    for place in _PLACES:
        z = int(heights[min(len(heights) - 1, int(place * len(heights)))])
        tiles = [
            _tile(prepared.image[channel, :, :, z], None if shown is None else shown[:, :, z])
            if there[channel]
            else _missing(name)
            for channel, name in enumerate(MODALITIES)
        ]
        rows.append(np.concatenate(tiles, axis=1))
    file = io.BytesIO()
    Image.fromarray(np.concatenate(rows, axis=0)).save(file, "PNG")
    return file.getvalue()


def _tile(plane: NDArray[np.float32], labels: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Return (_TILE, _TILE, 3) of an axial plane (X, Y) that runs to the right and forward."""
    scale = _TILE / max(plane.shape)
    low, high = _WINDOW
    grey = np.where(plane == 0, 0.0, np.clip((plane - low) / (high - low), 0, 1))
    picture = np.repeat(_fitted(grey, scale)[:, :, None], 3, axis=2)
    if labels is not None:
        for name, value in LABELS.items():
            part = _fitted((labels == value), scale) > 0.5
            edge = part & ~ndimage.binary_erosion(part)
            picture[edge] = to_rgb(LABEL_COLOURS[name])
    turned = picture[::-1].swapaxes(0, 1)[::-1]  # right to the left, front to the top
    canvas = np.zeros((_TILE, _TILE, 3), np.uint8)
    height, width = turned.shape[:2]
    top, left = (_TILE - height) // 2, (_TILE - width) // 2
    canvas[top : top + height, left : left + width] = np.round(255 * np.clip(turned, 0, 1))
    return canvas


def _missing(name: str) -> NDArray[np.uint8]:
    """Return (_TILE, _TILE, 3) that says that the sequence ``name`` is missing."""
    tile = Image.new("RGB", (_TILE, _TILE))
    middle = (_TILE // 2, _TILE // 2)
    ImageDraw.Draw(tile).text(middle, f"{name}: missing", fill=(180, 180, 180), anchor="mm")
    return np.asarray(tile, np.uint8)


def _fitted(plane: NDArray[Any], scale: float) -> NDArray[np.float64]:
    zoomed = ndimage.zoom(np.asarray(plane, np.float64), scale, order=1)
    return zoomed[:_TILE, :_TILE]
