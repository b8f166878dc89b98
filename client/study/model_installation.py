"""A released model comes into use at a site: verified, scored, activated or not, calibrated.

Nothing here leaves the site. Out of scope: when a model may take another's place and how many
patients it takes (``client.clinic.installed_models``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from client.clinic.installed_models import FEWEST_PATIENTS, activate, calibrate, forget_calibration
from client.clinic.released_model import Model, open_model
from client.cohort.patient_split import Split
from client.site.folder import Site
from client.study import round_training as work
from common.errors import CaseError


def install(site: Site, folder: Path, *, insist: bool = False) -> dict[str, Any]:
    """Install the release in ``folder`` and return what was found; a cohort without a case will do.

    ``insist`` makes it the active model whatever it scores. Raises what ``open_model`` and
    ``activate`` raise.
    """
    model = open_model(folder, signer=site.coordinators)
    parts = _parts(site, model)
    patients = parts.patients
    scores = work.score(site, model.protocol, model.weights, parts.test)
    kept = {
        "cases": len(parts.test),
        "patients": patients["test"],
        "dice": work.mean_dice(scores),
    }
    now = activate(site, model, kept, insist=insist)
    return {
        "model": model.identity,
        "name": f"{model.card['name']} {model.card['version']}",
        "active": now.active,
        "not_active_because": now.reason,
        **kept,
        "validation_patients": patients["validation"],
        "calibration": _calibrated(site, model, parts),
    }


def _parts(site: Site, model: Model) -> Split:
    try:
        return work.read_split(site, model.protocol)
    except CaseError as error:
        if error.code != "case-none":  # who has no scan of their own may use the model all the same
            raise
        return Split((), (), ())


def _calibrated(site: Site, model: Model, parts: Split) -> dict[str, Any] | None:
    """Return the model's temperatures here, None if the validation patients are too few."""
    patients = parts.patients["validation"]
    if patients < FEWEST_PATIENTS:
        forget_calibration(site, model)
        return None
    counts = work.calibration_counts(site, model.protocol, model.weights, parts.validation)
    return calibrate(site, model, counts, cases=len(parts.validation), patients=patients)
