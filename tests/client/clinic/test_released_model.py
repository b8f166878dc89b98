"""A release is verified whole before anything of it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.clinic.released_model import open_model
from common.errors import GliofedError, IdentityError, ModelError
from common.records.weights import save
from common.study.protocol import RELEASE
from common.trust.identity import Identity, Statement
from tests.consortia import World, change_card, sign_again

FILES = ("weights.safetensors", "protocol.json", "card.json", "card.md")


def test_a_sound_release_opens(world: World) -> None:
    key = world.consortium.identity.public
    model = open_model(world.release, signer=key)
    assert (model.signer, model.protocol.study) == (key, model.card["name"])
    assert model.identity["version"] == "1.0.2"
    assert set(model.identity) == {
        "name",
        "version",
        "round",
        "weights_sha256",
        "preprocessing_sha256",
    }


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_named(world: World, name: str) -> None:
    path = world.release / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ModelError, match=name) as caught:
        open_model(world.release)
    assert caught.value.code == "model-tampered"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(world: World, name: str) -> None:
    (world.release / name).unlink()
    with pytest.raises(ModelError, match=f"{name} .* is missing"):
        open_model(world.release)


def test_a_folder_without_a_release(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no released model"):
        open_model(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "model-release"}'])
def test_a_damaged_statement(world: World, text: str) -> None:
    (world.release / "release.json").write_text(text)
    with pytest.raises((ModelError, IdentityError)):
        open_model(world.release)


def test_a_changed_statement(world: World) -> None:
    path = world.release / "release.json"
    path.write_text(path.read_text().replace('"round": 2', '"round": 9'))
    with pytest.raises(IdentityError, match="was changed"):
        open_model(world.release)


def test_another_signer_is_refused(world: World, tmp_path: Path) -> None:
    stranger = Identity.create(tmp_path / "stranger.key")
    sign_again(world.release, stranger)
    with pytest.raises(IdentityError, match="is signed by key"):
        open_model(world.release, signer=world.consortium.identity.public)
    with pytest.raises(IdentityError):  # the protocol is still the coordinator's
        open_model(world.release)


def test_another_preprocessing_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.imaging.preprocessing.digest", lambda _: "0" * 64)
    with pytest.raises(ModelError, match="another preprocessing") as caught:
        open_model(world.release)
    assert caught.value.code == "model-preprocessing"
    assert "Install gliofed" in caught.value.do


def test_other_weights_than_those_promised(world: World) -> None:
    weights = world.model().weights
    name = next(iter(weights))
    other = {**weights, name: weights[name] + np.float32(1)}
    save(world.release / "weights.safetensors", other, {})
    sign_again(world.release, world.consortium.identity)
    with pytest.raises(ModelError, match="are not those that were signed"):
        open_model(world.release)


CARDS: dict[str, dict[str, Any]] = {
    "another name": {"name": "other"},
    "a path for a name": {"name": "../../north"},
    "a path for a version": {"version": "1.0/../.."},
    "no version": {"version": None},
    "other weights": {"weights_sha256": "0" * 64},
    "other preprocessing": {"preprocessing_sha256": "0" * 64},
    "no round": {"round": "two"},
}


@pytest.mark.parametrize("name", CARDS)
def test_the_card_must_be_of_this_model(world: World, name: str) -> None:
    change_card(world.release, **CARDS[name])
    sign_again(world.release, world.consortium.identity)
    with pytest.raises(ModelError, match="is damaged"):
        open_model(world.release)


BODIES: dict[str, dict[str, Any]] = {
    "no list of files": {"files": ["card.json"]},
    "nothing signed": {"files": {}},
    "a file elsewhere": {"files": {"../coordinator/ca.crt": "0" * 64}},
    "no digest": {"files": None},
}


@pytest.mark.parametrize("name", BODIES)
def test_a_statement_of_another_form(world: World, name: str) -> None:
    body = Statement.load(world.release / "release.json", what="release").body
    signed = world.consortium.identity.sign(RELEASE, {**body, **BODIES[name]})
    signed.save(world.release / "release.json")
    with pytest.raises(GliofedError):
        open_model(world.release)


@pytest.mark.parametrize("text", ["[]", "null", "{}", "not JSON"])
def test_a_card_of_another_form(world: World, text: str) -> None:
    (world.release / "card.json").write_text(text)
    sign_again(world.release, world.consortium.identity)
    with pytest.raises(ModelError, match="is damaged"):
        open_model(world.release)


def test_a_protocol_that_is_none(world: World) -> None:
    signed = world.consortium.identity.sign("study-protocol", {"study": "x"})
    signed.save(world.release / "protocol.json")
    sign_again(world.release, world.consortium.identity)
    with pytest.raises(ModelError, match="is damaged"):
        open_model(world.release)
