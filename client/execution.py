"""How a machine computes: its devices and its precision.

Invariant: nothing here changes what is computed beyond rounding, or the privacy that is promised.
"""

from __future__ import annotations

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

    @property
    def device(self) -> str:
        """The first device, which does alone whatever is not shared."""
        return self.devices[0]


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
    kinds are always one device. A CPU computes in float32 whatever is asked: there torch 2.13 gives
    unwritten memory for the bfloat16 gradient of some convolutions, which may be another patient's.
    """
    chosen = choose_device() if device == "auto" else torch.device(device)
    count = 1
    if chosen.type == "cuda" and gpus != 1:
        count = gpus or torch.cuda.device_count()
    if chosen.type == "cpu":
        precision = "float32"
    return ExecutionOptions(
        devices=tuple(f"cuda:{n}" for n in range(count)) if count > 1 else (chosen.type,),
        precision=choose_precision(chosen) if precision == "auto" else precision,
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
