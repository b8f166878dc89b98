"""The models that a site installed: verified, scored on its own patients, one of them active.

    models/NAME-VERSION/   a copy of the release
    models/active.json     which one the clinic uses, and its scores here
    models/NAME-VERSION.calibration.json
                           its temperatures here, fitted on this site's validation patients
    models/revoked.json    which models must not be used any more (``revoked_models``)

A model becomes active only if the site's coordinator signed it and it is not worse on the site's
own test patients than the one that is active. Fewer than ``FEWEST_PATIENTS`` of them decide
nothing: then the active model stays until a person says otherwise. The first model becomes active
whatever it scores, for there is no other. One that was revoked is neither kept nor used.
"""

from __future__ import annotations

import datetime as dt
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from client.clinic.released_model import Model, open_model
from client.clinic.revoked_models import check_not_revoked, revocations_of
from client.segmentation.calibration import Counts, Temperatures, calibration_errors, fitted
from client.site.folder import Site
from common.errors import IdentityError, ModelError
from common.records.atomic_files import read_json, write_json
from common.regions import REGIONS
from common.trust.identity import Statement, fingerprint

TOLERANCE: Final = 0.01
"""How much lower the mean Dice of a new model may be than that of the active one."""

FEWEST_PATIENTS: Final = 3
"""On fewer patients no temperature is fitted, and no two models are compared: one patient's scan
says more of the patient than of the model."""


@dataclass(frozen=True)
class Activation:
    """Whether a model is active now; where it is not, ``reason`` says why in a sentence."""

    active: bool
    reason: str = ""


def active_model(site: Site) -> Model:
    """Return the site's active model, verified; raise ModelError if there is none, or if it was
    revoked or is not valid any more."""
    active = _active(site)
    if active is None:
        raise ModelError(
            f"No model is installed at {site.name}.", do="`gliofed-site install` installs one."
        )
    model = open_model(
        site.folder / "models" / str(active["folder"]), signer=site.known_coordinators
    )
    check_not_revoked(model.card, revocations_of(site))
    return model


def installed_model(site: Site, name: str, version: str, *, on: dt.date | None = None) -> Model:
    """Return a model that was installed at the site, active or not, verified as of the day ``on``.

    Raises ModelError if it is not there, or what ``open_model`` raises.
    """
    folder = site.folder / "models" / f"{name}-{version}"
    if folder.parent != site.folder / "models" or not folder.is_dir():
        raise ModelError(
            f"The model {name} {version} is not installed at {site.name}.",
            do="`gliofed-site install` installs it.",
        )
    return open_model(folder, signer=site.known_coordinators, on=on)


def keep(site: Site, model: Model) -> Path:
    """Copy a verified release into the site's folder and return where it is.

    Raises IdentityError if another than the site's coordinator signed it, ModelError if another
    model has its name or it was revoked.
    """
    card = model.card
    if model.signer not in site.known_coordinators:
        raise IdentityError(
            f"The model {card['name']} is signed by {fingerprint(model.signer)}, not by this "
            f"site's coordinator, {fingerprint(site.kit.coordinator_key)}.",
            do="Ask the coordinator for the release; do not use this one.",
        )
    check_not_revoked(card, revocations_of(site))
    target = site.folder / "models" / f"{card['name']}-{card['version']}"
    if target.exists():
        known = open_model(target, signer=site.known_coordinators)
        if known.card["weights_sha256"] != card["weights_sha256"]:
            raise ModelError(
                f"Another model named {target.name} is installed.",
                do="Ask the coordinator which of the two is right.",
            )
        return target
    temporary = target.with_name(f".{target.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    signed = Statement.load(model.folder / "release.json", what="release").body["files"]
    for name in ("release.json", *signed):  # what else lies there is nobody's
        shutil.copy2(model.folder / name, temporary / name)
    temporary.rename(target)
    return target


def activate(
    site: Site, model: Model, scores: dict[str, Any], *, insist: bool = False
) -> Activation:
    """Make an installed model the active one unless it is worse, or nobody can tell.

    ``scores`` is {"cases": int, "patients": int, "dice": {region: float}} on the site's own test
    patients. With ``insist`` it becomes active whatever they say.
    """
    folder = keep(site, model).name
    active = _active(site)
    reason = ""
    if active is not None and active["folder"] != folder and not insist:
        reason = objection(active["scores"], scores)
    site.journal.append(
        "model installed",
        model=folder,
        weights=model.card["weights_sha256"],
        active=not reason,
        scores=scores,
    )
    if not reason:
        write_json(site.folder / "models" / "active.json", {"folder": folder, "scores": scores})
    return Activation(not reason, reason)


def objection(active: dict[str, Any], new: dict[str, Any]) -> str:
    """Return why a model with the scores ``new`` must not take the place of one with ``active``, ""
    if it may; both are as ``activate`` takes them."""
    patients, old_mean, new_mean = _patients(new), _mean(active), _mean(new)
    if patients < FEWEST_PATIENTS or new_mean is None:
        return (
            f"it was scored on {counted(patients)} of this site, and it takes {FEWEST_PATIENTS} "
            "to compare it with the active model"
        )
    if old_mean is not None and new_mean < old_mean - TOLERANCE:
        return f"the active model scores better here: mean Dice {old_mean:.3f}, not {new_mean:.3f}"
    return ""


def counted(patients: int) -> str:
    """Return a number of test patients in words that fit behind "scored on"."""
    return {0: "no patient", 1: "one patient"}.get(patients, f"{patients} patients")


def calibrate(
    site: Site, model: Model, counts: Counts, *, cases: int, patients: int
) -> dict[str, Any]:
    """Fit the model's temperatures to what was counted on this site's patients; keep and return
    them, with the calibration error before and after.

    Raises ValueError for fewer than ``FEWEST_PATIENTS``.
    """
    if patients < FEWEST_PATIENTS:
        raise ValueError(
            f"{patients} patients cannot calibrate a model: it takes {FEWEST_PATIENTS}"
        )
    temperatures = fitted(counts)
    found = {
        "weights_sha256": model.card["weights_sha256"],
        "cases": cases,
        "patients": patients,
        "temperatures": dict(zip(REGIONS, temperatures, strict=True)),
        "calibration_error": {
            "before": calibration_errors(counts),
            "after": calibration_errors(counts, temperatures),
        },
    }
    write_json(_calibration(site, model), found)
    return found


def forget_calibration(site: Site, model: Model) -> None:
    """Remove the model's temperatures: they are no longer those of enough patients."""
    _calibration(site, model).unlink(missing_ok=True)


def temperatures_of(site: Site, model: Model) -> Temperatures | None:
    """Return the temperatures that were fitted for these weights here, None if none were, or if it
    was on fewer than ``FEWEST_PATIENTS``, as earlier versions did."""
    path = _calibration(site, model)
    if not path.exists():
        return None
    found = read_json(path, what="calibration")
    if found.get("weights_sha256") != model.card["weights_sha256"]:
        return None
    if _patients(found) < FEWEST_PATIENTS:
        return None
    wt, tc, et = (float(found["temperatures"][region]) for region in REGIONS)
    return wt, tc, et


def _calibration(site: Site, model: Model) -> Path:
    name = f"{model.card['name']}-{model.card['version']}.calibration.json"
    return site.folder / "models" / name


def _active(site: Site) -> dict[str, Any] | None:
    path = site.folder / "models" / "active.json"
    return dict(read_json(path, what="active model")) if path.exists() else None


def _patients(found: dict[str, Any]) -> int:
    """Return of how many patients scores or temperatures are; older files count cases alone."""
    return int(found.get("patients", found.get("cases", 0)))


def _mean(scores: dict[str, Any]) -> float | None:
    dice = scores.get("dice") or {}
    return sum(dice.values()) / len(dice) if dice else None
