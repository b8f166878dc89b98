"""Prepare one raw case in a process of its own and print what that took and gave, as JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from client.cohort.case_discovery import read_case
from client.imaging.nifti import read_volume
from client.imaging.preprocessing import Prepared, prepare, to_native
from common.regions import labels_to_regions
from common.study.protocol import PreprocessingOptions


def dice(one: Any, other: Any) -> float:
    both = np.count_nonzero(one) + np.count_nonzero(other)
    return 2 * np.count_nonzero(one & other) / both if both else 1.0


def report(folder: Path) -> dict[str, Any]:
    """Prepare the case in ``folder`` and compare it with what is known of it."""
    case = read_case(folder)
    began, began_cpu = time.monotonic(), time.process_time()
    prepared = prepare(case, PreprocessingOptions(input="raw"))
    seconds, cpu_s = time.monotonic() - began, time.process_time() - began_cpu
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    assert case.label is not None
    registered = [record for record in prepared.history if record["step"] == "register"]
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "peak_mb": peak_mb,
        "motions": {record["sequence"]: record["matrix"] for record in registered},
        "residual_mm": max(record["residual_mm"] for record in registered),
        "round_trip": _round_trip(prepared, case.label),
        "brain_dice": _brain(prepared, folder / "brain.npy"),
    }


def _round_trip(prepared: Prepared, label: Path) -> float:
    """Return the Dice of the whole tumour, there and back to the native grid."""
    assert prepared.labels is not None
    regions = labels_to_regions(prepared.labels).astype(np.float32)
    native = to_native(regions, prepared) >= 0.5
    want = labels_to_regions(read_volume(label, empty_ok=True).data.astype(np.uint8))
    return dice(native, want)


def _brain(prepared: Prepared, truth: Path) -> float:
    inside = (prepared.image != 0).any(axis=0)[None].astype(np.float32)
    return dice(to_native(inside, prepared)[0] >= 0.5, np.load(truth))


if __name__ == "__main__":
    print(json.dumps(report(Path(sys.argv[1]))))  # noqa: T201
