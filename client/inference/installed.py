"""The models that a site installed: verified, scored on its own patients, one of them active.

    models/NAME-VERSION/   a copy of the release
    models/active.json     which one the clinic uses, and its scores here
    models/NAME-VERSION.calibration.json
                           its temperatures here, fitted on this site's validation patients
    models/revoked.json    which models must not be used any more (``revoked``)

A model becomes active only if the site's coordinator signed it and it is not worse on the site's
own test patients than the one that is active. One that was revoked is neither kept nor used.
"""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path
from typing import Any, Final

from client.calibration import Counts, Temperatures, calibration_errors, fitted
from client.inference.model import Model, open_model
from client.inference.revoked import check_not_revoked, revocations_of
from client.site import Site
from common.errors import IdentityError, ModelError
from common.files import read_json, write_json
from common.identity import fingerprint
from common.regions import REGIONS

TOLERANCE: Final = 0.01
"""How much lower the mean Dice of a new model may be than that of the active one."""


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
    shutil.copytree(model.folder, temporary)
    temporary.rename(target)
    return target


def activate(site: Site, model: Model, scores: dict[str, Any]) -> bool:
    """Make an installed model the active one unless it is worse; return whether it is active now.

    ``scores`` is {"cases": int, "dice": {region: float}} on the site's own test patients.
    """
    folder = keep(site, model).name
    active = _active(site)
    better = True
    if active is not None and active["folder"] != folder:
        old, new = _mean(active["scores"]), _mean(scores)
        better = old is None or (new is not None and new >= old - TOLERANCE)
    site.journal.append(
        "model installed",
        model=folder,
        weights=model.card["weights_sha256"],
        active=better,
        scores=scores,
    )
    if better:
        write_json(site.folder / "models" / "active.json", {"folder": folder, "scores": scores})
    return better


def calibrate(site: Site, model: Model, counts: Counts, *, cases: int) -> dict[str, Any]:
    """Fit the model's temperatures to what was counted on this site's patients; keep and return
    them, with the calibration error before and after."""
    temperatures = fitted(counts)
    found = {
        "weights_sha256": model.card["weights_sha256"],
        "cases": cases,
        "temperatures": dict(zip(REGIONS, temperatures, strict=True)),
        "calibration_error": {
            "before": calibration_errors(counts),
            "after": calibration_errors(counts, temperatures),
        },
    }
    write_json(_calibration(site, model), found)
    return found


def temperatures_of(site: Site, model: Model) -> Temperatures | None:
    """Return the temperatures that were fitted for these weights here, None if none were."""
    path = _calibration(site, model)
    if not path.exists():
        return None
    found = read_json(path, what="calibration")
    if found.get("weights_sha256") != model.card["weights_sha256"]:
        return None
    wt, tc, et = (float(found["temperatures"][region]) for region in REGIONS)
    return wt, tc, et


def _calibration(site: Site, model: Model) -> Path:
    name = f"{model.card['name']}-{model.card['version']}.calibration.json"
    return site.folder / "models" / name


def _active(site: Site) -> dict[str, Any] | None:
    path = site.folder / "models" / "active.json"
    return dict(read_json(path, what="active model")) if path.exists() else None


def _mean(scores: dict[str, Any]) -> float | None:
    dice = scores.get("dice") or {}
    return sum(dice.values()) / len(dice) if dice else None
