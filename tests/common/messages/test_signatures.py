"""A message is believed from whom it says, for whom it is, once, and as it was sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.errors import IdentityError
from common.messages.signatures import new_nonce, nonce_of, signed
from common.messages.wire_format import Content, Report, pack
from common.trust.identity import Identity

REPORT = Report(kind="train", study="one", round=3, status="done")
WEIGHTS = {"conv.weight": np.arange(4, dtype=np.float32)}


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.create(tmp_path_factory.mktemp("north") / "key")


@pytest.fixture(scope="module")
def south(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.create(tmp_path_factory.mktemp("south") / "key")


def message(identity: Identity, nonce: str, *, site: str = "north") -> Content:
    return signed(pack(REPORT, WEIGHTS), identity, kind="reply", site=site, nonce=nonce)


def test_what_was_signed_is_believed_and_names_its_nonce(north: Identity) -> None:
    nonce = new_nonce()
    sent = message(north, nonce)
    assert nonce_of(sent, {north.public}, kind="reply", site="north") == nonce
    assert len({new_nonce() for _ in range(100)}) == 100


def _text(content: Content) -> None:
    content.config_records["gliofed"]["json"] = REPORT.model_copy(
        update={"round": 4}
    ).model_dump_json()


def _arrays(content: Content) -> None:
    data = content.array_records["arrays"]["safetensors"].data
    other = data[:-1] + bytes([data[-1] ^ 1])
    content["arrays"] = ArrayRecord(
        {"safetensors": Array("uint8", (len(other),), "safetensors", other)}
    )


def _without_arrays(content: Content) -> None:
    del content["arrays"]


def _more_arrays(content: Content) -> None:
    content["more"] = ArrayRecord({"one": Array("uint8", (1,), "safetensors", b"x")})


def _signature(content: Content) -> None:
    record = content.config_records["gliofed"]
    statement = json.loads(str(record["signed"]))
    statement["signature"] = "00" * 64
    record["signed"] = json.dumps(statement)


def _nonce(content: Content) -> None:
    record = content.config_records["gliofed"]
    statement = json.loads(str(record["signed"]))
    statement["body"]["nonce"] = new_nonce()
    record["signed"] = json.dumps(statement)


def _no_signature(content: Content) -> None:
    del content.config_records["gliofed"]["signed"]


def _number_for_signature(content: Content) -> None:
    content.config_records["gliofed"]["signed"] = 7


def _huge_signature(content: Content) -> None:
    content.config_records["gliofed"]["signed"] = "[" * 1_000_000


def _deep_signature(content: Content) -> None:
    content.config_records["gliofed"]["signed"] = '{"body":' * 240


def _no_record(content: Content) -> None:
    del content["gliofed"]


CHANGES = {
    "text": _text,
    "arrays": _arrays,
    "arrays taken away": _without_arrays,
    "arrays added": _more_arrays,
    "signature": _signature,
    "nonce": _nonce,
    "no signature": _no_signature,
    "a number": _number_for_signature,
    "a huge one": _huge_signature,
    "a deep one": _deep_signature,
    "no record": _no_record,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_message_is_refused(north: Identity, change: Callable[[Content], None]) -> None:
    sent = message(north, new_nonce())
    change(sent)
    with pytest.raises(IdentityError):
        nonce_of(sent, {north.public}, kind="reply", site="north")


def test_another_key_kind_or_site_is_refused(north: Identity, south: Identity) -> None:
    nonce = new_nonce()
    sent = message(north, nonce)
    for keys, kind, site in (
        ({south.public}, "reply", "north"),
        (set[str](), "reply", "north"),
        ({north.public}, "order", "north"),
        ({north.public}, "reply", "south"),
    ):
        with pytest.raises(IdentityError) as refused:
            nonce_of(sent, keys, kind=kind, site=site)  # type: ignore[arg-type]
        assert refused.value.code == "signature"
    assert nonce_of(sent, {south.public, north.public}, kind="reply", site="north") == nonce


@pytest.mark.parametrize("nonce", ["", "1", "g" * 32, "A" * 32, "0" * 33])
def test_a_nonce_has_one_form(north: Identity, nonce: str) -> None:
    with pytest.raises(IdentityError, match="no number of its own"):
        nonce_of(message(north, nonce), {north.public}, kind="reply", site="north")


def test_signing_copies_no_arrays(north: Identity) -> None:
    content = pack(REPORT, WEIGHTS)
    sent = signed(content, north, kind="reply", site="north", nonce=new_nonce())
    assert sent["arrays"] is content["arrays"]
    assert isinstance(sent, RecordDict)
    assert isinstance(sent["gliofed"], ConfigRecord)
    assert "signed" not in content.config_records["gliofed"]


def test_a_key_on_disk_signs_the_same(tmp_path: Path) -> None:
    made, nonce = Identity.create(tmp_path / "key"), new_nonce()
    sent = message(Identity.load(tmp_path / "key"), nonce)
    assert nonce_of(sent, {made.public}, kind="reply", site="north") == nonce
