"""Instances become studies and series: what belongs together, and what a series holds.

A series at the scanner may hold several volumes: echoes are split, each into a series of its own;
b-values and time points are not, they are no anatomical sequence. A file that is there twice, byte
for byte or under one UID in a folder and a zip of it, counts once.

Invariant: ``Series.name`` is the scanner's number, made unique in the study by ".1", ".2".
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from client.imaging.case import Image, Part
from client.imaging.dicom.files_and_zips import Digests, digests
from client.imaging.dicom.headers import Instance, Slice
from client.imaging.dicom.series_facts import Facts
from client.imaging.dicom.slice_geometry import Fault, directions, fault, missing_end

_SAME_MS: Final = 0.5
_MOST_ECHOES: Final = 4
_sums: Digests = {}


@dataclass(frozen=True)
class Series:
    """One volume of a study, or what is no volume, with the ``fault`` that says why.

    ``uid`` is the series' UID, and with several echoes the echo's number behind it. ``missing``
    says what hints at slices missing at an end, "" where nothing does.
    """

    uid: str
    name: str
    facts: Facts
    parts: tuple[Part, ...]
    fault: Fault | None
    missing: str

    def image(self, study: Study) -> Image:
        """Return the series as a case's image."""
        return Image(study.place, parts=self.parts, series=self.name)


@dataclass(frozen=True)
class Study:
    """One study of one patient. ``place`` is the folder or zip file that holds all of it.

    ``uid``, ``patient`` (DICOM's PatientID) and ``date`` (YYYYMMDD or "") stay in the hospital.
    """

    uid: str
    patient: str
    date: str
    place: Path
    series: tuple[Series, ...]


def studies(instances: Iterable[Instance]) -> list[Study]:
    """Group ``instances`` by study and patient, in the order of patients, dates and UIDs."""
    groups: dict[tuple[str, str], list[Instance]] = defaultdict(list)
    for one in instances:
        groups[one.study, one.patient].append(one)
    found = [_study(group) for group in groups.values()]
    return sorted(found, key=lambda study: (study.patient, study.date, study.uid))


def _study(instances: list[Instance]) -> Study:
    first = instances[0]
    groups: dict[str, list[Instance]] = defaultdict(list)
    for one in instances:
        groups[one.series].append(one)
    series = [one for uid, group in groups.items() for one in _split(uid, group)]
    return Study(
        uid=first.study,
        patient=first.patient,
        date=min(one.date for one in instances),
        place=_place({one.part.path for one in instances}),
        series=tuple(_named(series)),
    )


def _split(uid: str, instances: list[Instance]) -> list[Series]:
    """Return the series ``uid`` as one, or as one for each echo or enhanced object in it."""
    instances, twice = _once(instances)
    if any(one.enhanced for one in instances):
        several = len(instances) > 1
        return [
            _series(f"{uid}#{number}" if several else uid, [one], twice, whole=not several)
            for number, one in enumerate(sorted(instances, key=lambda one: one.number or 0), 1)
        ]
    echoes: dict[tuple[float, tuple[int, int], str], list[Instance]] = defaultdict(list)
    for one in instances:
        echoes[_echo(one.slices[0]), one.facts.shape, _component(one.facts)].append(one)
    several = 1 < len(echoes) <= _MOST_ECHOES
    if not several:
        return [_series(uid, instances, twice, whole=True)]
    return [
        _series(f"{uid}#{number}", group, twice, whole=False)
        for number, (_, group) in enumerate(sorted(echoes.items()), start=1)
    ]


def _series(uid: str, instances: list[Instance], twice: int, *, whole: bool) -> Series:
    instances = sorted(instances, key=lambda one: (one.number or 0, one.part))
    slices = [one for instance in instances for one in instance.slices]
    first = instances[0].facts
    kinds = {(_echo(one), one.b_value, one.temporal) for one in slices}
    wrong = fault(slices) if slices else Fault("case-orientation", "says nothing of its slices")
    if twice:
        wrong = Fault("case-slices", f"holds {twice} images twice, and the two differ")
    elif min(first.spacing_mm[:2]) <= 0:
        wrong = Fault("case-affine", "does not say how large its voxels are")
    elif len(kinds) > 1 and (wrong is None or wrong.code != "case-orientation"):
        wrong = Fault("case-volumes", f"holds {len(kinds)} volumes (echoes, b-values or times)")
    times = [one.time_s for one in instances if one.time_s is not None]
    facts = replace(
        first,
        spacing_mm=(*first.spacing_mm[:2], _step_mm(slices) if wrong is None else 0.0),
        slices=len(slices),
        volumes=len(kinds),
        orientations=max(1, len(directions(slices))),
        started_s=min(times, default=None),
    )
    missing = missing_end(instances) if whole and wrong is None else ""
    parts = tuple(one.part for one in instances)
    return Series(uid, str(first.number or 0), facts, parts, wrong, missing)


def _echo(one: Slice) -> float:
    """Return the echo time up to rounding, which some scanners do slice by slice."""
    return round((one.te or 0) / _SAME_MS) * _SAME_MS


def _once(instances: Sequence[Instance]) -> tuple[list[Instance], int]:
    """Leave out copies of a file; return too how many images are there twice and differ."""
    by_uid: dict[str, list[Instance]] = defaultdict(list)
    for one in instances:
        by_uid[one.uid].append(one)
    differ = 0
    for same in by_uid.values():
        if len(same) > 1:
            found = digests([x.part for x in same], _sha256, _sums)
            differ += len(set(found)) > 1
    return [same[0] for same in by_uid.values()], differ


def _sha256(_: Part, data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _step_mm(slices: Sequence[Slice]) -> float:
    """Return the distance of neighbouring slices of a regular volume, from where they lie."""
    places = np.array([one.position for one in slices])
    axis = int(np.ptp(places, axis=0).argmax())
    ends = places[places[:, axis].argmin()], places[places[:, axis].argmax()]
    return float(np.linalg.norm(ends[1] - ends[0])) / (len(slices) - 1)


def _component(facts: Facts) -> str:
    """Tell magnitude from phase, real and imaginary images; some scanners mix them in a series."""
    return facts.image_type[2] if len(facts.image_type) > 2 else ""


def _named(series: list[Series]) -> list[Series]:
    ordered = sorted(series, key=lambda one: (one.facts.number or 0, one.uid))
    counts = Counter(one.name for one in ordered)
    seen: Counter[str] = Counter()
    result = []
    for one in ordered:
        seen[one.name] += 1
        several = counts[one.name] > 1
        result.append(replace(one, name=f"{one.name}.{seen[one.name]}") if several else one)
    return result


def _place(paths: set[Path]) -> Path:
    """Return the folder around ``paths``; the zip file itself where there is nothing else."""
    if len(paths) == 1:
        (path,) = paths
        return path if path.suffix.lower() == ".zip" else path.parent
    parents = [path.parent for path in paths]
    common = parents[0]
    while not all(parent.is_relative_to(common) for parent in parents):
        common = common.parent
    return common
