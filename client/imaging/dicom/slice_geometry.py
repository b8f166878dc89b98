"""Whether the slices of a series are one whole volume: highdicom's rules, in words for a person.

Pure: positions in, the fault out. A slice that is missing at an end leaves a regular volume; the
numbers of the instances and what the scanner or the archive promised are then the only witness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from highdicom.spatial import get_volume_positions

from client.imaging.dicom.headers import Instance, Slice

REGULAR_MM: Final = 0.05
"""How far the distance of two slices may be from the others'; positions are written rounded."""

SAME_DIRECTION: Final = 1e-4
_SAME_PLACE_MM: Final = 1e-3
_MANY: Final = 4


class Fault(NamedTuple):
    """Why a series is not one whole volume; ``code`` may leave the hospital, ``text`` not."""

    code: str
    text: str


def fault(slices: Sequence[Slice]) -> Fault | None:
    """Return why ``slices`` are no regular volume; None when they are one."""
    positions = [one.position for one in slices if one.position is not None]
    turns = [one.orientation for one in slices if one.orientation is not None]
    if len(positions) < len(slices) or len(turns) < len(slices):
        return Fault("case-orientation", "does not say where its slices lie in the patient")
    if not all(_is_orientation(turn) for turn in set(turns)):
        return Fault("case-orientation", "names directions of rows and columns that cannot be")
    if len(directions(slices)) > 1:
        return Fault("case-orientation", "holds slices of several orientations")
    if len(slices) < 2:
        return Fault("case-slices", "holds a single slice")
    return _spacing_fault(np.array(positions), np.array(turns[0]))


def directions(slices: Sequence[Slice]) -> list[tuple[float, ...]]:
    """Return the orientations of ``slices``, each once, up to rounding."""
    found: list[tuple[float, ...]] = []
    for turn in dict.fromkeys(one.orientation for one in slices if one.orientation):
        if all(np.abs(np.subtract(turn, known)).max() > SAME_DIRECTION for known in found):
            found.append(turn)
    return found


def missing_end(instances: Sequence[Instance]) -> str:
    """Return what says that slices are missing at an end, "" when nothing does."""
    if any(one.enhanced for one in instances):
        return ""
    count = len(instances)
    promised = max((one.promised or 0 for one in instances), default=0)
    if count < promised <= count + max(1, count // _MANY):
        return f"holds {count} slices where {promised} were made"
    numbers = sorted(one.number for one in instances if one.number is not None)
    if len(numbers) < count or len(set(numbers)) < count or count < 2:
        return ""
    first, step = numbers[0], numbers[1] - numbers[0]
    even = all(b - a == step for a, b in pairwise(numbers))
    if even and step == 1 and 1 < first <= 1 + max(1, count // _MANY):
        return f"begins with image {first}: {first - 1} before it are missing"
    if not even and numbers[-1] - first + 1 <= count + max(1, count // _MANY):
        return f"lacks {numbers[-1] - first + 1 - count} of the images {first} to {numbers[-1]}"
    return ""


def _is_orientation(turn: tuple[float, ...]) -> bool:
    rows, columns = np.array(turn[:3]), np.array(turn[3:])
    lengths = np.linalg.norm(rows), np.linalg.norm(columns)
    return bool(np.allclose(lengths, 1, atol=1e-2) and abs(rows @ columns) < 1e-2)


def _spacing_fault(positions: np.ndarray, turn: np.ndarray) -> Fault | None:
    spacing, _ = get_volume_positions(positions.tolist(), turn.tolist(), atol=REGULAR_MM)
    if spacing is not None and spacing > _SAME_PLACE_MM:
        return None
    along = positions @ np.cross(turn[:3], turn[3:])
    order = np.argsort(along)
    gaps = np.diff(along[order])
    if (gaps < _SAME_PLACE_MM).any():
        counts = Counter(np.round(along / _SAME_PLACE_MM).astype(int).tolist())
        times = set(counts.values())
        if len(times) == 1 and times != {1}:
            return Fault(
                "case-volumes", f"holds {times.pop()} volumes and does not tell them apart"
            )
        return Fault("case-slices", f"holds {(gaps < _SAME_PLACE_MM).sum()} slices twice")
    usual = float(np.median(gaps))
    lost = np.round(gaps / usual) - 1
    if (lost > 0).any() and np.allclose(gaps, (lost + 1) * usual, atol=2 * REGULAR_MM):
        return Fault("case-slices", f"lacks {int(lost.sum())} of the slices in its middle")
    if np.abs(gaps - usual).max() > REGULAR_MM:
        low, high = gaps.min(), gaps.max()
        return Fault("case-slices", f"has slices {low:.2f} to {high:.2f} mm apart, not evenly")
    return Fault("case-slices", "has slices that are shifted against each other")
