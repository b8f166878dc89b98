"""A folder of phantom patients in a BraTS layout, marked as synthetic.

``phantom.json`` is written before the first image, so that no phantom is ever without the mark.
Files appear whole or not at all. A folder that holds anything else is refused, so that phantoms
never mix with patients.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import nibabel
import numpy as np
from numpy.typing import NDArray

from client.phantoms.cases import make_case, session_count
from client.phantoms.profiles import Profile
from common.errors import StateError
from common.process.child_processes import die_with_parent
from common.records.atomic_files import write_bytes
from common.regions import LABELS

VERSION: Final = "1"
"""Changes when the same arguments give other images."""

MARK: Final = "phantom.json"

Layout = Literal["brats2023", "brats2020"]


@dataclass(frozen=True)
class _Naming:
    case: str
    file: str
    words: dict[str, str]
    enhancing: int
    follow_ups: bool


_LAYOUTS: Final = {
    "brats2023": _Naming(
        case="BraTS-PHA-{number:05d}-{session:03d}",
        file="{case}-{word}.nii.gz",
        words={"t1n": "t1n", "t1c": "t1c", "t2w": "t2w", "t2f": "t2f"},
        enhancing=LABELS["ET"],
        follow_ups=True,
    ),
    # The older layout names no patient apart from the case, so each patient is scanned once.
    "brats2020": _Naming(
        case="BraTS20_Phantom_{number:03d}",
        file="{case}_{word}.nii.gz",
        words={"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"},
        enhancing=4,
        follow_ups=False,
    ),
}


def write_cohort(
    folder: Path,
    profile: Profile,
    *,
    patients: int,
    size: int = 64,
    seed: int = 0,
    site: int = 0,
    layout: Layout = "brats2023",
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
) -> tuple[Path, ...]:
    """Write a hospital's phantoms below ``folder``; return the case folders in order.

    ``progress`` is told (cases written, cases in all). Writing again with the same settings and
    at least as many patients gives the same files and adds the missing ones. More than one worker
    starts that many processes. Raises StateError when the folder holds anything else.
    """
    record = {
        "synthetic": True,
        "note": "Computer-made phantoms. No patient was scanned; not for clinical use.",
        "generator": "client.phantoms",
        "version": VERSION,
        "profile": profile.to_dict(),
        "seed": seed,
        "site": site,
        "size": size,
        "layout": layout,
        "patients": patients,
    }
    _claim(folder, record)
    follow_ups = _LAYOUTS[layout].follow_ups
    cases = [
        (number, session)
        for number in range(1, patients + 1)
        for session in range(
            session_count(profile, seed=seed, number=number, site=site) if follow_ups else 1
        )
    ]
    write = partial(_write_case, folder, profile, size=size, seed=seed, site=site, layout=layout)
    folders = []
    for path in _each(write, cases, workers):
        folders.append(path)
        if progress is not None:
            progress(len(folders), len(cases))
    return tuple(folders)


def _each(
    write: Callable[[tuple[int, int]], Path], cases: list[tuple[int, int]], workers: int
) -> Iterator[Path]:
    if workers <= 1:
        yield from map(write, cases)
        return
    # A forked child would inherit the threads' locks of the networks' library.
    context = multiprocessing.get_context("spawn")
    ends = die_with_parent if sys.platform == "linux" else None
    with ProcessPoolExecutor(workers, mp_context=context, initializer=ends) as pool:
        yield from pool.map(write, cases)


def _claim(folder: Path, record: dict[str, Any]) -> None:
    """Mark ``folder`` as ours, or refuse it."""
    mark = folder / MARK
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if MARK in present:
        earlier = json.loads(mark.read_bytes())
        settings = {**record, "patients": 0} == {**earlier, "patients": 0}
        if not settings or earlier["patients"] > record["patients"]:
            raise StateError(
                f"{folder} holds phantoms that were made with other settings.",
                do="Choose another folder, or delete this one.",
                code="phantom-settings",
            )
    elif present:
        raise StateError(
            f"{folder} is not empty, and what it holds are not phantoms.",
            do="Choose an empty folder: phantoms are never written beside patients.",
            code="phantom-folder",
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(mark, json.dumps(record, indent=2).encode() + b"\n")


def _write_case(
    folder: Path,
    profile: Profile,
    case: tuple[int, int],
    *,
    size: int,
    seed: int,
    site: int,
    layout: Layout,
) -> Path:
    number, session = case
    phantom = make_case(profile, size=size, seed=seed, number=number, site=site, session=session)
    naming = _LAYOUTS[layout]
    name = naming.case.format(number=number, session=session)
    target = folder / name
    target.mkdir(exist_ok=True)
    for modality, image in phantom.images.items():
        path = target / naming.file.format(case=name, word=naming.words[modality])
        _write_image(path, image, phantom.affine)
    labels = np.where(phantom.labels == LABELS["ET"], naming.enhancing, phantom.labels)
    path = target / naming.file.format(case=name, word="seg")
    _write_image(path, labels.astype(np.uint8), phantom.affine)
    return target


def _write_image(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
    image = nibabel.Nifti1Image(data, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"synthetic phantom"
    write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0), durable=False)
