"""Which coding a mask's values have: said in the data set, or by the hospital under ``[labels]``.

``[labels]`` in ``site.toml`` maps a folder of the cohort to a coding, "." to that of all; the
deepest folder around a mask counts. The order: a row of a manifest or a dataset.json, which speaks
of its own files; the hospital's folders; the names of files. A data set whose name says that its
values mean something else (BraTS-PED, BraTS-MEN-RT) is not read by the names of its files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from client.cohort.case_assembly import LABEL, Finding
from client.imaging.label_codings import NONE, Coding, of_other_tumours, parse
from common.errors import StateError

Declared = Mapping[Path, Coding]
"""Codings by folder, each below the cohort's, as absolute paths without dots."""


def declared(root: Path, said: Mapping[str, str]) -> Declared:
    """Return the codings that ``[labels]`` gives the folders of the cohort in ``root``.

    Raises StateError (code ``labels``): a folder that is not there, or what is no coding.
    """
    root = root.absolute()
    found = {}
    for folder, text in said.items():
        place = Path(os.path.normpath(root / folder))
        if not place.is_relative_to(root) or not place.is_dir():
            raise StateError(
                f"[labels] in site.toml names {folder}, which is no folder of {root}.",
                do='Write it relative to the cohort\'s folder; "." stands for that itself.',
                code="labels",
            )
        try:
            found[place] = parse(text)
        except ValueError as error:
            raise StateError(
                f"[labels] in site.toml cannot be read at {folder}: {error}.",
                do="client/README.md lists the codings.",
                code="labels",
            ) from None
    return found


def with_coding(finding: Finding, root: Path, said: Declared) -> Finding:
    """Return a mask's finding with the coding that was said of it; others as they are."""
    if finding.role != LABEL:
        return finding
    if finding.label_settled and finding.layout in ("decathlon", "manifest"):
        return finding
    path = Path(os.path.normpath(finding.image.path))
    around = [place for place in said if path.is_relative_to(place)]
    if around:
        deepest = max(around, key=lambda place: len(place.parts))
        return replace(finding, label_map=said[deepest], label_settled=True)
    inside = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    if of_other_tumours(f"{root.name}/{inside}") or of_other_tumours(finding.patient):
        return replace(finding, label_map=NONE, label_settled=False)
    return finding
