"""Revoke a released model: the journal says so for good, and a signed list tells the sites."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from common.errors import StateError
from common.trust.revocation import Revocations, Revoked, sign_revocations
from server.consortium.provisioning import Consortium


def revoke(consortium: Consortium, study: str, *, number: int, by: str, why: str) -> list[str]:
    """Revoke what was released of round ``number``; return the digests of its weights.

    A mean of rounds is of its last round. Raises StateError if nothing was released of that round,
    if all of it is revoked, or without a name and a reason.
    """
    released = {
        str(entry.facts["weights_sha256"]): None
        for entry in consortium.journal.events("model released", study=study)
        if entry.facts["round"] == number
    }
    if not released:
        raise StateError(
            f"No model of round {number} of {study} was released.",
            do="`gliofed-server status` lists the rounds; the model's card.json names its own.",
        )
    known = revocations(consortium)
    new = [weights for weights in released if known.of(weights) is None]
    if not new:
        raise StateError(
            f"The model of round {number} of {study} is revoked already.",
            do="`gliofed-server revocations` writes the list again.",
        )
    for weights in new:
        facts = {"study": study, "round": number, "weights_sha256": weights, "by": by, "why": why}
        try:
            Revoked.model_validate({**facts, "time": ""})
        except ValidationError:
            raise StateError(
                "Nothing was revoked: it needs a person's name, of at most 200 letters, and a "
                "reason of at most 500.",
                do="Give both --by and --why.",
            ) from None
        consortium.journal.append("model revoked", **facts)
    return new


def revocations(consortium: Consortium) -> Revocations:
    """Return all that was ever revoked, as the journal says."""
    return Revocations(
        models=tuple(
            Revoked.model_validate({**entry.facts, "time": entry.time})
            for entry in consortium.journal.events("model revoked")
        )
    )


def write_revocations(consortium: Consortium, path: Path) -> Revocations:
    """Write the signed list to ``path`` and return it; raise StateError."""
    found = revocations(consortium)
    sign_revocations(found, consortium.identity).save(path)
    return found
