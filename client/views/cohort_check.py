"""What a site finds when it looks at its own data and machine. Nothing of it leaves the site."""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from client.cohort.quality.case_check import check_case
from client.cohort.quality.case_measurements import CaseMeasures
from client.cohort.quality.cohort_warnings import Remark, remarks
from client.cohort.quality.quality_report import as_json, write_report
from client.cohort.series_decisions import cohort_of
from client.imaging.case import Case
from client.imaging.parallel_cases import each, workers_for
from client.privacy.budget_caps import open_ledger
from client.site.execution import execution_for
from client.site.folder import Site
from client.site.pseudonyms import patients_key, pseudonym, withdrawn
from common.errors import StateError
from common.foreign_text import printable_values
from common.records.atomic_files import write_json
from common.study.protocol import PreprocessingOptions


def check_site(
    site: Site,
    options: PreprocessingOptions,
    *,
    report: Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Prepare every case and say which can be used; raise CaseError if the cohort has none.

    The prepared cases stay in the cache, so that training does not prepare them again, and a check
    that was broken off goes on where it was. With ``report`` a page to look through is written into
    that folder. ``workers`` is how many cases are prepared at a time; as many as the machine can
    hold if it is None.
    """
    cohort = cohort_of(site)
    gone, key = withdrawn(site), patients_key(site)
    cases = [case for case in cohort.cases if pseudonym(key, case.patient) not in gone]
    refused = [
        printable_values({"case": r.case, "file": r.file, "reason": r.reason, "code": r.code})
        for r in cohort.refused
    ]
    work = functools.partial(
        check_case,
        cache=site.folder / "cache",
        options=options,
        limit_bytes=site.settings.machine.cache_bytes,
        drawn=report is not None,
    )
    raw = options.input == "raw"
    workers = workers_for(cases, raw=raw) if workers is None else workers
    usable: list[Case] = []
    measured: list[CaseMeasures] = []
    pictures: dict[str, bytes] = {}
    notes: list[Remark] = []
    for number, found in enumerate(each(work, cases, workers=workers), start=1):
        if found.measures is None:
            refused.append(
                {
                    "case": found.case.name,
                    "file": "",
                    "reason": found.reason,
                    "code": found.code,
                }
            )
        else:
            usable.append(found.case)
            measured.append(found.measures)
            pictures[found.case.name] = found.picture
            notes += [Remark("note", "prepared", found.case.name, one) for one in found.notes]
        if progress is not None:
            progress(number, len(cases))
    said = remarks(measured) + notes
    page = ""
    if report is not None:
        page = str(
            write_report(
                report,
                site=site.name,
                spacing_mm=options.spacing_mm,
                cases=measured,
                remarks=said,
                refused=refused,
                pictures=pictures,
            )
        )
    with contextlib.suppress(StateError):  # only the figures of the site's page go without
        write_json(
            site.checked,
            {
                "usable": len(usable),
                "labelled": sum(case.label is not None for case in usable),
                "refused": len(refused),
                "doubtful": len({one.case for one in said if one.kind == "doubt"}),
            },
        )
    with open_ledger(site) as ledger:
        facts = len(ledger.facts())
    execution = execution_for(site.settings.machine)
    return {
        "data": str(site.data),
        "layout": cohort.layout,
        "cases": len(usable),
        "patients": len({case.patient for case in usable}),
        "labelled_cases": sum(case.label is not None for case in usable),
        "withdrawn_patients": len(gone),
        "cases_without_tumour": sum(_empty(one) for one in measured),
        "cases_that_lack_sequences": sum(bool(one.missing) for one in measured),
        "refused": refused,
        "remarks": [_told(one) for one in said],
        "measures": [as_json(one) for one in measured],
        "report": page,
        "machine": {
            "device": execution.device,
            "precision": execution.precision,
            "predicts_in": execution.prediction_precision,
            "threads": execution.threads,
            "system": platform.platform(),
        },
        "ledger_facts": facts,
        "joined": (site.folder / "kit.json").exists(),
    }


def _empty(case: CaseMeasures) -> bool:
    return case.mask is not None and case.mask.volume_ml["WT"] == 0


def _told(one: Remark) -> dict[str, str]:
    return {"kind": one.kind, "code": one.code, "case": one.case, "text": one.text}
