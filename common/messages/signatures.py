"""Who sent a message, to whom, and in answer to what: the signature that travels in it.

Flower's SuperLink and SuperNodes stand between coordinator and hospital and are not believed. The
coordinator signs each order for one site, with a number that is used once (a *nonce*); the site
signs its reply with the nonce of the order. Signed are the message's text, which names study,
round, kind, version and the digest of the weights, and the bytes of its arrays. What was recorded
and is sent again, to whomever, fits no other order.

Standards: ``common.trust.identity``. Out of scope: which nonces were seen
(``client.runtime.authentic_orders``), and what the message says.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from typing import Final, Literal

from flwr.app import ConfigRecord, RecordDict

from common.errors import IdentityError
from common.trust.identity import Identity, Statement, fingerprint

Kind = Literal["order", "reply"]

_RECORD: Final = "gliofed"
_FIELD: Final = "signed"
_MOST_LETTERS: Final = 2000
_NONCE: Final = re.compile(r"[0-9a-f]{32}")


def new_nonce() -> str:
    """Return 128 random bits, in hexadecimal."""
    return secrets.token_hex(16)


def signed(
    content: RecordDict, identity: Identity, *, kind: Kind, site: str, nonce: str
) -> RecordDict:
    """Return a message with the signature of ``identity``; the arrays are not copied.

    ``site`` is to whom an order goes, or from whom a reply comes.
    """
    record = content.config_records[_RECORD]
    statement = identity.sign(kind, _body(content, site=site, nonce=nonce))
    made = RecordDict({_RECORD: ConfigRecord({**record, _FIELD: statement.dumps()})})
    for name, array in content.array_records.items():
        made[name] = array
    return made


def nonce_of(content: RecordDict, keys: Collection[str], *, kind: Kind, site: str) -> str:
    """Return the nonce of a message that one of ``keys`` signed; raise IdentityError otherwise.

    The error's code is ``unsigned`` for a message without a signature, ``signature`` for one whose
    signature is another's or does not fit.
    """
    record = content.config_records.get(_RECORD)
    text = record.get(_FIELD) if record is not None else None
    if not isinstance(text, str) or len(text) > _MOST_LETTERS:
        raise IdentityError(
            f"A message is no {kind} of gliofed: it is not signed.",
            do="Compare the versions of gliofed at the site and at the coordinator.",
            code="unsigned",
        )
    statement = Statement.loads(text)
    if statement.signer not in keys:
        raise _wrong(f"it is signed by {fingerprint(statement.signer)}, whom nobody here knows")
    try:
        said = statement.opened(kind=kind, signer=statement.signer)
    except IdentityError:
        raise _wrong("its signature does not fit") from None
    nonce = said.get("nonce")
    if not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
        raise _wrong("it has no number of its own")
    if said != _body(content, site=site, nonce=nonce):
        raise _wrong("its signature is for another site or another content")
    return nonce


def _wrong(why: str) -> IdentityError:
    return IdentityError(
        f"A message did not come from where it says: {why}.",
        do="Nothing of it was used. Somebody between coordinator and site, or on one of the two "
        "machines, may be changing messages: find out who before the study goes on.",
        code="signature",
    )


def _body(content: RecordDict, *, site: str, nonce: str) -> dict[str, object]:
    text = content.config_records[_RECORD].get("json", "")
    return {
        "site": site,
        "nonce": nonce,
        "text": hashlib.sha256(str(text).encode()).hexdigest(),
        "arrays": [
            [record, name, hashlib.sha256(array.data).hexdigest()]
            for record, arrays in sorted(content.array_records.items())
            for name, array in sorted(arrays.items())
        ],
    }
