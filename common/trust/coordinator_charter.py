"""Who speaks for the consortium: its coordinators' keys, and how many of them must sign.

A study, a release and a new charter count when ``needed`` of the coordinators signed them (with
two, nobody can publish or release alone). The first charter is the key in a site's kit, which a
person compared by telephone. Each later one is signed by as many of the charter before as that one
needed: so an old key hands over to a new one, and nobody lowers the number alone. Who missed some
charters follows the chain.

Out of scope: who may connect (``common.trust.enrolment``), what is done with a charter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import IdentityError
from common.trust.identity import Statement, fingerprint

CHARTER: Final = "consortium-charter"
"""Kind of the signed statement that holds a charter."""

FIRST: Final = "coordinator"
"""Name of the coordinator who founded a consortium."""

Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}$")]


class Charter(BaseModel):
    """The coordinators by name, and how many of them sign what counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=0)
    coordinators: dict[Name, Key] = Field(min_length=1, max_length=20)
    needed: int = Field(default=1, ge=1)
    previous: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of the charter before; empty for the first."""

    @model_validator(mode="after")
    def _possible(self) -> Charter:
        if len(set(self.coordinators.values())) != len(self.coordinators):
            raise ValueError("two coordinators have the same key")
        if self.needed > len(self.coordinators):
            raise ValueError("more signatures are needed than there are coordinators")
        return self

    @classmethod
    def first(cls, key: str) -> Charter:
        return cls(number=0, coordinators={FIRST: key})

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(self.coordinators.values())

    @property
    def digest(self) -> str:
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def follower(self, coordinators: dict[str, str], *, needed: int) -> Charter:
        """Return the charter that may follow; raise IdentityError if it is impossible."""
        return parse_charter(
            {
                "number": self.number + 1,
                "coordinators": coordinators,
                "needed": needed,
                "previous": self.digest,
            }
        )

    def missing(self, statement: Statement) -> int:
        """Return how many signatures ``statement`` lacks."""
        return max(0, self.needed - len(statement.signers() & self.keys))

    def opened(self, statement: Statement, *, kind: str) -> dict[str, Any]:
        """Return the body of a ``kind`` that enough coordinators signed; raise IdentityError."""
        if statement.signer not in self.keys and len(self.keys) > 1:
            raise IdentityError(
                f"This {kind} is signed by key {fingerprint(statement.signer)}, which is none of "
                f"the consortium's coordinators ({', '.join(sorted(self.coordinators))}).",
                do="Compare the fingerprints with the sender by telephone.",
            )
        signer = statement.signer if len(self.keys) > 1 else next(iter(self.keys))
        body = statement.opened(kind=kind, signer=signer)
        if lacking := self.missing(statement):
            raise IdentityError(
                f"This {kind} has {self.needed - lacking} of the {self.needed} coordinators' "
                "signatures that the consortium asks for.",
                do="Ask the coordinator to have it signed by another (`gliofed-server cosign`).",
                code="signatures",
            )
        return body


def parse_charter(body: dict[str, Any]) -> Charter:
    """Raise IdentityError for anything but a charter."""
    try:
        return Charter.model_validate(body)
    except ValidationError as error:
        wrong = "; ".join(str(item["msg"]) for item in error.errors())
        raise IdentityError(
            f"The charter is not valid: {wrong[:300]}.", do="Correct what is named.", code="charter"
        ) from None


def followed(charter: Charter, statements: Iterable[Statement]) -> list[Charter]:
    """Return the charters of ``statements`` that come after ``charter``, each signed by enough of
    the one before it; raise IdentityError at the first that is not."""
    found: list[Charter] = []
    for statement in statements:
        following = parse_charter(statement.body)
        last = found[-1] if found else charter
        if following.number <= last.number:
            continue
        last.opened(_by_one_of(statement, last), kind=CHARTER)
        if following.number != last.number + 1 or following.previous != last.digest:
            raise IdentityError(
                f"The charter {following.number} does not follow charter {last.number}, which is "
                "the last one known here.",
                do="Ask the coordinator for the kit again and compare its fingerprint.",
                code="charter",
            )
        found.append(following)
    return found


def _by_one_of(statement: Statement, charter: Charter) -> Statement:
    """Return ``statement`` with a signer of ``charter`` first, if it has one.

    A new key signs a charter first, and the old one, which hands over to it, second.
    """
    for key in sorted(statement.signers() & charter.keys):
        return statement.signed_first_by(key)
    return statement
