"""How a machine computes follows from its settings and its hardware, and from nothing else."""

from __future__ import annotations

import ast
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import client
import common
from client.networks import cpu_threads
from client.networks.cpu_threads import THREADS, computing_with, pool
from client.site import execution
from client.site.execution import (
    ExecutionOptions,
    Hardware,
    choose,
    computing,
    execution_for,
    slow_alone,
)
from client.site.settings import Machine
from common.errors import StateError

GPU = Hardware(cuda=1, cuda_bfloat16=True, cpu_bfloat16=True)
OLD_GPU = Hardware(cuda=1)
GPUS = Hardware(cuda=3, cuda_bfloat16=True)
APPLE = Hardware(mps=True)
CPU = Hardware()
FAST_CPU = Hardware(cpu_bfloat16=True)

CHOICES: dict[str, tuple[dict[str, Any], Hardware, tuple[tuple[str, ...], str, str, str]]] = {
    "a CPU": ({}, CPU, (("cpu",), "float32", "float32", "channels last")),
    "a CPU that multiplies bfloat16, nothing asked": (
        {}, FAST_CPU, (("cpu",), "float32", "float32", "channels last"),
    ),
    "bfloat16 asked of it": (
        {"precision": "bfloat16"}, FAST_CPU, (("cpu",), "float32", "bfloat16", "channels last"),
    ),
    "bfloat16 asked of one that does not": (
        {"precision": "bfloat16"}, CPU, (("cpu",), "float32", "float32", "channels last"),
    ),
    "float32 asked": (
        {"precision": "float32"}, FAST_CPU, (("cpu",), "float32", "float32", "channels last"),
    ),
    "a GPU": ({}, GPU, (("cuda",), "bfloat16", "bfloat16", "channels last")),
    "a GPU without bfloat16": ({}, OLD_GPU, (("cuda",), "float32", "float32", "channels last")),
    "bfloat16 asked of that": (
        {"precision": "bfloat16"}, OLD_GPU, (("cuda",), "bfloat16", "bfloat16", "channels last"),
    ),
    "a GPU, float32 asked": (
        {"precision": "float32"}, GPU, (("cuda",), "float32", "float32", "channels last"),
    ),
    "a GPU, the CPU asked": (
        {"device": "cpu", "gpus": 2}, GPU, (("cpu",), "float32", "float32", "channels last"),
    ),
    "one of three GPUs": ({}, GPUS, (("cuda",), "bfloat16", "bfloat16", "channels last")),
    "two of three": (
        {"device": "cuda", "gpus": 2}, GPUS,
        (("cuda:0", "cuda:1"), "bfloat16", "bfloat16", "channels last"),
    ),
    "all of three": (
        {"gpus": 0}, GPUS,
        (("cuda:0", "cuda:1", "cuda:2"), "bfloat16", "bfloat16", "channels last"),
    ),
    "all of one": ({"gpus": 0}, GPU, (("cuda",), "bfloat16", "bfloat16", "channels last")),
    "Apple's GPU": ({}, APPLE, (("mps",), "float32", "float32", "channels first")),
    "Apple's CPU": ({"device": "cpu"}, APPLE, (("cpu",), "float32", "float32", "channels last")),
}  # fmt: skip


@pytest.mark.parametrize("row", CHOICES)
def test_the_choice(row: str) -> None:
    settings, hardware, wanted = CHOICES[row]
    found = choose(Machine.model_validate(settings), hardware)
    told = (found.devices, found.precision, found.prediction_precision, found.layout)
    assert told == wanted
    assert found.device == wanted[0][0]
    assert found.kind == found.device.split(":")[0]


@pytest.mark.parametrize(
    ("settings", "hardware", "says"),
    [
        ({"device": "cuda"}, CPU, "the device cuda"),
        ({"device": "mps"}, GPU, "the device mps"),
        ({"gpus": 3}, GPU, "3 CUDA devices, of which torch finds 1"),
        ({"device": "cuda", "gpus": 4}, GPUS, "4 CUDA devices"),
        ({"gpus": 2}, CPU, "2 CUDA devices, of which torch finds 0"),
    ],
)
def test_what_is_not_there_is_named(
    settings: dict[str, Any], hardware: Hardware, says: str
) -> None:
    with pytest.raises(StateError, match=says) as caught:
        choose(Machine.model_validate(settings), hardware)
    assert caught.value.code == "device"


@pytest.mark.parametrize("asked", [0, 1, 3, 64])
def test_threads_are_those_of_the_settings_or_a_constant(
    monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    monkeypatch.setattr(execution, "THREADS", THREADS)  # tests/conftest.py says 1
    assert choose(Machine(threads=asked), CPU).threads == (asked or 4)


def test_the_choice_is_the_same_whatever_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No clock, no load, no free memory, no number of cores, no environment."""
    calm = execution_for(Machine(precision="bfloat16"))
    clock = iter(range(10**6))
    for name in ("perf_counter", "monotonic", "process_time", "time"):
        monkeypatch.setattr(time, name, lambda: 1000.0 * next(clock) ** 2)
    for cores, load, number in ((1, 64.0, "1"), (128, 0.0, "128"), (2, 2.0, "7")):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load,) * 3)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 0))
        monkeypatch.setenv("OMP_NUM_THREADS", number)
        with computing_with(int(number)):
            assert execution_for(Machine(precision="bfloat16")) == calm


def test_the_hardware_is_asked_for_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda *, including_emulation: not including_emulation
    )
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert Hardware.here() == Hardware(cuda=2, cuda_bfloat16=True, cpu_bfloat16=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert Hardware.here() == Hardware()


def test_torch_computes_as_it_is_told_and_is_left_as_it_was() -> None:
    flags = torch.backends.cudnn
    with computing_with(1):
        before = (flags.benchmark, flags.deterministic, flags.allow_tf32)
        with computing(ExecutionOptions(threads=3)):
            assert torch.get_num_threads() == 3
            assert (flags.benchmark, flags.deterministic, flags.allow_tf32) == before
        with computing(ExecutionOptions(("cuda:1",), threads=2)):
            assert torch.get_num_threads() == 2
            assert (flags.benchmark, flags.deterministic, flags.allow_tf32) == (False, True, False)
        assert torch.get_num_threads() == 1
        assert (flags.benchmark, flags.deterministic, flags.allow_tf32) == before


def test_another_threads_number_is_its_own() -> None:
    """A service sets it where it computes, though other threads set theirs meanwhile."""
    with computing_with(3), ThreadPoolExecutor(1) as stranger, pool(2) as ours:
        stranger.submit(torch.set_num_threads, 1).result()
        assert torch.get_num_threads() == 3
        assert ours.submit(torch.get_num_threads).result() == 3


MEASURES = {
    "set_num_threads": {"client/networks/cpu_threads.py"},
    "get_num_threads": {"client/networks/cpu_threads.py"},
    "set_num_interop_threads": set(),
    "benchmark": set(),
    "getloadavg": {"client/page/machine_load.py"},
    "sched_getaffinity": set(),
    "process_cpu_count": set(),
    # To say it, and how many cases are prepared side by side: each case gets the same bits.
    "cpu_count": {
        "client/imaging/parallel_cases.py",
        "client/page/machine_load.py",
        "client/views/diagnosis.py",
    },
    "mem_get_info": {"client/views/diagnosis.py", "client/page/machine_load.py"},
    "memory_allocated": set(),
    "max_memory_allocated": set(),
    # To tell what work took.
    "perf_counter": set(),
    "process_time": {"client/clinic/stage_times.py"},
}
"""What asks the machine about its state, and who may: nobody who answers with voxels or weights."""


def test_nobody_asks_the_machines_state_who_computes() -> None:
    found: dict[str, set[str]] = {name: set() for name in MEASURES}
    for package in (client, common):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr in found:
                    found[node.attr].add(path.relative_to(root.parent).as_posix())
    for name, files in found.items():
        assert files <= MEASURES[name], f"{name} in {sorted(files - MEASURES[name])}"


def test_the_choice_can_measure_nothing() -> None:
    """Nothing that is imported for it knows a clock, the system or another process."""
    for module in (execution, cpu_threads):
        path = Path(str(module.__file__))
        imported = {
            word.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for word in (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [one.name for one in node.names]
            )
        }
        allowed = {"__future__", "client", "collections", "common", "concurrent", "contextlib"}
        assert imported <= allowed | {"dataclasses", "torch", "typing"}


@pytest.mark.parametrize(
    ("shape", "dtype", "slow"),
    [
        ((1, 4, 16, 16, 16), torch.float32, True),
        ((1, 4, 48, 48, 48), torch.float32, True),
        ((1, 4, 48, 48, 49), torch.float32, False),
        ((2, 4, 16, 16, 16), torch.float32, False),
        ((1, 4, 16, 16, 16), torch.float64, False),
        ((1, 4, 16, 16, 16), torch.bfloat16, False),
    ],
)
def test_a_lone_small_volume_is_slow_in_float32(
    shape: tuple[int, ...], dtype: torch.dtype, slow: bool
) -> None:
    assert slow_alone(torch.empty(shape, dtype=dtype)) is slow
    assert not slow_alone(torch.empty(shape, dtype=dtype, device="meta"))
