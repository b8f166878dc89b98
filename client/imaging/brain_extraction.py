"""Where the brain is in a head: deepbet's two networks, read from the wheel that carries them.

One network finds the brain's box in the whole field, the other its outline in that box (Fisch et
al. 2024, "deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural Networks").
Only the weights are used (MIT): the package itself imports libraries under the LGPL and a graphical
toolkit, and is never imported here. Invariant: the weights are those that were proven, by SHA-256;
nothing is downloaded. Runs on the CPU in float32 with the same number of threads wherever it
runs, so that a mask does not depend on which device a hospital has, or what it set for it.

Out of scope: whether the mask can be believed (``plausibility``).
"""

from __future__ import annotations

import hashlib
import warnings
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.networks.cpu_threads import THREADS, computing_with
from common.errors import CaseError, StateError

METHOD: Final = "deepbet 1.0.2"
SPACING_MM: Final = 1.0
"""The resolution that the networks were trained for, about."""

_WEIGHTS: Final = {
    "bbox_model.pt": "39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa",
    "model.pt": "de8ee7c69654d0dd3935dc4a5d84571d8ecf4637a6bfc01df399c4c2bc86e0fd",
}
_COARSE: Final = (128, 128, 128)
_FINE: Final = (256, 256, 256)
_MARGIN: Final = 0.1  # of the box's side, at either end
_LEAST: Final = 0.02  # of a plane: less of it is no part of the brain's box


def extract_brain(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the brain in a T1-weighted ``image`` (X, Y, Z), RAS, spacing about 1 mm.

    Takes about 1.3 GB. Raises CaseError (code ``case-brain``) when there is none, StateError when
    the weights are not installed as they should be.
    """
    import torch
    from torch.nn import functional

    def resized(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return functional.interpolate(values[None, None], shape, mode="nearest-exact")[0, 0]

    whole = torch.from_numpy(np.ascontiguousarray(image))
    coarse = resized(whole, _COARSE)
    low, high = (float(x) for x in np.quantile(coarse.numpy(), (0.005, 0.995)))
    if not high > low:
        raise _no_brain("it is the same everywhere")
    with computing_with(THREADS), torch.inference_mode():
        likely = _network("bbox_model.pt")(_normalised(coarse, low, high)[None, None])[0, 1]
        box = _box(_largest((likely > 0.5).numpy()), image.shape)
        part = resized(whole[box], _FINE)
        found = _network("model.pt")(_normalised(part, low, high)[None, None])[0, 1]
        found = resized(found, tuple(side.stop - side.start for side in box))
    brain = np.zeros(image.shape, bool)
    brain[box] = ndimage.binary_fill_holes(_largest((found > 0.5).numpy()))
    return brain


def _normalised(values: Any, low: float, high: float) -> Any:
    """Scale as the networks were trained: clipped, then mean 0.449 and deviation 0.226."""
    values = ((values - low) / (high - low)).clamp(min=0, max=1)
    return 0.226 * (values - values.mean()) / values.std() + 0.449


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count == 0:
        raise _no_brain("nothing in it looks like one")
    largest: NDArray[np.bool_] = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    return largest


def _box(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    """Return the box of ``mask`` with a margin, in voxels of an image of ``shape``."""
    box = []
    for axis, size in enumerate(shape):
        others = tuple(other for other in range(3) if other != axis)
        hit = np.flatnonzero(mask.mean(axis=others) > _LEAST)
        if hit.size == 0:
            raise _no_brain("what looks like one is tiny")
        scale = size / mask.shape[axis]
        middle = round(scale * (hit[-1] + 1 + hit[0]) / 2)
        half = round((1 + 2 * _MARGIN) * scale * (hit[-1] + 1 - hit[0])) / 2
        box.append(slice(max(0, int(middle - half)), min(size, int(middle + half))))
    return box[0], box[1], box[2]


def _no_brain(why: str) -> CaseError:
    return CaseError(
        f"No brain was found in the head: {why}.",
        do="Look at the T1-weighted series in a viewer, or the FLAIR if there is none: is it a "
        "whole head, and of that weighting?",
        code="case-brain",
    )


@lru_cache(maxsize=2)
def _network(name: str) -> Any:
    """Load one of the networks; raise StateError unless it is the one that was proven."""
    import torch

    spec = find_spec("deepbet")
    path = None if spec is None or spec.origin is None else Path(spec.origin).parents[1]
    path = path and path / "data" / "models" / name
    if path is None or not path.is_file():
        fault = "is not installed"
    elif hashlib.sha256(path.read_bytes()).hexdigest() != _WEIGHTS[name]:
        fault = f"is not the one that gliofed was proven with ({path})"
    else:
        with warnings.catch_warnings():  # TorchScript is kept, though no longer developed
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    raise StateError(
        f"The network {name} that finds the brain {fault}.",
        do="Install gliofed again with its clinic extra: pip install 'gliofed[clinic]'.",
        code="brain-network",
    )
