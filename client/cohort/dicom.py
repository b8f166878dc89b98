"""DICOM studies as cases: one case for each study, the patient as the file's PatientID names it.

A mask is a NIfTI file named as in BraTS or BIDS (``seg.nii.gz``, ``NAME_seg.nii.gz``), in the
study's folder or below it, in a folder around that one study, or beside a zip file of the same
name. Unless the hospital says otherwise its enhancing tumour is 3; a 4 asks.

A study is used whole or not at all: where one of its files cannot be read, nobody knows what is
missing. It may lack a sequence, if t1c or t2f is there and none of its series could be the one that
is missing. PatientID and study date stay in the hospital, as all names of cases do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from client.cohort.case_assembly import Finding, Found, Refusal, relative
from client.imaging.dicom.file_scan import is_zip, scan
from client.imaging.dicom.series_choice import Choice, Decide, choose
from client.imaging.dicom.studies import Study, studies
from client.imaging.label_codings import PRESUMED
from common.errors import CaseError
from common.records.regular_files import open_regular

NAMELESS: Final = "unnamed"
"""The patient of a study without PatientID, where one patient need not be told from another."""

_LONGEST_NAME: Final = 64
_MOST_LISTED: Final = 8
_HEADER_BYTES: Final = 2**16


@dataclass(frozen=True)
class Judgement:
    """One study of a folder: its case's patient and session, and which series it would use.

    ``name`` is the folder or zip file, relative to the cohort's; made unique by "#2".
    """

    name: str
    study: Study
    session: str
    choice: Choice


def judge(paths: Iterable[Path], root: Path, decide: Decide) -> tuple[list[Judgement], list[Found]]:
    """Find the studies among ``paths``; return them and what cannot be read."""
    found = scan(paths)
    grouped = studies(found.instances)
    spoilt = _spoilt(grouped, found.faults)
    refused: list[Found] = [
        Refusal(path.parent.name, relative(path, root), error.message, error.code)
        for path, error in found.faults
        if not any((path, error) in faults for faults in spoilt.values())
    ]
    judged = []
    names: Counter[str] = Counter()
    dates: Counter[tuple[str, str]] = Counter()
    for number, study in enumerate(grouped):
        name = relative(study.place, root) if study.place != root else root.name
        names[name] += 1
        dates[study.patient, study.date] += 1
        again = dates[study.patient, study.date]
        session = "-".join(filter(None, (study.date, str(again) * (again > 1)))) or "1"
        name = f"{name}#{names[name]}" if names[name] > 1 else name
        if faults := spoilt.get(number):
            path, error = faults[0]
            reason = f"{error.message} It lies beside the study's: slices may be missing."
            refused.append(Refusal(_name(study, session), relative(path, root), reason, error.code))
            continue
        judged.append(Judgement(name, study, session, choose(study, decide)))
    return judged, refused


def _spoilt(
    grouped: Sequence[Study], faults: Sequence[tuple[Path, CaseError]]
) -> dict[int, list[tuple[Path, CaseError]]]:
    """Return which studies cannot be known to be whole, by their place in ``grouped``, and why.

    A file that cannot be read belongs to the study whose UID it holds, else to the one study whose
    files lie beside or around it; in a heap of several studies it may be nobody's.
    """
    places = [
        {study.place, *(_holder(part.path) for one in study.series for part in one.parts)}
        for study in grouped
    ]
    spoilt: dict[int, list[tuple[Path, CaseError]]] = defaultdict(list)
    for path, error in faults:
        near = [number for number, place in enumerate(places) if _holder(path) in place]
        if len(near) > 1:
            start = _start(path)
            near = [number for number in near if grouped[number].uid.encode() in start]
        for number in near:
            spoilt[number].append((path, error))
    return spoilt


def _start(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(_HEADER_BYTES)
    except OSError:  # that it cannot be read is the fault already
        return b""


def find(
    paths: Iterable[Path],
    masks: Sequence[Finding],
    root: Path,
    decide: Decide,
    *,
    nameless_ok: bool,
) -> Iterator[Found]:
    """Yield what the DICOM studies among ``paths`` are, with those of ``masks`` that are theirs.

    A study without a usable PatientID is refused unless ``nameless_ok``: two of one patient would
    count as two patients, and halve that patient's privacy.
    """
    judged, refused = judge(paths, root, decide)
    yield from refused
    owned = {mask.image.path: _owner(mask, judged) for mask in masks}
    for one in judged:
        patient = one.study.patient or NAMELESS * nameless_ok
        if not patient.isprintable() or not 0 < len(patient) <= _LONGEST_NAME:
            reason = "has no usable PatientID, so that nobody knows whose scan it is"
            yield Refusal(one.name, one.name, reason, "case-patient")
            continue
        one = replace(one, study=replace(one.study, patient=patient))
        if not one.choice.usable:
            reason = missing(one)
            yield Refusal(_name(one.study, one.session), one.name, reason, one.choice.code())
            continue
        yield from _findings(one, [mask for mask in masks if owned[mask.image.path] == one.name])


def missing(one: Judgement) -> str:
    """Say which sequences a study lacks, what could be them, and how to say which is which."""
    lacking = ", ".join(one.choice.missing)
    doubtful = [
        f"\n    series {judged.series.name}: {judged.verdict.role or 'not told'}, {judged.why}"
        for judged in one.choice.judged
        if not judged.used and not judged.verdict.left_out and not judged.decided
    ]
    spoilt = [
        f"\n    series {judged.series.name}, taken for {judged.verdict.role}, {judged.why}"
        for judged in one.choice.judged
        if judged.decided and not judged.used and judged.series.fault
    ]
    listed = [*spoilt, *doubtful][:_MOST_LISTED]
    if not listed:
        return f"no series for {lacking}; {len(one.choice.judged)} were looked at"
    eligible = [
        judged.series
        for judged in one.choice.judged
        if not judged.series.fault and not judged.verdict.left_out and not judged.used
    ]
    if not eligible:
        return f"no whole series for {lacking}: export these again:{''.join(listed)}"
    return (
        f"no series for {lacking} is whole and sure enough; what could be:{''.join(listed)}\n    "
        f'`gliofed-site series DIR "{one.name}" --set {one.choice.missing[0]}=SERIES` says which, '
        f"`gliofed-clinic segment --series {one.choice.missing[0]}=SERIES` for once; none=SERIES "
        "says that a series is none of them"
    )


def _findings(one: Judgement, masks: Sequence[Finding]) -> Iterator[Finding]:
    notes = one.choice.notes()
    for role, series in one.choice.chosen.items():
        image = series.image(one.study)
        yield Finding(
            layout="dicom",
            place=one.study.place / one.name,
            patient=one.study.patient,
            session=one.session,
            role=role,
            image=image,
            label_map=PRESUMED,
            label_settled=False,
            notes=notes,
        )
    for mask in masks:
        yield replace(
            mask,
            layout="dicom",
            place=one.study.place / one.name,
            patient=one.study.patient,
            session=one.session,
            label_map=PRESUMED,
            label_settled=False,
        )


def _owner(mask: Finding, judged: Sequence[Judgement]) -> str:
    """Return the name of the study that a mask belongs to, "" when none or several could be."""
    folder = mask.image.path.parent
    stem = mask.image.path.name.lower()
    inside = [one for one in judged if folder.is_relative_to(one.study.place)]
    beside = [
        one
        for one in judged
        if is_zip(one.study.place)
        and one.study.place.parent == folder
        and stem.startswith(
            (f"{one.study.place.stem}_".lower(), f"{one.study.place.stem}-".lower())
        )
    ]
    around = [one for one in judged if one.study.place.is_relative_to(folder)]
    if inside:
        deepest = max(len(one.study.place.parts) for one in inside)
        inside = [one for one in inside if len(one.study.place.parts) == deepest]
    owners = inside or beside or around
    return owners[0].name if len(owners) == 1 else ""


def _holder(path: Path) -> Path:
    """Return the folder or zip file whose files belong together."""
    return path if is_zip(path) else path.parent


def _name(study: Study, session: str) -> str:
    return f"{study.patient}-{session}"
