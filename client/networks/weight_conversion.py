"""Weights of another program made into what gliofed reads: safetensors under the network's names.

A PyTorch file is read with ``weights_only``: nothing in it runs. Tensors are taken from the file
itself or from under one of the usual keys; wrappers such as ``module.`` are taken off the names,
and what MONAI calls a layer gets the prefix that it has here.

Out of scope: whether the weights fit a study (``common.study.starting_weights``).
"""

from __future__ import annotations

import pickle  # for its error alone # nosec B403
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from common.errors import ModelError
from common.records.weights import Arrays, is_counter, is_safetensors, is_torch, load
from common.study.network_shapes import PREFIX, identified
from common.study.protocol import NetworkOptions
from common.study.starting_weights import check_finite

KEYS: Final = ("state_dict", "model_state_dict", "model", "network_weights", "network", "net")
"""Where programs put the tensors in a file that holds more: Lightning, MONAI, nnU-Net, others."""

_WRAPPERS: Final = ("module.", "_orig_mod.")
"""What DataParallel and ``torch.compile`` put before each name."""


def converted(path: Path) -> tuple[Arrays, NetworkOptions | None]:
    """Return the weights in a PyTorch or safetensors file, and of which network they are, if any.

    Raises ModelError for a file that holds anything but plain tensors, or values that are not
    finite.
    """
    arrays = _arrays(path) if _of_torch(path) else load(path)
    check_finite(arrays, path)
    return renamed(arrays)


def renamed(arrays: Arrays) -> tuple[Arrays, NetworkOptions | None]:
    """Return ``arrays`` under the names of the network that they are of, and that network.

    Common prefixes are taken off, one after the other, until the rest are a network's parameters,
    with the prefix that they have here or without. If they never are, only wrappers are taken off.
    """
    plain = arrays
    while any(_all_begin(plain, one) for one in _WRAPPERS):
        plain = _without_first_part(plain)
    tried = plain
    while True:
        for one in (tried, {PREFIX + name: value for name, value in tried.items()}):
            network = identified({name: value.shape for name, value in one.items()})
            if network is not None:
                return one, network
        first = next(iter(tried), "").partition(".")[0] + "."
        if not _all_begin(tried, first):
            return plain, None
        tried = _without_first_part(tried)


def _all_begin(arrays: Mapping[str, Any], prefix: str) -> bool:
    return bool(arrays) and all(len(n) > len(prefix) and n.startswith(prefix) for n in arrays)


def _without_first_part(arrays: Arrays) -> Arrays:
    return {name.partition(".")[2]: value for name, value in arrays.items()}


def _of_torch(path: Path) -> bool:
    """Return whether ``path`` is a PyTorch file; what cannot be read is for ``load`` to say."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if is_safetensors(file.read(16)):
            return False
        file.seek(0)
        return is_torch(file)


def _arrays(path: Path) -> Arrays:
    """Return the tensors of a PyTorch file as float32."""
    tensors = _tensors(path, _content(path))
    arrays: Arrays = {}
    for name, tensor in tensors.items():
        if is_counter(name):
            continue
        if tensor.layout != torch.strided:
            raise _refused(path, f"the tensor {name} is no plain one but {_word(tensor.layout)}")
        if not tensor.is_floating_point():
            raise _refused(path, f"the tensor {name} holds {_word(tensor.dtype)} numbers")
        arrays[name] = np.array(tensor.detach().float().contiguous().numpy(), order="C")
    return arrays


def _word(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")


def _content(path: Path) -> object:
    """Return what is in a PyTorch file; raise ModelError if that is more than tensors."""
    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
        if any(one.filename.rpartition("/")[2] == "constants.pkl" for one in entries):
            raise _refused(path, "it is a TorchScript program")
        if any(one.compress_type != zipfile.ZIP_STORED for one in entries):
            raise _refused(path, "it is compressed, as torch writes no file")
    try:
        # Mapped, so that optimiser states beside the weights are never read. Files of before
        # torch 1.6 are no zip files and cannot be.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _refused(path, _why(str(error))) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"The file {path} is damaged: {(str(error) or 'it was cut short').splitlines()[0]}",
            do="Fetch the file again from where it was published.",
            code="model-damaged",
        ) from None


def _why(text: str) -> str:
    """Return what torch says that it will not load, without its advice to load it all the same."""
    _, marker, rest = text.partition("Unsupported global: GLOBAL ")
    if marker:
        return f"beside tensors it holds an object of {rest.split()[0]}"
    return "it holds more than plain tensors"


def _tensors(path: Path, content: object) -> dict[str, torch.Tensor]:
    """Return the named tensors of a file, from itself or from under one of the usual keys."""
    if not isinstance(content, Mapping):
        raise _refused(path, f"it holds a {type(content).__name__}, no named tensors")
    below = (content.get(key) for key in KEYS)
    named: Mapping[Any, Any] = next((one for one in below if isinstance(one, Mapping)), content)
    other = {str(k): type(v).__name__ for k, v in named.items() if not isinstance(v, torch.Tensor)}
    if other or not named:
        words = ", ".join(f"{name} ({kind})" for name, kind in sorted(other.items())[:5])
        raise _refused(path, f"it holds {words}" if other else "it is empty")
    return {str(name): value for name, value in named.items()}


def _refused(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path} holds no plain weights: {why}.",
        do="Where it was made, write the weights alone: torch.save(model.state_dict(), FILE). They "
        f"may lie under one of {', '.join(KEYS)}.",
        code="model-format",
    )
