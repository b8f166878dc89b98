"""Predict one case in one way in a process of its own; print what that took and gave, as JSON."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from monai.inferers.inferer import SlidingWindowInferer
from monai.networks.nets.segresnet import SegResNet
from numpy.typing import NDArray

from client.networks.registry import build, load_arrays
from client.segmentation import prediction, sliding_window
from client.segmentation.prediction import predict
from client.site.execution import ExecutionOptions, Hardware, choose
from client.site.settings import Machine
from common.records.weights import load
from common.study.protocol import NetworkOptions

NETWORK: Final = NetworkOptions(size="base")
OVERLAP: Final = 0.5
THREADS: Final = 2

Probabilities = NDArray[np.float32]


def with_monai(network: torch.nn.Module, image: Probabilities, side: int) -> Probabilities:
    """Return what MONAI's own network gives with these weights through its inferer."""
    stock = SegResNet(
        spatial_dims=3,
        init_filters=16,
        in_channels=4,
        out_channels=3,
        norm=("GROUP", {"num_groups": 8}),
        blocks_down=(1, 2, 2, 4),
        blocks_up=(1, 1, 1),
    ).eval()
    stock.load_state_dict({k.removeprefix("body."): v for k, v in network.state_dict().items()})
    inferer = SlidingWindowInferer((side, side, side), 1, overlap=OVERLAP, mode="gaussian")
    with torch.inference_mode():
        logits = inferer(torch.from_numpy(image)[None], stock)
        found: Probabilities = logits[0].sigmoid_().numpy()
    return found


def with_gliofed(
    execution: ExecutionOptions,
) -> Callable[[torch.nn.Module, Probabilities, int], Probabilities]:
    def way(network: torch.nn.Module, image: Probabilities, side: int) -> Probabilities:
        return predict(network, image, crop_size=(side, side, side), execution=execution)

    return way


def with_monais_windows(network: torch.nn.Module, image: Probabilities, side: int) -> Probabilities:
    """Return what gliofed gives through the very windows that MONAI takes, over the whole field."""

    def starts(n: int, window: int, overlap: float) -> list[int]:
        step = int(window * (1 - overlap))
        return [min(place, n - window) for place in range(0, n - window + step, step)]

    sliding_window.WHOLE, sliding_window._starts = 1.0, starts
    prediction.bounding_box = lambda mask, _: tuple(slice(0, n) for n in mask.shape)
    return with_gliofed(on_the_cpu())(network, image, side)


def on_the_cpu(precision: Literal["auto", "bfloat16"] = "auto") -> ExecutionOptions:
    return choose(Machine(device="cpu", precision=precision, threads=THREADS), Hardware.here())


WAYS: Final[
    Mapping[str, Callable[[], Callable[[torch.nn.Module, Probabilities, int], Probabilities]]]
] = {
    "MONAI": lambda: with_monai,
    "gliofed, MONAI's windows": lambda: with_monais_windows,
    "gliofed": lambda: with_gliofed(on_the_cpu()),
    # The same where the CPU does not multiply bfloat16.
    "gliofed, bfloat16 asked": lambda: with_gliofed(on_the_cpu("bfloat16")),
}


def report(folder: Path, way: str, side: int) -> dict[str, Any]:
    """Predict the case in ``folder`` and leave its mask there."""
    torch.set_num_threads(THREADS)
    network = build(NETWORK, seed=0).eval()
    load_arrays(network, load(folder / "weights.safetensors"))
    image = np.load(folder / "image.npy")
    chosen = WAYS[way]()
    before = peak_bytes()
    began = time.perf_counter()
    probabilities = chosen(network, image, side)
    seconds = time.perf_counter() - began
    peak = peak_bytes()
    # Outside the brain is no tumour, whoever says so: gliofed never gives any there.
    np.save(folder / "found.npy", (probabilities > 0.5) & (image != 0).any(axis=0))
    return {"seconds": seconds, "peak_bytes": peak, "before_bytes": before}


def peak_bytes() -> int:
    """Return the most memory of this process alone; ``getrusage`` tells that of its parent too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[0])


if __name__ == "__main__":
    found = report(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    sys.stdout.write(json.dumps(found))
