"""A released model, verified before anything of it is used.

A release is a folder with a signed statement that names every other file by SHA-256. Opening one
checks the signature, each file, the weights, and that the preprocessing installed here is the one
that the model was trained with: a mismatch would lower accuracy without a sign of it. A release may
say until which day it is valid. Whether it was revoked only a site knows (``revoked_models``).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.imaging import preprocessing
from common.errors import IdentityError, ModelError, ProtocolError, StateError
from common.records import format_versions
from common.records.regular_files import open_regular, read_regular
from common.records.weights import Arrays, digest, load
from common.study.protocol import PROTOCOL, RELEASE, StudyProtocol, parse_protocol
from common.trust.coordinator_charter import Charter
from common.trust.identity import Statement

_VERSION = re.compile(r"\d+(\.\d+){0,3}(\+mean\d+)?\Z")
_MOST_CARD_BYTES = 2**24
_AGAIN = "Ask the coordinator for the release again; do not use this one."


@dataclass(frozen=True)
class Model:
    """A verified release. ``signer`` is the public key (hex) that signed it."""

    folder: Path
    signer: str
    card: dict[str, Any]
    protocol: StudyProtocol
    weights: Arrays

    @property
    def identity(self) -> dict[str, Any]:
        """What a result says about the model that made it."""
        keys = ("name", "version", "round", "weights_sha256", "preprocessing_sha256")
        return {key: self.card[key] for key in keys}


def open_model(
    folder: Path,
    *,
    signer: str | frozenset[str] | Charter | None = None,
    on: dt.date | None = None,
) -> Model:
    """Verify the release in ``folder``.

    ``signer`` says whose signature counts: that of one key (hex), that of any of several, or those
    of enough coordinators. Without it whoever signed is believed, if as many signed as the release
    itself says that its consortium asks for.

    ``on`` is the day on which it is used, today by default. Raises ModelError if any file differs
    from what was signed or if it is not valid any more (``model-expired``), IdentityError if the
    signature is wrong or another's.
    """
    path = folder / "release.json"
    if not path.exists():
        raise ModelError(
            f"{folder} holds no released model.",
            do="Name the folder that `gliofed-server release` wrote.",
        )
    try:
        statement = Statement.load(path, what="release")
        body = _opened(statement, signer)
        format_versions.check("model", body.get("format"), where=f"in {folder}")
        _check_files(folder, body)
        card = json.loads(read_regular(folder / "card.json", most_bytes=_MOST_CARD_BYTES))
        signed = Statement.load(folder / "protocol.json", what="study protocol")
        protocol = parse_protocol(
            _by_one_of(signed, statement).opened(kind=PROTOCOL, signer=statement.signer),
            source="The model's protocol",
        )
        promised = (body["weights_sha256"], body["preprocessing_sha256"])
        _check_card(card, protocol, promised)
        last = dt.date.fromisoformat(body["expires"]) if body.get("expires") else None
    except (
        StateError,
        ProtocolError,
        AttributeError,
        KeyError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        if isinstance(error, StateError) and error.code == "format-newer":
            raise
        raise ModelError(f"The release in {folder} is damaged: {error}", do=_AGAIN) from error
    installed = preprocessing.digest(protocol.preprocessing)
    if installed != body["preprocessing_sha256"]:
        raise ModelError(
            f"The model in {folder} was trained with another preprocessing than the one installed "
            "here; its results could not be trusted.",
            do=f"Install gliofed {card.get('gliofed_version', 'of the version in card.json')}.",
            code="model-preprocessing",
        )
    if last is not None and (on or dt.date.today()) > last:
        raise ModelError(
            f"The model {card['name']} {card['version']} was released for use until {last}.",
            do="Ask the coordinator for a newer release, and check this computer's clock.",
            code="model-expired",
        )
    weights = load(folder / "weights.safetensors")
    if digest(weights) != body["weights_sha256"]:
        raise ModelError(f"The weights in {folder} are not those that were signed.", do=_AGAIN)
    return Model(folder, statement.signer, card, protocol, weights)


def _opened(statement: Statement, signer: str | frozenset[str] | Charter | None) -> dict[str, Any]:
    if isinstance(signer, Charter):
        return signer.opened(statement, kind=RELEASE)
    if isinstance(signer, frozenset):
        signer = statement.signer if statement.signer in signer else min(signer)
    body = statement.opened(kind=RELEASE, signer=signer or statement.signer)
    needed = int(body.get("signatures_needed", 1))
    if len(statement.signers()) < needed:
        raise IdentityError(
            f"The release has {len(statement.signers())} of the {needed} coordinators' signatures "
            "that its consortium asks for.",
            do="Ask the coordinator to have it signed by another (`gliofed-server cosign`).",
            code="signatures",
        )
    return body


def _by_one_of(signed: Statement, release: Statement) -> Statement:
    """Return the protocol with the release's first signer in front, if it signed both."""
    return signed.signed_first_by(release.signer) if release.signer in signed.signers() else signed


def _check_card(card: Any, protocol: StudyProtocol, promised: tuple[str, str]) -> None:
    """Raise ValueError unless the card is of this model; its name and version name folders."""
    if card["name"] != protocol.study or not _VERSION.match(str(card["version"])):
        raise ValueError("its card names another model")
    if (card["weights_sha256"], card["preprocessing_sha256"]) != promised:
        raise ValueError("its card is of other weights")
    for part in ("prediction", "postprocessing"):  # older cards do not say
        own = getattr(protocol, part).model_dump(mode="json")
        if card.get(part, own) != own:
            raise ValueError(f"its card names another {part} than its protocol")
    if not isinstance(card["round"], int):
        raise ValueError("its card names no round")


def _check_files(folder: Path, body: dict[str, Any]) -> None:
    for name, expected in body["files"].items():
        path = folder / str(name)
        if path.parent != folder or not path.is_file():
            raise ModelError(f"The file {name} of the release in {folder} is missing.", do=_AGAIN)
        with open_regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise ModelError(
                f"The file {name} of the release in {folder} was changed after it was signed.",
                do=_AGAIN,
                code="model-tampered",
            )
    needed = {"weights.safetensors", "protocol.json", "card.json"}
    if missing := needed - set(body["files"]):
        raise IdentityError(f"The release does not sign {', '.join(sorted(missing))}.", do=_AGAIN)
