"""What preparing, measuring and drawing cases takes: memory of one of 1 mm, and several at a time.

The first figure is what ``client.imaging.parallel_cases`` reckons with when it decides how many
cases fit.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import time
from pathlib import Path
from typing import Final

from client.cohort.case_discovery import read_cohort
from client.cohort.quality.case_check import check_case
from client.imaging.parallel_cases import _BYTES_PER_VOXEL, _PROCESS_BYTES, each
from client.phantoms.cohort import write_cohort
from client.phantoms.profiles import PROFILES
from common.study.protocol import PreprocessingOptions
from tests import children
from tests.benchmarks.result import Measuring, Result, line

SIZE: Final = 240
CASES: Final = 16
SMALL: Final = 160


def measure(folder: Path) -> Measuring:
    """Return seconds and peak memory of a case of 1 mm, and the gain of two processes."""
    columns = ["what", "seconds", "peak MB"]
    yield "one case of 1 mm"
    write_cohort(folder / "one", PROFILES["reference"], patients=1, size=SIZE, seed=0)
    command = [sys.executable, "-m", __name__, str(folder / "one"), str(folder / "cache")]
    found = json.loads(children.run(command, capture_output=True, text=True, check=True).stdout)
    one: list[object] = [
        "one case of four sequences, 240 x 240 x 155 at 1 mm",
        found["s"],
        found["peak"] / 1e6,
    ]
    yield line(columns, one)
    seconds, several = {}, []
    for workers, words in ((1, "one"), (2, "two")):
        seconds[workers] = _together(folder, workers=workers)
        several.append([f"{CASES} cases of 1.5 mm, {words} at a time", seconds[workers], "-"])
        yield line(columns, several[-1])
    per_voxel = (found["peak"] - found["before"]) / found["voxels"]
    return Result(
        title="Preparing, measuring and drawing cases",
        columns=columns,
        rows=[one, *several],
        promise=f"a case takes at most {_BYTES_PER_VOXEL} bytes a voxel of its sequences, it takes "
        f"{per_voxel:.0f}, and a process {_PROCESS_BYTES / 1e6:.0f} MB, it takes "
        f"{found['before'] / 1e6:.0f}",
        holds=per_voxel <= _BYTES_PER_VOXEL and found["before"] <= _PROCESS_BYTES,
        facts={**found, "bytes_per_voxel": per_voxel, "seconds_together": seconds},
    )


def _together(folder: Path, *, workers: int) -> float:
    """Return the seconds for several small cases, ``workers`` at a time."""
    data = folder / "small"
    if not data.exists():
        write_cohort(data, PROFILES["reference"], patients=CASES, size=SMALL, seed=1)
    work = functools.partial(
        check_case,
        cache=folder / f"cache-{workers}",
        options=PreprocessingOptions(spacing_mm=1.5),
    )
    began = time.perf_counter()
    done = list(each(work, read_cohort(data).cases[:CASES], workers=workers))
    if any(one.measures is None for one in done):
        raise RuntimeError("a phantom could not be prepared")
    return time.perf_counter() - began


def _alone(data: Path, cache: Path) -> dict[str, float]:
    (case, *_) = read_cohort(data).cases
    before = _peak_bytes()
    began = time.perf_counter()
    done = check_case(case, cache=cache, options=PreprocessingOptions())
    if done.measures is None:
        raise RuntimeError(done.reason)
    voxels = 1
    for side in done.measures.sequences["t1c"].shape:
        voxels *= side
    return {
        "s": round(time.perf_counter() - began, 2),
        "before": before,
        "peak": _peak_bytes(),
        "voxels": 4 * voxels,
    }


def _peak_bytes() -> int:
    """Return the most memory of this process alone; ``getrusage`` tells that of its parent too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[0])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_alone(Path(sys.argv[1]), Path(sys.argv[2]))))
