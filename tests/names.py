"""The names by which a hospital knows its patients, and where they are found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def names_of(cohort: Path) -> set[str]:
    """Return the names of a cohort's cases, patients and files, and where it lies."""
    cases = {path.name for path in cohort.iterdir() if path.is_dir()}
    patients = {name.rpartition("-")[0] for name in cases if name.count("-") > 2}
    files = {path.name for path in cohort.rglob("*") if path.is_file()}
    return {*cases, *patients, *files, str(cohort), cohort.name}


def names_in(text: str, names: Iterable[str]) -> list[str]:
    """Return which of ``names`` occur in ``text``, whatever the case of their letters."""
    lower = text.lower()
    return sorted(name for name in names if name.lower() in lower)
