"""Weights that a person hands in as a file: converted, and refused at once if they do not fit.

A coordinator gives them to start a study, a hospital to train, score or compare. They may come
from anywhere: what is wrong with them is said by the parameter's name, before they are used.

Out of scope: the weights that gliofed wrote itself and names by digest
(``common.records.weights``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.errors import ModelError
from common.records.weights import Arrays, load
from common.study.network_shapes import PREFIX_MISSING, misfit, title
from common.study.protocol import NetworkOptions


def read(path: Path, network: NetworkOptions) -> Arrays:
    """Return the weights in ``path``, checked.

    Raises ModelError as ``common.records.weights.load`` does, ``model-mismatch`` if they are
    another network's, ``model-not-finite`` if they hold NaN or infinity.
    """
    arrays = load(path)
    if wrong := misfit({name: array.shape for name, array in arrays.items()}, network):
        raise ModelError(
            f"The weights {path} do not fit the study's network, a {title(network)}: {wrong}",
            do="`gliofed-site convert-weights` adds the prefix."
            if PREFIX_MISSING in wrong
            else "Give weights of that network, or let [network] of the protocol name theirs.",
            code="model-mismatch",
        )
    check_finite(arrays, path)
    return arrays


def check_finite(arrays: Arrays, path: Path) -> None:
    """Raise ModelError (``model-not-finite``) that names an array with a NaN or infinity in it."""
    bad = {name: int((~np.isfinite(value)).sum()) for name, value in arrays.items()}
    if bad := {name: count for name, count in bad.items() if count}:
        name, count = next(iter(sorted(bad.items())))
        values = "a value that is" if count == 1 else f"{count} values that are"
        more = f", and {len(bad) - 1} other arrays do too" if len(bad) > 1 else ""
        raise ModelError(
            f"The array {name} in {path} holds {values} not finite in float32 (NaN or "
            f"infinite){more}.",
            do="A network with them can learn nothing: take a checkpoint from before.",
            code="model-not-finite",
        )
