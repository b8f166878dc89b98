"""Sequences as a scanner wrote them: freed of bias, laid over each other, the brain found.

N4 on each sequence, each registered rigidly to the contrast-enhanced T1, the brain found in a
T1-weighted image at 1 mm. Without contrast-enhanced T1 the FLAIR takes its place, and without any
T1 the brain is sought in the FLAIR, where fluid is dark as in a T1: that was measured on phantoms
(`python -m tests.benchmarks missing_sequences`) and is warned of. Nothing is resampled here but for
the brain's sake: what the network sees is sampled once, from the corrected images through the found
motions (``client.imaging.preprocessing``). Results go back to the grid of that reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray
from scipy import ndimage

from client.imaging import grid, plausibility
from client.imaging.bias_field import correct_bias
from client.imaging.brain_extraction import METHOD, SPACING_MM, extract_brain
from client.imaging.missing_sequences import NEEDED
from client.imaging.nifti import Volume
from client.imaging.registration import register
from common.errors import CaseError
from common.regions import MODALITIES

_T1: Final = ("t1n", "t1c")  # in which the brain is looked for, the better first
_SIDE_BY_SIDE: Final = 2  # sequences at a time; SimpleITK computes without Python's lock
_LEAST_VOXELS: Final = 8
_LEAST_FIELD_MM: Final = 60.0
_CUT_VOXELS: Final = 1000  # of brain at the border of a field of view: 10 cm2 at 1 mm


@dataclass(frozen=True, eq=False)
class Aligned:
    """Sequences that can be sampled as one head.

    ``name`` is that of the reference, ``volumes`` are on their own grids, RAS; ``motions[name]``
    (4, 4) takes a point of the reference's world to that sequence's, and is absent where the
    sequence shares the reference's grid; ``brain`` lies on that grid.
    """

    name: str
    volumes: Mapping[str, Volume]
    motions: Mapping[str, grid.Affine]
    brain: NDArray[np.bool_]
    history: tuple[dict[str, Any], ...]

    @property
    def reference(self) -> Volume:
        return self.volumes[self.name]

    @property
    def moved(self) -> tuple[str, ...]:
        """The sequences that have a grid of their own."""
        return tuple(self.motions)


def align(volumes: Mapping[str, Volume], titles: Mapping[str, str], case: str) -> Aligned:
    """Return the sequences of ``case``, aligned; ``titles`` are what messages call them.

    The reference is the first of ``absence.NEEDED`` that is there.

    Raises CaseError: ``case-affine`` (sheared axes), ``case-coverage`` (a slab), or what
    ``plausibility`` and ``extract_brain`` raise.
    """
    names = [name for name in MODALITIES if name in volumes]
    first = next(name for name in NEEDED if name in volumes)
    for name in names:
        _check(volumes[name], titles[name])
    history: list[dict[str, Any]] = []
    warnings: list[str] = []
    corrected: dict[str, Volume] = {}
    motions: dict[str, grid.Affine] = {}
    others = [name for name in names if name != first]
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        turned = (_canonical(volumes[name]) for name in names)
        for name, (volume, record) in zip(names, pool.map(correct_bias, turned), strict=True):
            corrected[name] = volume
            axes = "".join(aff2axcodes(volumes[name].affine))
            history += [
                {"step": "reorient", "sequence": name, "from": axes, "to": "RAS"},
                {**record, "sequence": name},
            ]
        reference = corrected[first]
        moving = (corrected[name] for name in others)
        for name, found in zip(others, pool.map(partial(register, reference), moving), strict=True):
            warnings += plausibility.judge_registration(name, titles[name], found, reference=first)
            motions[name] = found.matrix
            history.append({**found.record(), "sequence": name, "to": first})
    brain, source = _brain(corrected, motions, first)
    spacing_mm = grid.spacing_of(reference.affine)
    warnings += plausibility.judge_brain(brain, spacing_mm, case, source=source, reference=first)
    covered = {}
    for name in names:
        seen = grid.within(
            through(corrected[name], motions.get(name), reference.affine),
            corrected[name].data.shape,
            brain.shape,
        )
        covered[name] = np.count_nonzero(seen & brain) / np.count_nonzero(brain)
        warnings += plausibility.judge_coverage(name, titles[name], covered[name])
    history += [
        {
            "step": "brain",
            "method": METHOD,
            "sequence": source,
            "volume_ml": round(float(np.count_nonzero(brain) * np.prod(spacing_mm)) / 1000, 1),
        },
        {
            "step": "quality",
            "covered": {name: round(share, 4) for name, share in covered.items()},
            "warnings": warnings,
        },
    ]
    return Aligned(first, corrected, motions, brain, tuple(history))


def through(volume: Volume, motion: grid.Affine | None, target: grid.Affine) -> grid.Affine:
    """Return what takes an index of the grid ``target``, in the reference's world, to ``volume``'s.

    The one composed transform of each sequence. Without ``motion`` it did not move.
    """
    moved = target if motion is None else motion @ target
    result: grid.Affine = np.linalg.inv(volume.affine) @ moved
    return result


def _canonical(volume: Volume) -> Volume:
    data = np.ascontiguousarray(grid.to_canonical(volume.data, volume.affine), np.float32)
    return Volume(data, grid.canonical_affine(volume.affine, volume.data.shape))


def _check(volume: Volume, title: str) -> None:
    axes = volume.affine[:3, :3] / grid.spacing_of(volume.affine)
    shear = np.abs(axes.T @ axes - np.eye(3)).max()
    if shear > 1e-3:
        raise CaseError(
            f"{title} has axes that are not at right angles (by up to {shear:.3g}).",
            do="Use the image as the scanner wrote it, not one that was warped to a template.",
            code="case-affine",
        )
    field_mm = np.array(volume.data.shape) * grid.spacing_of(volume.affine)
    if min(volume.data.shape) < _LEAST_VOXELS or field_mm.min() < _LEAST_FIELD_MM:
        raise CaseError(
            f"{title} is a slab of {'x'.join(map(str, volume.data.shape))} voxels, "
            f"{field_mm.min():.0f} mm thick: it cannot show a brain.",
            do="Choose a series that covers the head, not a localiser.",
            code="case-coverage",
        )


def _brain(
    volumes: Mapping[str, Volume], motions: Mapping[str, grid.Affine], first: str
) -> tuple[NDArray[np.bool_], str]:
    """Return the brain on the grid of the reference ``first``, and in which sequence it is."""
    reference = volumes[first]
    fine = grid.Resampling(reference.data.shape, reference.affine, SPACING_MM)
    # Contrast agent brightens dura and scalp, which are then taken for brain; the plain T1 is
    # better, even with thick slices, unless its field of view ends within the brain.
    for source in [name for name in _T1 if name in volumes] or ["t2f"]:
        volume = volumes[source]
        to_volume = through(volume, motions.get(source), fine.affine)
        image = grid.sample(volume.data, to_volume, fine.shape, smooth=True, outside=0.0)
        brain = extract_brain(image)
        unseen = ~grid.within(to_volume, volume.data.shape, fine.shape)
        if np.count_nonzero(ndimage.binary_dilation(unseen) & brain) < _CUT_VOXELS:
            break
    if not fine.changes:
        return brain, source
    back = np.linalg.inv(fine.affine) @ reference.affine
    seen = grid.sample(brain.astype(np.float32), back, reference.data.shape, smooth=False)
    return seen >= 0.5, source
