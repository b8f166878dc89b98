"""How a machine computes: its devices, precision, layout and threads, from settings and hardware.

Invariants: the choice is a pure function of ``[machine]`` in ``site.toml`` and of what the machine
is made of, never of time, load, free memory, the number of cores or the environment, so that every
command and service of a site computes the same; every result records it. Nothing here changes what
is computed beyond rounding, or the privacy that is promised.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import torch

from client.networks.cpu_threads import THREADS, computing_with
from client.site.settings import Machine
from common.errors import StateError

Precision = Literal["float32", "bfloat16"]
Layout = Literal["channels last", "channels first"]


_SLOW_ALONE: Final = 48**3
"""Voxels up to which a CPU computes two volumes in less time than one; see ``slow_alone``."""


@dataclass(frozen=True)
class Hardware:
    """What a machine is made of, as far as the choice depends on it."""

    cuda: int = 0
    """CUDA devices that torch can use."""
    cuda_bfloat16: bool = False
    mps: bool = False
    cpu_bfloat16: bool = False
    """Whether the CPU multiplies bfloat16 itself. Elsewhere that is many times slower."""

    @classmethod
    def here(cls) -> Hardware:
        """Return what torch finds on this machine."""
        cuda, able = torch.cuda.is_available(), torch.cpu.get_capabilities()
        return cls(
            cuda=torch.cuda.device_count() if cuda else 0,
            cuda_bfloat16=cuda and torch.cuda.is_bf16_supported(including_emulation=False),
            mps=torch.backends.mps.is_available(),
            cpu_bfloat16=bool(able.get("avx512_bf16") or able.get("amx_bf16")),
        )

    def has(self, device: str) -> bool:
        """Return whether it has a device of the kind ``cpu``, ``cuda`` or ``mps``."""
        return {"cpu": True, "cuda": self.cuda > 0, "mps": self.mps}[device]


@dataclass(frozen=True)
class ExecutionOptions:
    """How a machine computes. Nothing here can change the privacy that is promised."""

    devices: tuple[str, ...] = ("cpu",)
    """The first holds the optimiser and all sums; each has a share of every patient's crops."""
    precision: Precision = "float32"
    """Of the forward and backward pass; weights, norms and sums stay float32 or wider."""
    channels_last: bool = True
    prefetch: int = 2
    """Patients whose crops are drawn in the background; 0 draws them when they are needed."""
    predicts_in: Precision | None = None
    """Precision of prediction, where no gradient is; without it that of training."""
    threads: int = 1
    """CPU threads of torch."""

    @property
    def device(self) -> str:
        """The first device, which does alone whatever is not shared."""
        return self.devices[0]

    @property
    def kind(self) -> str:
        """The kind of the devices: ``cpu``, ``cuda`` or ``mps``."""
        return torch.device(self.device).type

    @property
    def prediction_precision(self) -> Precision:
        """In which precision a network predicts; the average over its windows is float32."""
        return self.predicts_in or self.precision

    @property
    def layout(self) -> Layout:
        """The order of a volume's axes in memory."""
        return "channels last" if self.channels_last else "channels first"


def choose(machine: Machine, hardware: Hardware) -> ExecutionOptions:
    """Return how a machine of ``hardware`` computes if its settings are ``machine``.

    A CPU trains in float32 whatever is asked: there torch 2.13 gives unwritten memory for the
    bfloat16 gradient of some convolutions, which may be another patient's. It predicts in bfloat16
    if that is asked and it can multiply it. Of the layouts channels last is the faster on CPUs of
    AMD and Intel and on CUDA in either precision; MPS has no such kernels for volumes.

    Raises StateError (code ``device``) for a device that is not there.
    """
    kind = machine.device
    if kind == "auto":
        kind = "cuda" if hardware.cuda else "mps" if hardware.mps else "cpu"
    if not hardware.has(kind):
        raise StateError(
            f"site.toml asks for the device {kind}, which torch does not find here.",
            do='Set device = "auto" or "cpu", or mend the driver.',
            code="device",
        )
    if machine.device in ("auto", "cuda") and machine.gpus > max(1, hardware.cuda):
        raise StateError(
            f"site.toml asks for {machine.gpus} CUDA devices, of which torch finds "
            f"{hardware.cuda} here.",
            do="Set gpus = 1, or 0 for all that are there.",
            code="device",
        )
    count = (machine.gpus or hardware.cuda) if kind == "cuda" else 1
    precision: Precision = "float32"
    predicts_in: Precision | None = None
    if kind == "cpu":
        if machine.precision == "bfloat16" and hardware.cpu_bfloat16:
            predicts_in = "bfloat16"
    elif machine.precision != "auto":
        precision = machine.precision
    elif kind == "cuda" and hardware.cuda_bfloat16:
        precision = "bfloat16"
    return ExecutionOptions(
        devices=tuple(f"cuda:{n}" for n in range(count)) if count > 1 else (kind,),
        precision=precision,
        channels_last=kind != "mps",
        predicts_in=predicts_in,
        threads=machine.threads or THREADS,
    )


def execution_for(machine: Machine) -> ExecutionOptions:
    """Return how this machine computes, as its settings say; raise StateError as ``choose``."""
    return choose(machine, Hardware.here())


def slow_alone(images: torch.Tensor) -> bool:
    """Return whether a network computes these images (B, C, X, Y, Z) in less time twice than once.

    For a batch of one volume with few voxels, in float32 on a CPU, torch does not use oneDNN but a
    slower convolution of its own (``use_mkldnn`` in aten/src/ATen/native/Convolution.cpp, torch
    2.13). The benchmark ``small_volumes`` measures by how much. Twice takes up to twice the memory,
    of a volume that takes little.
    """
    return (
        len(images) == 1
        and images.device.type == "cpu"
        and images.dtype == torch.float32
        and images[0, 0].numel() <= _SLOW_ALONE
    )


@contextmanager
def computing(execution: ExecutionOptions) -> Iterator[None]:
    """Let torch train or predict as ``execution`` says, and in no way that it finds by trying.

    On CUDA no kernel is chosen by its time, none adds up in the order in which threads end, and
    float32 is not rounded to TF32.
    """
    with ExitStack() as stack:
        stack.enter_context(computing_with(execution.threads))
        if execution.kind == "cuda":
            stack.enter_context(
                torch.backends.cudnn.flags(
                    enabled=True, benchmark=False, deterministic=True, allow_tf32=False
                )
            )
        yield
