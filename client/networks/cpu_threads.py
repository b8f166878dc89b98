"""How many CPU threads torch computes with, which its results depend on.

torch adds up and convolves in another order with another number of threads, so that float32 results
differ in their last digits. Its own number follows cores, CPU affinity and OMP_NUM_THREADS: with
that a service and a command on one machine would give other voxels. So whatever computes says how
many. What torch keeps is of each system thread: a pool that computes sets it in its threads too.

Out of scope: SimpleITK, which always has one (``client.imaging.itk``).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

THREADS: Final = 4
"""Where nothing else is asked, on every machine. More than there are cores cost next to nothing."""


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Let torch compute with so many CPU threads, in this thread, while the block runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pool(workers: int) -> ThreadPoolExecutor:
    """Return a pool whose threads compute with as many CPU threads as the one that calls."""
    import torch

    return ThreadPoolExecutor(
        workers, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
    )
