"""The models that a site installed: verified, scored on its own patients, one of them active.

    models/NAME-VERSION/   a copy of the release
    models/active.json     which one the clinic uses, and its scores here

A model becomes active only if the site's coordinator signed it and it is not worse on the site's
own test patients than the one that is active.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from client.inference.model import Model, open_model
from client.site import Site
from common.errors import IdentityError, ModelError
from common.files import read_json, write_json
from common.identity import fingerprint

TOLERANCE: Final = 0.01
"""How much lower the mean Dice of a new model may be than that of the active one."""


def active_model(site: Site) -> Model:
    """Return the site's active model, verified; raise ModelError if there is none."""
    active = _active(site)
    if active is None:
        raise ModelError(
            f"No model is installed at {site.name}.", do="`gliofed-site install` installs one."
        )
    return open_model(
        site.folder / "models" / str(active["folder"]), signer=site.kit.coordinator_key
    )


def keep(site: Site, model: Model) -> Path:
    """Copy a verified release into the site's folder and return where it is.

    Raises IdentityError if another than the site's coordinator signed it, ModelError if another
    model has its name.
    """
    card = model.card
    coordinator = site.kit.coordinator_key
    if model.signer != coordinator:
        raise IdentityError(
            f"The model {card['name']} is signed by {fingerprint(model.signer)}, not by this "
            f"site's coordinator, {fingerprint(coordinator)}.",
            do="Ask the coordinator for the release; do not use this one.",
        )
    target = site.folder / "models" / f"{card['name']}-{card['version']}"
    if target.exists():
        known = open_model(target, signer=coordinator)
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


def _active(site: Site) -> dict[str, Any] | None:
    path = site.folder / "models" / "active.json"
    return dict(read_json(path, what="active model")) if path.exists() else None


def _mean(scores: dict[str, Any]) -> float | None:
    dice = scores.get("dice") or {}
    return sum(dice.values()) / len(dice) if dice else None
