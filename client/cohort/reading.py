"""Reading a cohort: every usable case below a folder, and why the rest is not usable.

The layout is found, not told; a folder may hold several. A manifest at the top is taken at its
word: then nothing else in the folder is used, so that a hospital can leave a patient out.
Files are found by name; voxels are read only by ``client.imaging``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client.cohort import decathlon, layouts, manifest
from client.cohort.findings import Finding, Found, Refusal, assemble, relative
from client.imaging.case import Case
from common.errors import CaseError


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


def read_cohort(root: Path) -> Cohort:
    """Find the cases below ``root``; raise CaseError when there is no usable one."""
    cases, refused, names = _read(root)
    if not cases:
        reasons = "".join(f"\n  {r.case} {r.file}: {r.reason}" for r in refused[:10])
        known = "".join(f"\n  {line}" for line in layouts.KNOWN)
        raise CaseError(
            f"{root} holds no usable case ({len(refused)} refused).{reasons}",
            do=f"\nArrange the files in one of these ways:{known}",
            code="case-none",
        )
    return Cohort("+".join(sorted(names)), tuple(cases), tuple(refused))


def read_case(folder: Path) -> Case:
    """Find the one case in ``folder``, in any layout, with or without a mask.

    Raises CaseError when there is none, more than one, or one that is not complete.
    """
    cases, refused, _ = _read(folder)
    spoilt = [one for one in refused if one.code != "case-name"]
    names = sorted({case.name for case in cases} | {one.case for one in spoilt})
    if len(names) > 1:
        raise CaseError(
            f"{folder} holds {len(names)} cases: {', '.join(names[:10])}.",
            do="Name the folder of one of them.",
            code="case-several",
        )
    if spoilt or not cases:
        reason = "; ".join(f"{r.file}: {r.reason}" for r in (spoilt or refused)[:5])
        known = "".join(f"\n  {line}" for line in layouts.KNOWN)
        raise CaseError(
            f"{folder} does not hold one complete case: {reason or 'no NIfTI file in it'}.",
            do=f"\nFour sequences of one patient are needed, named in one of these ways:{known}",
            code=spoilt[0].code if spoilt else "case-none",
        )
    return cases[0]


def _read(root: Path) -> tuple[list[Case], list[Refusal], set[str]]:
    root = root.absolute()
    if not root.is_dir():
        raise CaseError(
            f"{root} is not a folder.", do="Check the path and the mount.", code="case-none"
        )
    findings: list[Finding] = []
    refused: list[Refusal] = []
    try:
        tables = manifest.manifests(root)
    except OSError as error:
        raise CaseError(
            f"{root} cannot be read: {error.strerror or error}.",
            do="Check that this user may read it.",
            code="case-file",
        ) from error
    found = (one for table in tables for one in manifest.find(table)) if tables else _walk(root)
    for one in found:
        if isinstance(one, Finding):
            findings.append(one)
        else:
            refused.append(one)
    cases, more, names = assemble(root, findings)
    return cases, refused + more, names


def _walk(root: Path) -> Iterator[Found]:
    faults: list[OSError] = []
    tasks: dict[Path, list[Path]] = {}
    seen: set[Path] = set()
    for folder, subfolders, names in os.walk(root, onerror=faults.append, followlinks=True):
        here = Path(folder)
        real = here.resolve()
        if real in seen:  # a link to a folder that was read already, or to one around it
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        task = next((up for up in (here, *here.parents) if up in tasks), None)
        if task is None and decathlon.is_task(names, subfolders):
            task = here
            tasks[here] = []
        for name in sorted(names):
            if name.startswith(".") or not name.endswith((".nii", ".nii.gz")):
                continue
            if task is not None:
                tasks[task].append(here / name)
                continue
            path = here / name
            known = layouts.in_bids(path, root)
            finding = layouts.bids(path, root) if known else layouts.brats(path)
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
