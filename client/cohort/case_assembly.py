"""What a layout finds in a folder, and how findings become cases.

Each layout turns files into findings: this file is that sequence of that patient at that time
point. The rules about what makes a case hold for all layouts and live here. Invariant: each
finding ends in exactly one case or one refusal.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.imaging.case import Case, Image, Part
from client.imaging.limits import MOST_NIFTI_BYTES
from client.imaging.missing_sequences import NEEDED, sufficient
from common.errors import CaseError
from common.records.regular_files import open_regular
from common.regions import MODALITIES

LABEL: Final = "label"
_SAMPLE: Final = 2**16


@dataclass(frozen=True)
class Refusal:
    """Why something found in a cohort's folder is not used.

    ``file`` is relative to the cohort's folder, "" when the fault is in no single file. ``code``
    is the only part that may leave the hospital.
    """

    case: str
    file: str
    reason: str
    code: str


@dataclass(frozen=True)
class Finding:
    """One file's part in a case. ``place`` keeps two copies of one case apart."""

    layout: str
    place: Path
    patient: str
    session: str
    role: str
    image: Image
    label_map: Mapping[int, int]
    label_settled: bool = True
    notes: tuple[str, ...] = ()


Found = Finding | Refusal


def assemble(root: Path, findings: Iterable[Finding]) -> tuple[list[Case], list[Refusal], set[str]]:
    """Return the cases, sorted by name, what was refused, and the layouts of the cases."""
    groups: dict[tuple[str, Path, str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.layout, finding.place, finding.patient, finding.session].append(finding)
    refused: list[Refusal] = []
    by_name: dict[str, list[tuple[str, Case]]] = defaultdict(list)
    for (layout, *_), group in sorted(groups.items()):
        outcome = _case(root, group)
        if isinstance(outcome, Case):
            by_name[outcome.name].append((layout, outcome))
        else:
            refused.append(outcome)
    cases: list[Case] = []
    layouts: set[str] = set()
    for name, same in sorted(by_name.items()):
        if len(same) == 1:
            layouts.add(same[0][0])
            cases.append(same[0][1])
            continue
        refused.extend(
            Refusal(
                name,
                relative(next(iter(case.images.values())).path, root),
                f"the case is there {len(same)} times; keep one",
                "case-duplicate",
            )
            for _, case in same
        )
    cases, copies = _without_copies(root, cases)
    return cases, refused + copies, layouts


def relative(path: Path, root: Path) -> str:
    """Return ``path`` as seen from ``root``, for messages."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _case(root: Path, group: list[Finding]) -> Case | Refusal:
    first = group[0]
    by_role: dict[str, list[Finding]] = defaultdict(list)
    for finding in group:
        by_role[finding.role].append(finding)
    label = by_role.get(LABEL)
    case = Case(
        patient=first.patient,
        session=first.session,
        images={name: by_role[name][0].image for name in MODALITIES if name in by_role},
        label=label[0].image.path if label else None,
        label_map=label[0].label_map if label else first.label_map,
        label_settled=label[0].label_settled if label else first.label_settled,
        notes=first.notes,
    )
    for role, several in by_role.items():
        if len(several) > 1:
            files = ", ".join(relative(one.image.path, root) for one in several)
            reason = f"{len(several)} files for one sequence ({role}): {files}"
            file = relative(several[1].image.path, root)
            return Refusal(case.name, file, reason, "case-ambiguous")
        path = several[0].image.path
        if not several[0].image.parts and (fault := _fault(path)):
            return Refusal(case.name, relative(path, root), fault, "case-file")
    if not sufficient(case.images):
        reason = f"no file for {', '.join(case.missing)}: {' or '.join(NEEDED)} must be there"
        place = relative(first.image.path.parent, root)
        return Refusal(case.name, place, reason, "case-sequence")
    return case


def _fault(path: Path) -> str:
    try:
        return "" if path.is_file() else "the file does not exist"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _without_copies(root: Path, cases: list[Case]) -> tuple[list[Case], list[Refusal]]:
    """Leave out each case whose contrast-enhanced T1 is a copy of an earlier one's.

    Of two cases of which one has none, the FLAIR is compared. The same scan under two patients'
    names would weaken the patient's privacy and put one patient into training and test. NIfTI files
    are compared byte for byte, DICOM series by their pixels; whole ones only where a sample agrees.
    """
    whole = all(NEEDED[0] in case.images for case in cases)
    names = NEEDED[:1] if whole else NEEDED
    kept: list[Case] = []
    refused: list[Refusal] = []
    seen: dict[tuple[str, int, bytes, int | None], list[Case]] = defaultdict(list)
    for case in cases:
        image, twin = case.images[case.reference], None
        places = []
        try:
            for name in (name for name in names if name in case.images):
                image = case.images[name]
                places.append((name, *_sample(image), image.index))
                alike = (one for one in seen[places[-1]] if _compared(one, case) == name)
                twin = twin or next((o for o in alike if _same(o.images[name], image)), None)
        except CaseError as error:
            refused.append(
                Refusal(case.name, relative(image.path, root), error.message, error.code)
            )
            continue
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
            refused.append(Refusal(case.name, relative(image.path, root), reason, "case-file"))
            continue
        for place in places:
            seen[place].append(case)
        if twin is None:
            kept.append(case)
        else:
            same = _compared(twin, case)
            image = case.images[same]
            reason = f"is a copy of {relative(twin.images[same].path, root)} ({twin.name})"
            refused.append(Refusal(case.name, relative(image.path, root), reason, "case-copy"))
    return kept, refused


def _compared(one: Case, other: Case) -> str:
    """Return the sequence by which two cases are compared, "" if they share none that counts."""
    return next((n for n in NEEDED if n in one.images and n in other.images), "")


def _sample(image: Image) -> tuple[int, bytes]:
    """Return a file's size, or a series' number of files, and a digest of the middle."""
    if image.parts:
        return len(image.parts), _shown(image.parts[len(image.parts) // 2 :][:1])
    path = image.path
    size = path.stat().st_size
    with open_regular(path) as file:
        file.seek(max(0, (size - _SAMPLE) // 2))
        return size, hashlib.sha256(file.read(_SAMPLE)).digest()


def _shown(parts: Sequence[Part]) -> bytes:
    """Return a digest of the pixels of DICOM files, whatever patient their headers name."""
    from client.imaging.dicom.volume import pixel_digest

    return pixel_digest(parts)


def _same(one: Image, other: Image) -> bool:
    digests = []
    for image in (one, other):
        if image.parts:
            digests.append(_shown(image.parts))
            continue
        with open_regular(image.path, most_bytes=MOST_NIFTI_BYTES) as file:
            digests.append(hashlib.file_digest(file, "sha256").digest())
    return digests[0] == digests[1]
