"""How a machine computes: its devices and its precision.

Invariant: nothing here changes what is computed beyond rounding, or the privacy that is promised.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Literal

import torch

from client.site import Machine
from common.errors import StateError


@dataclass(frozen=True)
class ExecutionOptions:
    """How a machine computes. Nothing here can change the privacy that is promised."""

    devices: tuple[str, ...] = ("cpu",)
    """The first holds the optimiser and all sums; each has a share of every patient's crops."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward and backward pass; weights, norms and sums stay float32 or wider."""
    channels_last: bool = True
    prefetch: int = 2
    """Patients whose crops are drawn in the background; 0 draws them when they are needed."""
    predicts_in: Literal["float32", "bfloat16"] | None = None
    """Precision of prediction, where no gradient is; without it that of training."""

    @property
    def device(self) -> str:
        """The first device, which does alone whatever is not shared."""
        return self.devices[0]

    @property
    def prediction_precision(self) -> Literal["float32", "bfloat16"]:
        """In which precision a network predicts; the average over its windows is float32."""
        return self.predicts_in or self.precision

    @property
    def prediction_channels_last(self) -> bool:
        """Whether a network predicts with channels as the last axis in memory."""
        unsure = self.device == "cpu" and self.prediction_precision == "bfloat16"
        return self.channels_last and (not unsure or channels_last_is_faster())


@functools.cache
def channels_last_is_faster() -> bool:
    """Return whether this CPU convolves bfloat16 volumes faster with the channels last.

    It is measured, once a process, for it depends on the CPU: with channels last SegResNet took an
    AMD EPYC with AVX512-BF16 0.7 times as long, and an Intel Xeon with AMX, in training, twice.
    Where bfloat16 is no instruction it would take a minute to know, and nobody wants it.
    """
    if not multiplies_bfloat16():
        return False
    images = torch.zeros(1, 32, 32, 32, 32)
    block = torch.nn.Sequential(
        torch.nn.GroupNorm(8, 32), torch.nn.ReLU(), torch.nn.Conv3d(32, 32, 3, padding=1)
    ).eval()
    seconds = []
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        block.to(memory_format=layout)  # type: ignore[call-overload]
        laid = images.contiguous(memory_format=layout)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            seconds.append(min(_seconds(block, laid) for _ in range(4)))
    return seconds[1] < seconds[0]


def _seconds(block: torch.nn.Module, images: torch.Tensor) -> float:
    began = time.perf_counter()
    block(images)
    return time.perf_counter() - began


def multiplies_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 itself, which makes prediction faster than in
    float32 (``python -m tests.benchmarks prediction``); elsewhere it is many times slower."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def choose_device() -> torch.device:
    """Return the fastest kind of device that this machine has."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return bfloat16 on a GPU that has it, float32 elsewhere: on CPUs it is often slower."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float32"


def choose_execution(
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    *,
    gpus: int = 1,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> ExecutionOptions:
    """Return the options for this machine, on its fastest kind of device or on the named one.

    ``gpus`` is the number of CUDA devices that share the work, 0 for all that torch sees; other
    kinds are always one device. A CPU trains in float32 whatever is asked: there torch 2.13 gives
    unwritten memory for the bfloat16 gradient of some convolutions, which may be another patient's.
    It predicts in bfloat16 if it can multiply that, unless float32 is asked.
    """
    chosen = choose_device() if device == "auto" else torch.device(device)
    count = 1
    if chosen.type == "cuda" and gpus != 1:
        count = gpus or torch.cuda.device_count()
    predicts_in: Literal["float32", "bfloat16"] | None = None
    if chosen.type == "cpu":
        predicts_in = "bfloat16" if precision != "float32" and multiplies_bfloat16() else None
        precision = "float32"
    return ExecutionOptions(
        devices=tuple(f"cuda:{n}" for n in range(count)) if count > 1 else (chosen.type,),
        precision=choose_precision(chosen) if precision == "auto" else precision,
        predicts_in=predicts_in,
        channels_last=chosen.type != "mps",  # which has no such kernels for volumes
    )


def execution_for(machine: Machine) -> ExecutionOptions:
    """Return how this machine computes, as its settings say.

    Raises StateError (code ``device``) for a device that it does not have.
    """
    if machine.threads:
        torch.set_num_threads(machine.threads)
    present = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available()}
    if not present.get(machine.device, torch.backends.mps.is_available()):
        raise StateError(
            f"site.toml asks for the device {machine.device}, which torch does not find here.",
            do='Set device = "auto" or "cpu", or mend the driver.',
            code="device",
        )
    there = torch.cuda.device_count() if present["cuda"] else 0
    if machine.device in ("auto", "cuda") and machine.gpus > max(1, there):
        raise StateError(
            f"site.toml asks for {machine.gpus} CUDA devices, of which torch finds {there} here.",
            do="Set gpus = 1, or 0 for all that are there.",
            code="device",
        )
    return choose_execution(machine.device, gpus=machine.gpus, precision=machine.precision)
