"""Time from a DICOM study on the disk to four volumes in memory, and a converter's beside it.

The study: four series of 160 slices of 256 x 256 voxels, one file a slice, uncompressed. Files were
written just before and lie in the system's cache: the disk is not measured.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from client.cohort.case_discovery import read_case
from client.imaging.image_reading import read_image
from tests import children
from tests.benchmarks.result import Measuring, Result, line
from tests.scanners import oblique, write_study, zipped

SHAPE: Final = (256, 256, 160)
SERIES: Final = 4
FASTER: Final = 10


def measure(folder: Path) -> Measuring:
    """Return the seconds of each step for a folder and for a zip of it."""
    columns = ["step", "seconds"]
    yield "writing the study"
    data = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    study = write_study(folder / "study", data=data, affine=oblique((1.0, 1.0, 1.0)))
    archive = zipped(study, folder / "study.zip")
    case, first = _timed(lambda: read_case(study))
    _, again = _timed(lambda: read_case(study))
    _, packed = _timed(lambda: read_case(archive))
    _, voxels = _timed(lambda: [read_image(image) for image in case.images.values()])
    rows: list[list[object]] = [
        [f"headers of {SERIES * SHAPE[2]} files, first look", first],
        ["the same, second look in one process", again],
        ["the same from a zip, first look", packed],
        [f"voxels of {SERIES} series", voxels],
    ]
    converter = shutil.which("dcm2niix")
    if converter is not None:
        command = [converter, "-z", "n", "-b", "n", "-o", str(folder), str(study)]
        _, theirs = _timed(lambda: children.run(command, check=True, capture_output=True))
        rows.append([f"dcm2niix, {SERIES} series and the localiser to disk", theirs])
    yield from (line(columns, row) for row in rows)
    return Result(
        title="A DICOM study to volumes",
        columns=columns,
        rows=rows,
        promise=f"a worker's second look at a study is at least {FASTER} times as fast",
        holds=again * FASTER <= first,
        facts={str(name): seconds for name, seconds in rows},
    )


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.monotonic()
    result = work()
    return result, time.monotonic() - began
