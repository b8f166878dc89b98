"""The quality report of a cohort: one HTML file with everything in it, and JSON for programs.

The page loads nothing, runs no script and shows text as text, whatever a file name says. It shows
patients: both files are readable by their owner alone.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2

from client.cohort.quality.case_measurements import CaseMeasures
from client.cohort.quality.cohort_warnings import Remark
from common.foreign_text import on_page
from common.records.atomic_files import write_bytes
from common.regions import LABEL_COLOURS, MODALITIES

_TEMPLATE: Final = Path(__file__).with_name("page.html")
_PRIVATE: Final = 0o600
_NOT_TOLD: Final = ("sketch", "voxels_sha256")


def write_report(
    folder: Path,
    *,
    site: str,
    spacing_mm: float,
    cases: Sequence[CaseMeasures],
    remarks: Sequence[Remark],
    refused: Sequence[Mapping[str, str]],
    pictures: Mapping[str, bytes],
) -> Path:
    """Write ``quality.html`` and ``quality.json`` into ``folder``; return the page's path.

    ``pictures`` has a PNG for the name of each case. Raises StateError if it cannot be written.
    """
    by_case: dict[str, list[Remark]] = {case.name: [] for case in cases}
    for one in remarks:
        by_case[one.case].append(one)
    environment = jinja2.Environment(
        finalize=on_page,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        site=site,
        made=dt.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
        spacing_mm=f"{spacing_mm:g}",
        cases=sorted(cases, key=lambda case: (not by_case[case.name], case.name)),
        patients=len({case.patient for case in cases}),
        refused=refused,
        remarks=remarks,
        by_case=by_case,
        doubts=sum(one.kind == "doubt" for one in remarks),
        notes=sum(one.kind == "note" for one in remarks),
        anchors={case.name: f"case-{number}" for number, case in enumerate(cases)},
        pictures={name: base64.b64encode(data).decode() for name, data in pictures.items()},
        sequences=MODALITIES,
        colours=LABEL_COLOURS,
    )
    value = {
        "site": site,
        "spacing_mm": spacing_mm,
        "cases": [as_json(case) for case in cases],
        "remarks": [dataclasses.asdict(one) for one in remarks],
        "refused": [dict(one) for one in refused],
    }
    write_bytes(
        folder / "quality.json",
        (json.dumps(value, indent=2, allow_nan=False) + "\n").encode(),
        mode=_PRIVATE,
    )
    page = folder / "quality.html"
    write_bytes(page, html.encode(), mode=_PRIVATE)
    return page


def as_json(case: CaseMeasures) -> dict[str, Any]:
    """Return the measures of a case as JSON; what cannot be told is null."""
    value = {
        field.name: getattr(case, field.name)
        for field in dataclasses.fields(case)
        if field.name not in _NOT_TOLD
    }
    value["sequences"] = {
        name: {
            key: None if isinstance(one, float) and math.isnan(one) else one
            for key, one in dataclasses.asdict(measured).items()
        }
        for name, measured in case.sequences.items()
    }
    value["plausibility"] = {
        key: None if isinstance(one, float) and math.isnan(one) else one
        for key, one in dataclasses.asdict(case.plausibility).items()
    }
    value["mask"] = None if case.mask is None else dataclasses.asdict(case.mask)
    return value
