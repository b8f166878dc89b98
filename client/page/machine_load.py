"""What the site's computer has left: disk, memory, processors, GPUs.

GPUs are asked for by ``nvidia-smi``, which takes no memory of theirs: a context of our own would.
Without it, or where it does not answer, nothing is known of GPUs, which is no error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.doctor.machine_facts import memory

_QUERY: Final = ("name", "memory.used", "memory.total", "utilization.gpu")
_PATIENCE_S: Final = 5.0
_MIB: Final = 2**20


@dataclass(frozen=True)
class Gpu:
    """One GPU; ``busy`` is the share of the last moments in which it worked, if it tells."""

    name: str
    used_bytes: int
    total_bytes: int
    busy: float | None


@dataclass(frozen=True)
class Machine:
    """The computer now."""

    disk_free_bytes: int
    disk_total_bytes: int
    memory_free_bytes: int
    memory_total_bytes: int
    processors: int
    load: float
    """Processes that wanted a processor, on average over the last minute."""
    gpus: tuple[Gpu, ...]


def look(folder: Path, *, ask: Callable[[], str] | None = None) -> Machine:
    """Return the machine as it is; ``ask`` returns what ``nvidia-smi`` says."""
    disk = shutil.disk_usage(folder)
    free, total = memory()
    return Machine(
        disk_free_bytes=disk.free,
        disk_total_bytes=disk.total,
        memory_free_bytes=free,
        memory_total_bytes=total,
        processors=os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 2),
        gpus=gpus((ask or _ask)()),
    )


def gpus(said: str) -> tuple[Gpu, ...]:
    """Read what ``nvidia-smi`` says, a GPU a line."""
    found = []
    for line in said.splitlines():
        name, _, rest = line.partition(",")
        try:
            used, total, busy = (part.strip() for part in rest.split(","))
            share = float(busy) / 100 if busy.replace(".", "").isdigit() else None
            found.append(Gpu(name.strip(), int(used) * _MIB, int(total) * _MIB, share))
        except ValueError:  # "[N/A]": a part of a GPU may not tell
            continue
    return tuple(found)


def _ask() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    words = [program, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
