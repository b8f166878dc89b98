from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from common.errors import ModelError, PrivacyError, StateError
from common.messages.wire_format import Report, pack
from common.records.weights import digest, load, load_metadata
from common.study.protocol import PROTOCOL, RELEASE
from common.trust.identity import Statement
from common.trust.revocation import open_revocations
from server.commands import coordinator
from server.release.release_folder import release


@pytest.fixture
def finished(world: Any) -> Any:
    world.join("a", step=1.0)
    world.join("b", step=3.0)
    world.join("c")
    world.join("d", approves=False)
    world.publish()
    world.rounds().offer({})
    world.hospitals["c"].refuses = PrivacyError("no", code="privacy-cap")
    world.run()
    return world


def test_a_release_verifies_file_by_file(finished: Any, tmp_path: Path) -> None:
    out = tmp_path / "model"
    card = release(finished.consortium, "demo", out)
    signer = finished.consortium.identity.public
    body = Statement.load(out / "release.json", what="release").opened(kind=RELEASE, signer=signer)
    assert set(body["files"]) | {"release.json"} == {path.name for path in out.iterdir()}
    for name, sha256 in body["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == sha256
    weights = load(out / "weights.safetensors")
    assert body["weights_sha256"] == card["weights_sha256"] == digest(weights)
    assert digest(weights) == digest(finished.weights())
    assert load_metadata(out / "weights.safetensors") == {"study": "demo", "round": "2"}
    protocol = Statement.load(out / "protocol.json", what="protocol")
    assert protocol.opened(kind=PROTOCOL, signer=signer)["study"] == "demo"
    assert finished.events("model released")[0]["files"] == body["files"]


def test_the_card_says_who_how_and_at_what_cost(finished: Any, tmp_path: Path) -> None:
    card = release(finished.consortium, "demo", tmp_path / "model")
    assert json.loads((tmp_path / "model" / "card.json").read_text()) == card
    assert card["sites"] == ["a", "b"]
    assert card["rounds_per_site"] == {"a": 2, "b": 2}
    assert card["dropped_out"] == [
        {"round": number, "site": "c", "why": "privacy-cap"} for number in (1, 2)
    ]
    assert card["never_approved"] == ["d"]
    assert (card["version"], card["round"]) == ("1.0.2", 2)
    assert card["private"]
    assert card["privacy_spent"]["a"]["epsilon"] == 2
    assert (card["validation_dice"], card["mean_dice"], card["worst_site"]) == ({}, {}, None)
    text = (tmp_path / "model" / "card.md").read_text()
    for part in (
        "# A study",
        "Sites that trained: a, b.",
        "did not approve: d.",
        "- round 1: c (privacy-cap)",
        "| a | 2.00 | 0.001 | 2 | 1 | 0.1 |",
        "Dice: not reported, or exactly by fewer than three sites.",
        "- postprocessing.thresholds = [0.5, 0.5, 0.5]",
        "- prediction.overlap = 0.5",
        card["weights_sha256"],
    ):
        assert part in text


def scores(dice: dict[str, float] | None, noise: float | None = None) -> Any:
    """Return what answers an order to evaluate so."""
    told = Report(
        kind="evaluate", study="demo", round=1, status="done", dice=dice, dice_noise=noise
    )
    return lambda _order, _good: pack(told, None)


def test_the_worst_site_is_the_one_with_the_lowest_mean(world: Any, tmp_path: Path) -> None:
    world.join("a", "b", "c")
    world.publish(rounds=1)
    replies = {name: world.hospitals[name].replies for name in "abc"}
    replies["a"]["evaluate"] = scores({"WT": 0.5, "TC": 0.5, "ET": 0.5}, 0.02)
    replies["b"]["evaluate"] = scores({"WT": 0.9}, 0.03)
    replies["c"]["evaluate"] = scores({})
    world.run()
    card = release(world.consortium, "demo", tmp_path / "model")
    assert (card["worst_site"], card["dice_not_reported"]) == ("a", ["c"])
    assert set(card["validation_dice"]) == {"a", "b"}
    text = (tmp_path / "model" / "card.md").read_text()
    assert "| a (worst) | 0.500 | 0.500 | 0.500 |" in text
    assert "Dice not reported: c." in text


@pytest.mark.parametrize(
    ("exact", "means"),
    [
        ({"a": 0.5}, {}),
        ({"a": 0.5, "b": 0.7}, {}),
        ({"a": 0.5, "b": 0.7, "c": 0.9}, {"WT": {"mean": 0.7, "sites": 3}}),
    ],
)
def test_a_card_holds_no_exact_score_of_a_site(
    world: Any, tmp_path: Path, exact: dict[str, float], means: Any
) -> None:
    world.join("a", "b", "c")
    world.publish(rounds=1)
    for name in "abc":
        told = {"WT": exact[name]} if name in exact else None
        world.hospitals[name].replies["evaluate"] = scores(told)
    world.run()
    card = release(world.consortium, "demo", tmp_path / "model")
    assert (card["validation_dice"], card["worst_site"]) == ({}, None)
    assert card["mean_dice"] == means
    assert card["dice_not_reported"] == sorted(set("abc") - set(exact))
    text = (tmp_path / "model" / "card.md").read_text()
    assert ("WT 0.700, of 3 sites" in text) is bool(means)
    assert ("Dice: not reported, or exactly" in text) is not bool(means)
    assert "0.500" not in text


def test_an_earlier_round_can_be_released(finished: Any, tmp_path: Path) -> None:
    card = release(finished.consortium, "demo", tmp_path / "model", number=1)
    assert card["version"] == "1.0.1"
    weights = load(tmp_path / "model" / "weights.safetensors")
    assert all(np.all(value == 2.0) for value in weights.values())
    assert card["round"] == 1


def test_a_study_without_privacy_or_scores_says_so(world: Any, tmp_path: Path) -> None:
    world.join("a", "b")
    world.publish(rounds=1, privacy__mode='"none"')
    for hospital in world.hospitals.values():
        hospital.replies["evaluate"] = lambda _order, good: type(good)()
    world.run()
    card = release(world.consortium, "demo", tmp_path / "model")
    assert (card["private"], card["privacy_unit"], card["worst_site"]) == (False, "none", None)
    text = (tmp_path / "model" / "card.md").read_text()
    assert "WITHOUT differential privacy" in text
    assert "Dice: not reported" in text


def test_nothing_is_released_before_a_round_is_closed(world: Any, tmp_path: Path) -> None:
    world.publish()
    with pytest.raises(StateError, match="No round of demo is closed"):
        release(world.consortium, "demo", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_only_closed_rounds_are_released(finished: Any, tmp_path: Path) -> None:
    for number in (0, 3):
        with pytest.raises(StateError, match="was not closed"):
            release(finished.consortium, "demo", tmp_path / "model", number=number)


def test_a_release_never_changes(finished: Any, tmp_path: Path) -> None:
    release(finished.consortium, "demo", tmp_path / "model")
    with pytest.raises(ModelError, match="not empty"):
        release(finished.consortium, "demo", tmp_path / "model")


def test_a_checkpoint_that_was_changed_is_not_released(finished: Any, tmp_path: Path) -> None:
    study = finished.consortium.study("demo")
    study.checkpoint(2).write_bytes(study.checkpoint(1).read_bytes())
    with pytest.raises(StateError, match="not the one that the journal recorded"):
        release(finished.consortium, "demo", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_release_may_be_the_mean_of_the_last_rounds(finished: Any, tmp_path: Path) -> None:
    study = finished.consortium.study("demo")
    first, last = (
        study.load(closed["round"], closed["weights"])
        for closed in finished.events("round closed", study="demo")
    )
    card = release(finished.consortium, "demo", tmp_path / "mean", average=2)
    assert (card["version"], card["averaged_rounds"]) == ("1.0.2+mean2", [1, 2])
    found = load(tmp_path / "mean" / "weights.safetensors")
    for name, value in found.items():
        assert value.dtype == np.float32
        assert np.allclose(value, (first[name] + last[name]) / 2)
        assert not np.array_equal(value, last[name])
    assert digest(found) == card["weights_sha256"]
    assert "the mean of rounds 1 to 2" in (tmp_path / "mean" / "card.md").read_text()
    with pytest.raises(StateError, match="no 3 closed rounds up to round 2"):
        release(finished.consortium, "demo", tmp_path / "more", average=3)
    assert not (tmp_path / "more").exists()


def test_a_model_is_revoked_by_command(finished: Any, tmp_path: Path) -> None:
    def command(*arguments: Any) -> Any:
        return CliRunner().invoke(coordinator.app, [str(one) for one in arguments])

    folder, out = finished.consortium.folder, tmp_path / "revoked.json"
    release(finished.consortium, "demo", tmp_path / "model")
    asked = ("revoke", folder, "demo", "--round", 2, "--by", "Dr. Tamm", "--why", "wrong labels")
    said = command(*asked, "--out", out)
    assert (said.exit_code, "lists 1 revoked models" in " ".join(said.output.split())) == (0, True)
    assert command("revocations", folder, "--out", tmp_path / "again.json").exit_code == 0
    signer = finished.consortium.identity.public
    found = open_revocations(Statement.load(out, what="list"), signer=signer)
    assert found.of(digest(finished.weights())) is not None
    late = ("release", folder, "demo", "--out", tmp_path / "late", "--expires", "2020-01-01")
    assert command(*late).exit_code == 2
