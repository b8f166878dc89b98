"""A CSV manifest: for cohorts whose files are named in no known way.

Columns: patient, t1n, t1c, t2w, t2f; if wanted also session, label (the mask) and labels (what
the mask's values mean, as in ``NCR=1 ED=2 ET=4 background=5`` or ``brats-2024``); others are
ignored. An empty cell says that the case lacks that sequence. Paths are relative to the manifest
and may not leave its folder, not even through a link. Separated by comma, semicolon or tab; UTF-8.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from client.cohort.case_assembly import LABEL, Finding, Found, Refusal
from client.imaging.case import Image
from client.imaging.label_codings import PRESUMED, parse
from client.imaging.limits import MOST_TABLE_BYTES
from common.errors import CaseError
from common.records.regular_files import open_regular, read_regular
from common.regions import MODALITIES

_REQUIRED: Final = ("patient", *MODALITIES)
_NAME: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


def manifests(root: Path) -> list[Path]:
    """Return the .csv files in ``root`` itself that list patients and sequences.

    Raises CaseError for a file that is meant as a manifest but lacks columns.
    """
    found = []
    for path in sorted(root.iterdir()):
        if path.suffix.lower() != ".csv" or path.name.startswith(".") or not path.is_file():
            continue
        columns = set(_header(path))
        if not columns & set(MODALITIES):
            continue  # another table, such as BraTS's survival_info.csv
        if lacking := [name for name in _REQUIRED if name not in columns]:
            raise CaseError(
                f"{path} is a manifest without the columns {', '.join(lacking)}.",
                do=f"Its first line must name {', '.join(_REQUIRED)}.",
                code="case-manifest",
            )
        found.append(path)
    return found


def find(path: Path) -> Iterator[Found]:
    """Yield what each row of a manifest names; raise CaseError when it is not a CSV file."""
    try:
        text = read_regular(path, most_bytes=MOST_TABLE_BYTES).decode("utf-8-sig")
        rows = csv.DictReader(
            io.StringIO(text, newline=""), delimiter=_delimiter(path), strict=True
        )
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
        for row in rows:
            where = f"{path.name} line {rows.line_num}"
            if any(row.values()):
                yield from _row(path.parent, where, row)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise _not_csv(path, error) from error


def _row(root: Path, where: str, row: dict[str, str]) -> Iterator[Found]:
    cells = {key: value.strip() for key, value in row.items() if isinstance(value, str)}
    patient, session = cells.get("patient", ""), cells.get("session", "")
    case = f"{patient}-{session}" if session else patient
    if not _NAME.match(patient) or (session and not _NAME.match(session)):
        reason = "patient and session may hold up to 64 letters, digits, dots, _ and -"
        yield Refusal(case, where, reason, "case-name")
        return
    if len(cells) < len(row):
        yield Refusal(case, where, "has more or fewer cells than the first line", "case-manifest")
        return
    try:
        said = cells.get("labels", "")
        label_map = parse(said) if said else PRESUMED
        images = {
            role: _inside(root, cells[role]) for role in (*MODALITIES, LABEL) if cells.get(role)
        }
    except ValueError as error:
        yield Refusal(case, where, str(error), "case-manifest")
        return
    if not images:
        yield Refusal(case, where, f"no file for {', '.join(MODALITIES)}", "case-sequence")
    for role, file in images.items():
        yield Finding(
            "manifest",
            root / where,
            patient,
            session,
            role,
            Image(file),
            label_map,
            label_settled=bool(said),
        )


def _inside(root: Path, text: str) -> Path:
    """Return the path that a cell names; raise ValueError when it leaves ``root``."""
    path = root / text
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError) as error:  # a link that leads to itself
        raise ValueError(f"the path {text} leads nowhere") from error
    if not inside:
        raise ValueError(f"the path {text} leaves the cohort's folder")
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise ValueError(f"{text} is not a .nii or .nii.gz file")
    return path


def _header(path: Path) -> list[str]:
    delimiter = _delimiter(path)
    return [name.strip().lower() for name in _first_line(path).split(delimiter)]


def _delimiter(path: Path) -> str:
    line = _first_line(path)
    return max(",;\t", key=line.count)


def _first_line(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.readline(10_000).decode("utf-8-sig", errors="replace").replace('"', "")
    except OSError as error:
        raise _not_csv(path, error) from error


def _not_csv(path: Path, error: Exception) -> CaseError:
    return CaseError(
        f"{path} cannot be read as CSV: {error}.",
        do="Save it again as CSV in UTF-8.",
        code="case-manifest",
    )
