"""Which released models must not be used any more, as the coordinator signs it.

A list replaces the one before it and holds all that was ever revoked: it only grows, so that a
longer one is newer, and a site never goes back to a shorter one. A model is named by the digest of
its weights, which holds for every copy. Out of scope: how the list reaches a site, which is a file
that somebody carries, and models that only grew too old, whose release says until when it is valid.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import IdentityError
from common.trust.identity import Identity, Statement

REVOCATIONS: Final = "model-revocations"
"""Kind of the signed statement that lists revoked models."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Revoked(_Part):
    """One model; ``time`` is ISO 8601 in UTC."""

    study: str
    round: int
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    by: Annotated[str, Field(min_length=1, max_length=200)]
    why: Annotated[str, Field(min_length=1, max_length=500)]
    time: str


class Revocations(_Part):
    models: tuple[Revoked, ...] = ()

    def of(self, weights_sha256: str) -> Revoked | None:
        """Return why the model with these weights must not be used; None if it may."""
        return next((one for one in self.models if one.weights_sha256 == weights_sha256), None)


def sign_revocations(value: Revocations, key: Identity) -> Statement:
    return key.sign(REVOCATIONS, value.model_dump(mode="json"))


def open_revocations(statement: Statement, *, signer: str) -> Revocations:
    """Return a list that ``signer`` (public key, hex) signed; raise IdentityError."""
    body = statement.opened(kind=REVOCATIONS, signer=signer)
    try:
        return Revocations.model_validate(body)
    except ValidationError as error:
        raise IdentityError(
            f"The signed list of revoked models cannot be read ({error.error_count()} faults).",
            do="Install the coordinator's version of gliofed, or ask for the list again.",
        ) from None
