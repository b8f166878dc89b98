"""Many cases, several at a time in processes of their own, within the memory that is there.

What is done with a case is handed in and must be importable by another process. Order is kept.
Whether a case was prepared before is the cache's to know: a run that was broken off goes on there.

Out of scope: which cases, and what is done with them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import nibabel as nib
import numpy as np

from client.imaging.case import Case
from common.process.child_processes import die_with_parent

T = TypeVar("T")

_BYTES_PER_VOXEL: Final = 64
"""At the most, of one sequence's grid: `python -m tests.benchmarks preparation` measures it."""

_PROCESS_BYTES: Final = 400 * 2**20
"""Of a process before its first case."""

_RAW_BYTES: Final = 3 * 2**29
"""More of a process that prepares raw input: the networks that find the brain take 1.3 GB. A case
of four 1 mm sequences peaks at 1.6 GB in all, less than what is reckoned here and for its voxels:
`python -m tests.benchmarks raw_preparation` measures it."""

_SHARE_OF_FREE: Final = 0.6
_FEW: Final = 4
"""Up to so many cases it takes longer to start processes than to do the work."""


def each(work: Callable[[Case], T], cases: Sequence[Case], *, workers: int) -> Iterator[T]:
    """Yield ``work(case)`` for each case, in order; raise what it raises.

    With one worker, or few cases, all is done in this process.
    """
    if workers < 2 or len(cases) <= _FEW:
        yield from map(work, cases)
        return
    # A process that was forked from one that runs torch may hang.
    context = multiprocessing.get_context("spawn")
    ends = die_with_parent if sys.platform == "linux" else None
    count = min(workers, len(cases))
    with ProcessPoolExecutor(count, mp_context=context, initializer=ends) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for case in cases:
                waiting.append(pool.submit(work, case))
                if len(waiting) > 2 * workers:  # results are held no longer than needed
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


def workers_for(
    cases: Sequence[Case], *, raw: bool = False, cpus: int | None = None, free: int | None = None
) -> int:
    """Return how many processes the machine's CPUs and free memory allow for ``cases``.

    ``raw`` says that they are prepared from raw input. ``cpus`` and ``free`` (bytes) are the
    machine's if they are None.
    """
    cpus = cpus or os.cpu_count() or 1
    free = _free_bytes() if free is None else free
    largest = max((_voxels(case) for case in cases), default=0)
    need = _PROCESS_BYTES + _BYTES_PER_VOXEL * largest + (_RAW_BYTES if raw else 0)
    return max(1, min(cpus, int(_SHARE_OF_FREE * free / need)))


def _free_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not every system says what is free
        return 4 * 2**30


def _voxels(case: Case) -> int:
    """Return the voxels of all sequences together, or 0 where a header cannot be read.

    What is wrong with such a case is told when it is prepared. Of a DICOM series it is the bytes
    of its files: more than the voxels, unless they are compressed by more than half.
    """
    total = 0
    for image in case.images.values():
        if image.parts:  # slices of two bytes a voxel, or less if they are compressed
            total += sum(_size(path) for path in image.files)
            continue
        try:
            total += int(np.prod(nib.load(image.path).shape[:3]))
        except Exception:  # noqa: BLE001  nibabel raises whatever a broken header makes it raise
            return 0
    return total


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
