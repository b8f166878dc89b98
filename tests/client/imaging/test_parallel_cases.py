"""Many cases at once: in order, within memory, and what goes wrong is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from client.imaging.case import Case, Image
from client.imaging.parallel_cases import each, workers_for
from common.regions import MODALITIES
from tests import children
from tests.deployment.stack import alive

GIB = 2**30
ROOT = Path(__file__).parents[3]


def cases(count: int) -> list[Case]:
    return [Case(f"p{n}", "", {}, None, {}) for n in range(count)]


def name_and_process(case: Case) -> tuple[str, int]:
    return case.name, os.getpid()


def fails(case: Case) -> str:
    if case.name == "p5":
        raise ValueError("p5 cannot be done")
    return case.name


@pytest.mark.parametrize(("count", "workers"), [(3, 4), (9, 1), (0, 2)])
def test_few_cases_or_one_worker_stay_in_this_process(count: int, workers: int) -> None:
    found = list(each(name_and_process, cases(count), workers=workers))
    assert found == [(f"p{n}", os.getpid()) for n in range(count)]


def test_many_cases_are_done_elsewhere_and_come_in_order() -> None:
    found = list(each(name_and_process, cases(12), workers=2))
    assert [name for name, _ in found] == [f"p{n}" for n in range(12)]
    processes = {process for _, process in found}
    assert os.getpid() not in processes
    assert len(processes) <= 2


def test_an_error_is_raised_where_its_case_would_have_come() -> None:
    coming = each(fails, cases(8), workers=2)
    assert list(islice(coming, 5)) == [f"p{n}" for n in range(5)]
    with pytest.raises(ValueError, match="p5 cannot be done"):
        next(coming)


@pytest.fixture
def large(tmp_path: Any) -> Case:
    path = tmp_path / "image.nii"
    nib.save(nib.Nifti1Image(np.zeros((64, 64, 64), np.uint8), np.eye(4)), path)
    return Case("p", "", {name: Image(path) for name in MODALITIES}, None, {})


def test_workers_are_as_many_as_cpus_and_memory_allow(large: Case) -> None:
    assert workers_for([large], cpus=4, free=100 * GIB) == 4
    assert workers_for([large], cpus=64, free=8 * GIB) == 10
    assert workers_for([large], cpus=64, free=0) == 1
    assert workers_for([large], raw=True, cpus=64, free=30 * GIB) == 9
    assert workers_for([], cpus=1, free=8 * GIB) == 1
    assert workers_for([large]) >= 1


def test_a_header_that_cannot_be_read_is_told_later(large: Case) -> None:
    large.images["t1n"].path.write_bytes(b"no header")
    assert workers_for([large], cpus=2, free=100 * GIB) == 2


_EACH = """\
from client.imaging.parallel_cases import each
from tests.client.imaging.test_parallel_cases import cases, waits
if __name__ == "__main__":
    list(each(waits, cases(6), workers=2))
"""


def waits(case: Case) -> None:
    """Say which process this is, and do not end."""
    print(os.getpid(), flush=True)  # noqa: T201
    time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="a promise on Linux only")
def test_processes_end_with_one_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "each.py"
    script.write_text(_EACH)
    with children.start(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as python:
        pids = [int(python.stdout.readline()) for _ in range(2)]
        python.kill()
    until = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(alive, pids))
