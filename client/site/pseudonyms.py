"""Who the patients are to the ledger and the journal: pseudonyms, and who has withdrawn.

A pseudonym is a keyed hash of the name that the cohort uses, so that neither the ledger nor the
journal holds a name, and who has no key cannot try names. Invariants: one name has one pseudonym as
long as the hospital keeps its key, whatever the file system does to its letters (Unicode NFC);
``withdrawn.json`` only grows, and a damaged one is refused: it stops every study.

Out of scope: a patient whom the cohort lists under two names counts as two, and what a withdrawal
means for what has left already (``client.study.withdrawal``).

Source: HMAC, RFC 2104, with SHA-256, the first 128 bits.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.site.folder import Site
from common.errors import StateError
from common.records.atomic_files import held, read_json, write_bytes

_KEY: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Withdrawal:
    """That the patient behind a pseudonym withdrew: UTC time, and who at the hospital wrote it."""

    patient: str
    time: str
    by: str


class _Withdrawal(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    patient: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    time: str
    by: str


class _File(BaseModel):
    """``withdrawn.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    withdrawn: tuple[_Withdrawal, ...] = ()


def pseudonym(key: bytes, patient: str) -> str:
    """Return the 32 hexadecimal characters that stand for ``patient``, a name of the cohort."""
    name = unicodedata.normalize("NFC", patient).encode()
    return hmac.new(key, name, hashlib.sha256).hexdigest()[:32]


def patients_key(site: Site) -> bytes:
    """Return the site's key for pseudonyms; raise StateError (code ``patients-key``)."""
    path = site.folder / "keys" / "patients.key"
    text = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    if not _KEY.fullmatch(text):
        raise StateError(
            f"The key of the patients' pseudonyms, {path}, is missing or damaged.",
            do="Restore it from the newest backup: with another key the ledger would not know "
            "any patient again.",
            code="patients-key",
        )
    return bytes.fromhex(text)


def withdrawals(site: Site) -> Mapping[str, Withdrawal]:
    """Return who has withdrawn, by pseudonym; raise StateError (code ``withdrawn``)."""
    path = _path(site)
    if not path.exists():
        return {}
    try:
        file = _File.model_validate(read_json(path, what="list of withdrawn patients"))
    except ValidationError:
        raise StateError(
            f"The list of withdrawn patients, {path}, is damaged or of another version.",
            do="Restore it from the newest backup; until then no study runs here.",
            code="withdrawn",
        ) from None
    return {one.patient: Withdrawal(one.patient, one.time, one.by) for one in file.withdrawn}


def withdrawn(site: Site) -> frozenset[str]:
    """Return the pseudonyms of the patients whom no study may use any more; raise StateError."""
    return frozenset(withdrawals(site))


def keep_withdrawal(site: Site, patient: str, *, by: str) -> Withdrawal:
    """Write durably that the patient behind a pseudonym withdrew; a first time stays the time."""
    with held(site.folder / "flower" / "withdrawn.lock", what="A patient is being withdrawn"):
        known = dict(withdrawals(site))
        if patient not in known:
            now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
            known[patient] = Withdrawal(patient, now, by)
            file = _File(withdrawn=tuple(_Withdrawal(**vars(one)) for one in known.values()))
            write_bytes(_path(site), file.model_dump_json(indent=2).encode() + b"\n", mode=0o600)
    return known[patient]


def _path(site: Site) -> Path:
    return site.folder / "withdrawn.json"
