"""Reading a cohort: every usable case below a folder, and why the rest is not usable.

The layout is found, not told; a folder may hold several. A manifest at the top is taken at its
word: then nothing else in the folder is used, so that a hospital can leave a patient out.
Files are found by name; voxels are read only by ``client.imaging``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

from client.cohort import brats_and_bids, decathlon, manifest
from client.cohort.case_assembly import LABEL, Finding, Found, Refusal, assemble, relative
from client.cohort.declared_labels import Declared, declared, with_coding
from client.imaging.case import Case
from common.errors import CaseError
from common.foreign_text import printable

if TYPE_CHECKING:  # DICOM's libraries are loaded where there is a file that may be one
    from client.cohort.dicom import Judgement
    from client.imaging.dicom.studies import Series

Decide: TypeAlias = "Callable[[Series], str | None]"
"""What a person decided about a DICOM series: a sequence, "none", or None where nobody did."""

_NOTHING_SAID: Final[Mapping[str, str]] = MappingProxyType({})

_NOT_DICOM: Final = (
    ".bval", ".bvec", ".csv", ".gz", ".htm", ".html", ".jpeg", ".jpg", ".json", ".md", ".nii",
    ".pdf", ".png", ".toml", ".tsv", ".txt", ".xlsx", ".xml",
)  # fmt: skip

_NIFTI: Final = (".nii", ".nii.gz")

_OTHER_IMAGES: Final = {
    ".nrrd": "NRRD", ".nhdr": "NRRD", ".mha": "MetaImage", ".mhd": "MetaImage",
    ".mgz": "FreeSurfer's format", ".mgh": "FreeSurfer's format", ".mnc": "MINC",
    ".nii.bz2": "NIfTI packed by bzip2", ".nii.xz": "NIfTI packed by xz",
    ".nii.zst": "NIfTI packed by Zstandard", ".head": "AFNI's format", ".par": "Philips PAR/REC",
    ".gipl": "GIPL", ".img": "Analyze or a NIfTI pair", ".img.gz": "Analyze or a NIfTI pair",
}  # fmt: skip
"""Endings of volumes that are not read, with what they are. A .img may be DICOM: it counts as that
of a pair where a .hdr of its name lies beside it."""

UNREAD: Final = ("case-name", "case-format")
"""Codes of files that have no part in a case, but may be one's sequence."""


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


def read_cohort(
    root: Path, *, decide: Decide = undecided, labels: Mapping[str, str] = _NOTHING_SAID
) -> Cohort:
    """Find the cases below ``root``; raise CaseError when there is no usable one.

    ``decide`` says which sequence a person takes a DICOM series for, ``labels`` which coding the
    masks of a folder have (``client.cohort.declared_labels``, whose StateError it raises).
    """
    cases, refused, names = _read(root, decide, labels=labels)
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
    spoilt = [one for one in refused if one.code not in UNREAD]
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
    root: Path,
    decide: Decide,
    *,
    nameless_ok: bool = False,
    labels: Mapping[str, str] = _NOTHING_SAID,
) -> tuple[list[Case], list[Refusal], set[str]]:
    root = root.absolute()
    if root.is_file() and root.suffix.lower() == ".zip":
        from client.cohort.dicom import find

        zipped = list(find([root], (), root.parent, decide, nameless_ok=nameless_ok))
        return _assembled(root.parent, zipped, {})
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
    said = declared(root, labels)
    if tables:
        listed = [one for table in tables for one in manifest.find(table)]
        return _assembled(root, listed, said)
    scanned: list[Path] = []
    found = list(_walk(root, scanned))
    if scanned:
        found = _with_dicom(root, found, scanned, decide, nameless_ok=nameless_ok)
    return _assembled(root, found, said)


def _assembled(
    root: Path, found: list[Found], said: Declared
) -> tuple[list[Case], list[Refusal], set[str]]:
    findings = [with_coding(one, root, said) for one in found if isinstance(one, Finding)]
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
            or (one.code in UNREAD and one.file.rpartition("/")[0] in folders)
        )
        other = next(beside, None) if case.missing else None
        if other is None:
            kept.append(case)
            continue
        why = f" ({other.reason})" if other.code == "case-format" else ""
        reason = (
            f"no file for {', '.join(case.missing)}, and this one is not used{why}; if it is none "
            "of them, take it out of the folder"
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


def _other_image(name: str, beside: Collection[str]) -> str:
    """Return what kind of volume that is not read ``name`` is by its ending, "" if it is none."""
    lower = name.lower()
    ending = next((one for one in _OTHER_IMAGES if lower.endswith(one)), "")
    if name.startswith(".") or not ending:
        return ""
    if ending in (".img", ".img.gz", ".head", ".par"):
        partners = {".head": ".brik", ".par": ".rec"}
        stem = lower.removesuffix(ending) + partners.get(ending, ".hdr")
        if not any(one.lower().removesuffix(".gz") == stem for one in beside):
            return ""
    return _OTHER_IMAGES[ending]


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
            if name.startswith(".") or not name.lower().endswith(_NIFTI):
                kind = _other_image(name, names)
                if kind and not brats_and_bids.derived_anatomy(here, root):
                    reason = f"{kind} is not read: convert it to .nii.gz"
                    yield Refusal(here.name, relative(here / name, root), reason, "case-format")
                elif not kind and task is None and _may_be_dicom(name):
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
