"""What a site finds when it looks at its own data and machine. Nothing of it leaves the site."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import torch

from client.imaging.cache import PreparedCache
from client.patients import patients_key, pseudonym, withdrawn
from client.series import cohort_of
from client.site import Site
from client.studies import execution_for, open_ledger
from common.errors import CaseError
from common.protocol import PreprocessingOptions


def check_site(
    site: Site,
    options: PreprocessingOptions,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Prepare every case and say which can be used; raise CaseError if the cohort has none.

    The prepared cases stay in the cache, so that training does not prepare them again.
    """
    cohort = cohort_of(site)
    gone, key = withdrawn(site), patients_key(site)
    cases = [case for case in cohort.cases if pseudonym(key, case.patient) not in gone]
    cache = PreparedCache(site.folder / "cache", options)
    refused = [
        {"case": r.case, "file": r.file, "reason": r.reason, "code": r.code} for r in cohort.refused
    ]
    usable = []
    for number, case in enumerate(cases, start=1):
        try:
            prepared = cache.get(case)
        except CaseError as error:
            refused.append(
                {"case": case.name, "file": "", "reason": str(error), "code": error.code}
            )
        else:
            empty = prepared.labels is not None and not prepared.labels.any()
            usable.append((case, empty))
        if progress is not None:
            progress(number, len(cases))
    with open_ledger(site) as ledger:
        facts = len(ledger.facts())
    execution = execution_for(site.settings.machine)
    return {
        "data": str(site.data),
        "layout": cohort.layout,
        "cases": len(usable),
        "patients": len({case.patient for case, _ in usable}),
        "labelled_cases": sum(case.label is not None for case, _ in usable),
        "withdrawn_patients": len(gone),
        "cases_without_tumour": sum(empty for _, empty in usable),
        "refused": refused,
        "machine": {
            "device": execution.device,
            "precision": execution.precision,
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
        "ledger_facts": facts,
        "joined": (site.folder / "kit.json").exists(),
    }
