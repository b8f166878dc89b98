"""The hospitals that the runs train on, prepared once and kept in the work folder.

``phantoms`` are six hospitals of 60 patients, as privacy needs patients: unlike scanners, unlike
tumours, coarse voxels so that the runs are affordable. ``folder`` is what GLIOFED_BENCH_DATA names.
``outside-phantoms`` and ``outside-folder`` are a hospital that no study has, of another scanner and
other heads, in the voxels of each: starts are trained on it.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Final

from common.records.atomic_files import write_bytes
from common.study.protocol import StudyProtocol
from tests.benchmarks.federation import Hospital, data_folder, folder_hospitals, phantom_hospitals

PROFILES: Final = (
    "3t-research",
    "1.5t-community",
    "3t-lowgrade",
    "1.5t-screening",
    "3t-research",
    "1.5t-community",
)
PATIENTS: Final = 60
HELD_OUT: Final = 10
SIZE: Final = {"phantoms": 40, "outside-phantoms": 40, "outside-folder": 64}
"""Voxels along a phantom's sides, of about the size that its study's protocol wants."""
OUTSIDE: Final = "reference"
_SEED: Final = 11
_OUTSIDE_SEED: Final = 97


def hospitals(cohort: str, work: Path, protocol: StudyProtocol) -> list[Hospital]:
    """Return the hospitals of ``cohort``; make and prepare them if ``work`` does not hold them."""
    path = work / f"{cohort}.pickle"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        write_bytes(path, pickle.dumps(_made(cohort, work / cohort, protocol)), durable=False)
    # Our own file: nobody else writes there.
    found: list[Hospital] = pickle.loads(path.read_bytes())  # noqa: S301
    return found


def _made(cohort: str, folder: Path, protocol: StudyProtocol) -> list[Hospital]:
    if cohort == "folder":
        data = data_folder()
        if data is None:
            raise SystemExit("GLIOFED_BENCH_DATA names no folder of hospitals.")
        return folder_hospitals(data, folder / "cache", protocol)
    profiles, seed = (PROFILES, _SEED) if cohort == "phantoms" else ((OUTSIDE,), _OUTSIDE_SEED)
    made = phantom_hospitals(
        folder,
        profiles,
        protocol,
        patients=PATIENTS,
        held_out=HELD_OUT,
        size=SIZE[cohort],
        seed=seed,
    )
    # Two hospitals may have the same scanner.
    return [
        Hospital(f"{number}-{one.name}", one.patients, one.held_out)
        for number, one in enumerate(made, start=1)
    ]
