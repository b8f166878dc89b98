import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import IdentityError, StateError
from common.trust.identity import Identity, Statement, fingerprint

BODY = {"study": "demo", "cap": 1.5, "sites": ["a", "ü"]}


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / "keys" / "own.key")


def test_a_statement_survives_text_and_file(identity: Identity, tmp_path: Path) -> None:
    statement = identity.sign("approval", BODY)
    statement.save(tmp_path / "statement.json")
    for again in (
        Statement.loads(statement.dumps()),
        Statement.load(tmp_path / "statement.json", what="approval"),
    ):
        assert again.opened(kind="approval", signer=identity.public) == BODY


def test_a_key_is_private_and_made_once(identity: Identity, tmp_path: Path) -> None:
    path = tmp_path / "keys" / "own.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert Identity.load(path).public == identity.public
    with pytest.raises(StateError, match="already holds a key"):
        Identity.create(path)


@pytest.mark.parametrize(
    "change",
    [
        {"body": {**BODY, "cap": 15.0}},
        {"body": {}},
        {"body": {**BODY, "cap": float("nan")}},
        {"signature": "00" * 64},
        {"signature": "00"},
        {"signature": "nothex"},
    ],
    ids=str,
)
def test_a_changed_statement_is_refused(identity: Identity, change: dict[str, Any]) -> None:
    changed = Statement.from_dict({**identity.sign("approval", BODY).to_dict(), **change})
    with pytest.raises(IdentityError, match="does not fit"):
        changed.opened(kind="approval", signer=identity.public)


def test_a_statement_is_not_one_of_another_kind(identity: Identity) -> None:
    statement = identity.sign("approval", BODY)
    with pytest.raises(IdentityError, match="Expected a signed site-kit, got a approval"):
        statement.opened(kind="site-kit", signer=identity.public)
    renamed = Statement("site-kit", statement.body, statement.signer, statement.signature)
    with pytest.raises(IdentityError, match="does not fit"):
        renamed.opened(kind="site-kit", signer=identity.public)


def test_another_signer_is_named_by_fingerprint(identity: Identity, tmp_path: Path) -> None:
    other = Identity.create(tmp_path / "other.key")
    statement = other.sign("approval", BODY)
    with pytest.raises(IdentityError, match=fingerprint(other.public)):
        statement.opened(kind="approval", signer=identity.public)
    claimed = Statement("approval", BODY, identity.public, statement.signature)
    with pytest.raises(IdentityError, match="does not fit"):
        claimed.opened(kind="approval", signer=identity.public)


def test_a_signer_that_is_no_key_is_refused() -> None:
    with pytest.raises(IdentityError, match="does not fit"):
        Statement("approval", {}, "zz", "00").opened(kind="approval", signer="zz")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        "[" * 10_000,
        json.dumps({"kind": "a", "body": {}, "signer": "b"}),
        json.dumps({"kind": 1, "body": {}, "signer": "b", "signature": "c"}),
        json.dumps({"kind": "a", "body": [], "signer": "b", "signature": "c"}),
        json.dumps({"kind": "a", "body": {}, "signer": "\ud800", "signature": "c"}),
        json.dumps({"kind": "a\n", "body": {}, "signer": "b", "signature": "c"}),
        json.dumps({"kind": "a" * 201, "body": {}, "signer": "b", "signature": "c"}),
    ],
    ids=lambda text: text[:60].encode("ascii", "replace").decode(),
)
def test_malformed_statements_are_refused(text: str) -> None:
    with pytest.raises(IdentityError):
        Statement.loads(text)


def test_damaged_and_foreign_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no key at"):
        Identity.load(tmp_path / "absent.key")
    (tmp_path / "damaged.key").write_text("-----BEGIN PRIVATE KEY-----")
    with pytest.raises(StateError, match="Cannot read the key"):
        Identity.load(tmp_path / "damaged.key")
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "other.key").write_bytes(pem)
    with pytest.raises(StateError, match="not hold an Ed25519 key"):
        Identity.load(tmp_path / "other.key")


def test_fingerprints_can_be_read_aloud() -> None:
    assert fingerprint("ab" * 32) == fingerprint("ab" * 32) != fingerprint("ac" * 32)
    assert [len(part) for part in fingerprint("ab" * 32).split("-")] == [4] * 5
