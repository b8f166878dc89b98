from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from common.errors import IdentityError, ModelError, StateError
from common.records.weights import digest
from server.consortium.published_study import Study

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def study(world: Any) -> Study:
    published: Study = world.publish()
    return published


def test_what_is_wanted_is_kept(study: Study) -> None:
    assert study.wanted == "published"
    for state in ("running", "stopped"):
        study.want(state)
        assert study.wanted == state


@pytest.mark.parametrize("content", ["[]", "{}", "{"])
def test_a_damaged_wish_is_named(study: Study, content: str) -> None:
    (study.folder / "wanted.json").write_text(content)
    with pytest.raises(StateError, match="study state"):
        _ = study.wanted


def test_a_checkpoint_comes_back_by_its_digest(study: Study) -> None:
    identity = study.save(3, WEIGHTS)
    assert identity == digest(WEIGHTS)
    assert study.checkpoint(3).name == "0003.safetensors"
    assert np.array_equal(study.load(3, identity)["a"], WEIGHTS["a"])


def test_the_same_checkpoint_has_the_same_bytes(study: Study) -> None:
    study.save(1, WEIGHTS)
    before = study.checkpoint(1).read_bytes()
    study.save(1, WEIGHTS)
    assert study.checkpoint(1).read_bytes() == before


def test_a_missing_checkpoint_is_named(study: Study) -> None:
    with pytest.raises(StateError, match="is missing"):
        study.load(1, "0" * 64)


def test_a_checkpoint_with_another_digest_is_refused(study: Study) -> None:
    study.save(1, WEIGHTS)
    with pytest.raises(StateError, match="not the one that the journal recorded"):
        study.load(1, "0" * 64)


def test_a_damaged_checkpoint_is_refused(study: Study) -> None:
    identity = study.save(1, WEIGHTS)
    study.checkpoint(1).write_bytes(study.checkpoint(1).read_bytes()[:-1])
    with pytest.raises(ModelError, match="damaged"):
        study.load(1, identity)


def test_a_changed_protocol_is_refused(world: Any, study: Study) -> None:
    path = study.folder / "protocol.json"
    data = json.loads(path.read_text())
    data["body"]["rounds"] = 99
    path.write_text(json.dumps(data))
    with pytest.raises(IdentityError, match="does not fit"):
        world.consortium.study("demo")


@pytest.mark.parametrize("name", ["absent", "../keys"])
def test_an_unknown_study_is_named(world: Any, name: str) -> None:
    with pytest.raises(StateError, match="There is no study"):
        world.consortium.study(name)
