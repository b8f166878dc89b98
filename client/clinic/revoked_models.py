"""Which models this site must not use: the coordinator's signed list, and the release's own date.

``models/revoked.json`` is the list that was installed last. It is verified on every use, and only a
longer one takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.site.folder import Site
from common.errors import ModelError, StateError
from common.trust.identity import Statement
from common.trust.revocation import Revocations, open_revocations


def revocations_of(site: Site) -> Revocations:
    """Return the list that was installed at ``site``, empty if none was; raise IdentityError."""
    path = _place(site)
    if not path.exists():
        return Revocations()
    statement = Statement.load(path, what="list of revoked models")
    signer = statement.signer
    known = signer in site.known_coordinators
    return open_revocations(statement, signer=signer if known else site.kit.coordinator_key)


def take_revocations(site: Site, path: Path) -> Revocations:
    """Install the list at ``path`` and return it.

    Raises IdentityError if another than the site's coordinator signed it, StateError if it lacks a
    model that the installed one revokes.
    """
    statement = Statement.load(path, what="list of revoked models")
    found = open_revocations(statement, signer=site.kit.coordinator_key)
    if any(found.of(one.weights_sha256) is None for one in revocations_of(site).models):
        raise StateError(
            f"{path} is older than the list that is installed: it lacks models that were revoked.",
            do="Ask the coordinator for the newest list.",
            code="revocations-old",
        )
    site.journal.append("revocations installed", models=len(found.models))
    statement.save(_place(site))
    return found


def check_not_revoked(card: Mapping[str, Any], revoked: Revocations) -> None:
    """Raise ModelError (``model-revoked``) if the model of ``card`` must not be used any more."""
    found = revoked.of(str(card["weights_sha256"]))
    if found is not None:
        raise ModelError(
            f"The model {card['name']} {card['version']} was revoked on {found.time[:10]} by the "
            f"coordinator, {found.by}: {found.why.rstrip('.')}.",
            do="Install another release with `gliofed-site install`; review again what this one "
            "segmented.",
            code="model-revoked",
        )


def _place(site: Site) -> Path:
    return site.folder / "models" / "revoked.json"
