"""Reading a cohort: every usable case below a folder, and why the rest is not usable.

The layout is found, not told; a folder may hold several. A manifest at the top is taken at its
word: then nothing else in the folder is used, so that a hospital can leave a patient out.
Files are found by name; voxels are read only by ``client.imaging``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from client.cohort import brats_and_bids, decathlon, manifest
from client.cohort.case_assembly import LABEL, Finding, Found, Refusal, assemble, relative
from client.imaging.case import Case
from common.errors import CaseError
from common.foreign_text import printable

if TYPE_CHECKING:  # DICOM's libraries are loaded where there is a file that may be one
    from client.cohort.dicom import Judgement
    from client.imaging.dicom.studies import Series

Decide: TypeAlias = "Callable[[Series], str | None]"
"""What a person decided about a DICOM series: a sequence, "none", or None where nobody did."""

_NOT_DICOM: Final = (
    ".bval", ".bvec", ".csv", ".gz", ".htm", ".html", ".jpeg", ".jpg", ".json", ".md", ".nii",
    ".pdf", ".png", ".toml", ".tsv", ".txt", ".xlsx", ".xml",
)  # fmt: skip


@dataclass(frozen=True)
class Cohort:
    """What a folder holds. ``layout`` names its layouts, joined by "+"."""

    layout: str
    cases: tuple[Case, ...]
    refused: tuple[Refusal, ...]

    @property
    def labelled(self) -> tuple[Case, ...]:
        """The cases with a tumour mask: those that a study can train and test on."""
        return tuple(case for case in self.cases if case.label is not None)

    @property
    def unlabelled(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.label is None)

    @property
    def patients(self) -> tuple[str, ...]:
        """The patients of all cases, sorted, each once."""
        return tuple(sorted({case.patient for case in self.cases}))


def undecided(_: Series) -> None:
    """Say of each DICOM series that nobody decided which sequence it is."""


def read_cohort(root: Path, *, decide: Decide = undecided) -> Cohort:
    """Find the cases below ``root``; raise CaseError when there is no usable one.

    ``decide`` says which sequence a person takes a DICOM series for.
    """
    cases, refused, names = _read(root, decide)
    if not cases:
        reasons = "".join(f"\n  {printable(r.case)} {_said(r)}" for r in refused[:10])
        known = "".join(f"\n  {line}" for line in brats_and_bids.KNOWN)
        raise CaseError(
            f"{root} holds no usable case ({len(refused)} refused).{reasons}",
            do=f"\nArrange the files in one of these ways:{known}",
            code="case-none",
        )
    return Cohort("+".join(sorted(names)), tuple(cases), tuple(refused))


def _said(one: Refusal) -> str:
    return f"{printable(one.file)}: {printable(one.reason, lines=True)}"


def read_case(folder: Path, *, decide: Decide = undecided) -> Case:
    """Find the one case in ``folder`` or zip file, in any layout, with or without a mask.

    It may lack sequences: what needs them refuses it. Raises CaseError when there is none, more
    than one, or one that cannot be used.
    """
    cases, refused, _ = _read(folder, decide, nameless_ok=True)
    spoilt = [one for one in refused if one.code != "case-name"]
    names = sorted({case.name for case in cases} | {one.case for one in spoilt})
    if len(names) > 1:
        raise CaseError(
            f"{folder} holds {len(names)} cases: {', '.join(map(printable, names[:10]))}.",
            do="Name the folder of one of them.",
            code="case-several",
        )
    if spoilt or not cases:
        reason = "; ".join(map(_said, (spoilt or refused)[:5]))
        known = "".join(f"\n  {line}" for line in brats_and_bids.KNOWN)
        raise CaseError(
            f"{folder} does not hold one usable case: {reason or 'no image in it'}.",
            do=f"\nThe sequences of one patient are needed, in one of these ways:{known}",
            code=spoilt[0].code if spoilt else "case-none",
        )
    return cases[0]


def read_studies(root: Path, *, decide: Decide = undecided) -> list[Judgement]:
    """Return the DICOM studies below ``root``, with what each series was taken for."""
    from client.cohort.dicom import judge

    root = root.absolute()
    paths = [
        here / name
        for here, _, names in _folders(root, [])
        for name in names
        if _may_be_dicom(name)
    ]
    return judge(paths, root, decide)[0]


def _read(
    root: Path, decide: Decide, *, nameless_ok: bool = False
) -> tuple[list[Case], list[Refusal], set[str]]:
    root = root.absolute()
    if root.is_file() and root.suffix.lower() == ".zip":
        from client.cohort.dicom import find

        zipped = list(find([root], (), root.parent, decide, nameless_ok=nameless_ok))
        return _assembled(root.parent, zipped)
    if not root.is_dir():
        raise CaseError(
            f"{root} is not a folder.", do="Check the path and the mount.", code="case-none"
        )
    try:
        tables = manifest.manifests(root)
    except OSError as error:
        raise CaseError(
            f"{root} cannot be read: {error.strerror or error}.",
            do="Check that this user may read it.",
            code="case-file",
        ) from error
    if tables:
        return _assembled(root, [one for table in tables for one in manifest.find(table)])
    scanned: list[Path] = []
    found = list(_walk(root, scanned))
    if scanned:
        found = _with_dicom(root, found, scanned, decide, nameless_ok=nameless_ok)
    return _assembled(root, found)


def _assembled(root: Path, found: list[Found]) -> tuple[list[Case], list[Refusal], set[str]]:
    findings = [one for one in found if isinstance(one, Finding)]
    refused = [one for one in found if isinstance(one, Refusal)]
    cases, more, names = assemble(root, findings)
    cases, doubtful = _certain(root, cases, refused + more)
    return cases, refused + more + doubtful, names


def _certain(
    root: Path, cases: list[Case], refused: list[Refusal]
) -> tuple[list[Case], list[Refusal]]:
    """Leave out each case that lacks a sequence where a file that is not used may be it."""
    kept: list[Case] = []
    doubtful: list[Refusal] = []
    for case in cases:
        folders = {
            relative(image.path, root).rpartition("/")[0]
            for image in case.images.values()
            if not image.parts
        }
        beside = (
            one
            for one in refused
            if one.case == case.name
            or (one.code == "case-name" and one.file.rpartition("/")[0] in folders)
        )
        other = next(beside, None) if case.missing else None
        if other is None:
            kept.append(case)
            continue
        reason = (
            f"no file for {', '.join(case.missing)}, and this one is not used; if it is none of "
            "them, take it out of the folder"
        )
        doubtful.append(Refusal(case.name, other.file, reason, "case-sequence"))
    return kept, doubtful


def _with_dicom(
    root: Path, found: list[Found], paths: list[Path], decide: Decide, *, nameless_ok: bool
) -> list[Found]:
    """Add the DICOM studies among ``paths``; a mask without images may be one's, and then is."""
    from client.cohort.dicom import find

    findings = [one for one in found if isinstance(one, Finding)]
    complete = {_group(one) for one in findings if one.role != LABEL}
    masks = [one for one in findings if one.role == LABEL and _group(one) not in complete]
    studies = list(find(paths, masks, root, decide, nameless_ok=nameless_ok))
    taken = {one.image.path for one in studies if isinstance(one, Finding) and one.role == LABEL}
    rest = [one for one in found if isinstance(one, Refusal) or one.image.path not in taken]
    return rest + studies


def _group(one: Finding) -> tuple[str, Path, str, str]:
    return one.layout, one.place, one.patient, one.session


def _may_be_dicom(name: str) -> bool:
    return not name.startswith(".") and not name.lower().endswith(_NOT_DICOM)


def _folders(root: Path, faults: list[OSError]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield each folder below ``root`` once, links followed, with its folders and files."""
    seen: set[Path] = set()
    for folder, subfolders, names in os.walk(root, onerror=faults.append, followlinks=True):
        here = Path(folder)
        real = here.resolve()
        if real in seen:  # a link to a folder that was read already, or to one around it
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield here, subfolders, names


def _walk(root: Path, scanned: list[Path]) -> Iterator[Found]:
    """Yield what the NIfTI files below ``root`` are; put what may be DICOM into ``scanned``."""
    faults: list[OSError] = []
    tasks: dict[Path, list[Path]] = {}
    for here, subfolders, names in _folders(root, faults):
        task = next((up for up in (here, *here.parents) if up in tasks), None)
        if task is None and decathlon.is_task(names, subfolders):
            task = here
            tasks[here] = []
        for name in sorted(names):
            if name.startswith(".") or not name.endswith((".nii", ".nii.gz")):
                if task is None and _may_be_dicom(name):
                    scanned.append(here / name)
                continue
            if task is not None:
                tasks[task].append(here / name)
                continue
            path = here / name
            known = brats_and_bids.in_bids(path, root)
            finding = brats_and_bids.bids(path, root) if known else brats_and_bids.brats(path)
            if finding is not None:
                yield finding
            elif not known:
                reason = "the name of the file fits no known layout"
                yield Refusal(here.name, relative(path, root), reason, "case-name")
    for task, files in tasks.items():
        yield from decathlon.find(task, files, root)
    for fault in faults:
        place = relative(Path(fault.filename), root)
        yield Refusal("", place, f"cannot be read: {fault.strerror}", "case-file")
