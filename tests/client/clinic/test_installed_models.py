"""Which model a clinic uses: the coordinator's, and never a worse one."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.clinic.installed_models import (
    FEWEST_PATIENTS,
    activate,
    active_model,
    calibrate,
    forget_calibration,
    keep,
    objection,
    temperatures_of,
)
from client.clinic.released_model import open_model
from client.clinic.revoked_models import revocations_of, take_revocations
from client.segmentation.calibration import Counts
from common.errors import IdentityError, ModelError, StateError
from common.trust.identity import Identity
from common.trust.revocation import Revocations, sign_revocations
from server.release.release_folder import release
from server.release.revocation import revoke, write_revocations
from tests.consortia import STUDY, World, sign_again


def scores(value: float | None, *, patients: int = FEWEST_PATIENTS) -> dict[str, Any]:
    dice = {} if value is None else {"WT": value, "TC": value}
    return {"cases": patients, "patients": patients, "dice": dice}


def test_nothing_is_installed_at_first(world: World) -> None:
    with pytest.raises(ModelError, match="No model is installed at north"):
        active_model(world.site)


def test_the_first_model_is_activated_and_verified_on_use(world: World) -> None:
    assert activate(world.site, world.model(), scores(0.1)).active
    model = active_model(world.site)
    assert model.folder == world.site.folder / "models" / f"{STUDY}-1.0.2"
    shutil.rmtree(world.release)
    assert active_model(world.site).identity == model.identity
    (model.folder / "card.md").write_text("better than it is")
    with pytest.raises(ModelError, match=r"card\.md"):
        active_model(world.site)
    (fact,) = world.site.journal.events("model installed")
    assert (fact.facts["active"], fact.facts["model"]) == (True, f"{STUDY}-1.0.2")


@pytest.mark.parametrize(
    ("old", "new", "patients", "reason"),
    [
        (0.5, 0.6, 3, ""),
        (0.5, 0.5, 3, ""),
        (0.5, 0.491, 3, ""),
        (0.5, 0.48, 3, "scores better here: mean Dice 0.500, not 0.480"),
        (None, 0.0, 3, ""),
        (0.5, 0.9, 2, "scored on 2 patients of this site, and it takes 3"),
        (0.5, 0.9, 1, "scored on one patient"),
        (0.5, None, 0, "scored on no patient"),
        (None, None, 0, "scored on no patient"),
    ],
)
def test_a_worse_model_is_not_activated_nor_one_that_was_hardly_scored(
    world: World, old: float | None, new: float | None, patients: int, reason: str
) -> None:
    activate(world.site, world.model(1), scores(old))
    found = activate(world.site, world.model(2), scores(new, patients=patients))
    assert found.active is (reason == "")
    assert reason in found.reason
    expected = "1.0.2" if found.active else "1.0.1"
    assert active_model(world.site).card["version"] == expected
    assert (world.site.folder / "models" / f"{STUDY}-1.0.2").is_dir()
    assert activate(world.site, world.model(2), scores(new, patients=patients), insist=True).active
    assert active_model(world.site).card["version"] == "1.0.2"


def test_the_first_model_is_activated_whoever_scored_it(world: World) -> None:
    assert activate(world.site, world.model(), scores(None, patients=0)).active


def test_scores_of_earlier_versions_count_cases_for_patients() -> None:
    old = {"cases": 3, "dice": {"WT": 0.5}}
    assert objection(old, {"cases": 3, "dice": {"WT": 0.5}}) == ""
    assert "one patient" in objection(old, {"cases": 1, "dice": {"WT": 0.5}})


def test_the_active_model_may_be_installed_again(world: World) -> None:
    activate(world.site, world.model(), scores(0.9))
    assert activate(world.site, world.model(), scores(0.1)).active
    assert active_model(world.site).card["version"] == "1.0.2"


def test_one_name_stands_for_one_model(world: World) -> None:
    keep(world.site, world.model(2))
    other = world.model(1)
    disguised = replace(other, card={**other.card, "version": "1.0.2"})
    with pytest.raises(ModelError, match=r"Another model named .*1\.0\.2"):
        keep(world.site, disguised)


def test_another_coordinators_model_is_not_kept(world: World) -> None:
    stranger = replace(world.model(), signer="0" * 64)
    with pytest.raises(IdentityError, match="not by this site's coordinator"):
        activate(world.site, stranger, scores(1.0))
    assert not (world.site.folder / "models").exists()


def test_what_nobody_signed_is_not_copied(world: World, tmp_path: Path) -> None:
    """A link to a device would be copied for ever."""
    release = tmp_path / "release"
    shutil.copytree(world.model().folder, release)
    (release / "more").symlink_to("/dev/null")
    (release / "notes.txt").write_text("?")
    kept = keep(world.site, open_model(release))
    assert {path.name for path in kept.iterdir()} == {
        "release.json", "protocol.json", "card.json", "card.md", "weights.safetensors",
    }  # fmt: skip


def test_a_copy_that_was_cut_short_is_made_again(world: World) -> None:
    torn = world.site.folder / "models" / f".{STUDY}-1.0.2.new"
    torn.mkdir(parents=True)
    (torn / "release.json").write_text("half")
    kept = keep(world.site, world.model())
    assert open_model(Path(kept)).card["version"] == "1.0.2"
    assert not torn.exists()


def test_temperatures_are_kept_for_the_weights_they_were_fitted_to(world: World) -> None:
    model = world.model()
    activate(world.site, model, scores(0.1))
    assert temperatures_of(world.site, model) is None
    counts = Counts.none()
    counts.voxels[0, :, 600] = (50, 50)  # says 0.94, is right half the time
    with pytest.raises(ValueError, match="2 patients cannot calibrate"):
        calibrate(world.site, model, counts, cases=5, patients=2)
    found = calibrate(world.site, model, counts, cases=3, patients=3)
    assert found["calibration_error"]["before"]["WT"] > 0.4
    assert found["calibration_error"]["after"]["WT"] < found["calibration_error"]["before"]["WT"]
    kept = temperatures_of(world.site, active_model(world.site))
    assert kept == tuple(found["temperatures"].values())
    assert kept is not None
    assert kept[0] > 1
    assert kept[1:] == (1.0, 1.0)
    other = replace(model, card={**model.card, "weights_sha256": "0" * 64})
    assert temperatures_of(world.site, other) is None
    assert temperatures_of(world.site, world.model(1)) is None
    (path,) = (world.site.folder / "models").glob("*.calibration.json")
    written = json.loads(path.read_text())
    del written["patients"]  # as an earlier version wrote it, which calibrated on one
    path.write_text(json.dumps({**written, "cases": 1}))
    assert temperatures_of(world.site, model) is None
    calibrate(world.site, model, counts, cases=3, patients=3)
    forget_calibration(world.site, model)
    assert temperatures_of(world.site, model) is None


def test_a_revoked_model_is_neither_used_nor_installed_again(world: World, tmp_path: Path) -> None:
    activate(world.site, world.model(2), scores(0.5))
    assert revocations_of(world.site).models == ()
    listed = tmp_path / "revoked.json"
    revoke(world.consortium, STUDY, number=2, by="Dr. Tamm", why="wrong labels")
    write_revocations(world.consortium, listed)
    assert active_model(world.site)  # until the list is installed nobody here knows
    take_revocations(world.site, listed)
    with pytest.raises(ModelError, match=r"was revoked on .* wrong labels") as caught:
        active_model(world.site)
    assert caught.value.code == "model-revoked"
    with pytest.raises(ModelError, match="was revoked"):
        activate(world.site, world.model(2), scores(0.9))
    assert activate(world.site, world.model(1), scores(0.5)).active
    assert active_model(world.site).card["version"] == "1.0.1"
    with pytest.raises(StateError, match="revoked already"):
        revoke(world.consortium, STUDY, number=2, by="Dr. Tamm", why="again")
    with pytest.raises(StateError, match="No model of round 7"):
        revoke(world.consortium, STUDY, number=7, by="Dr. Tamm", why="again")
    with pytest.raises(StateError, match="a person's name"):
        revoke(world.consortium, STUDY, number=1, by="", why="again")


def test_a_list_of_revoked_models_only_grows_and_is_the_coordinators(
    world: World, tmp_path: Path
) -> None:
    old, new, forged = (tmp_path / f"{name}.json" for name in ("old", "new", "forged"))
    revoke(world.consortium, STUDY, number=2, by="Dr. Tamm", why="wrong labels")
    write_revocations(world.consortium, old)
    revoke(world.consortium, STUDY, number=1, by="Dr. Tamm", why="wrong labels")
    assert len(write_revocations(world.consortium, new).models) == 2
    take_revocations(world.site, new)
    with pytest.raises(StateError, match="is older than"):
        take_revocations(world.site, old)
    sign_revocations(Revocations(), Identity.create(tmp_path / "stranger.key")).save(forged)
    with pytest.raises(IdentityError, match="is signed by key"):
        take_revocations(world.site, forged)
    assert len(revocations_of(world.site).models) == 2
    (fact,) = world.site.journal.events("revocations installed")
    assert fact.facts["models"] == 2


def test_a_release_is_valid_through_its_last_day(world: World) -> None:
    sign_again(world.release, world.consortium.identity, expires="2030-05-01")
    assert open_model(world.release, on=dt.date(2030, 5, 1)).card["round"] == 2
    with pytest.raises(ModelError, match="until 2030-05-01") as caught:
        open_model(world.release, on=dt.date(2030, 5, 2))
    assert caught.value.code == "model-expired"
    sign_again(world.release, world.consortium.identity, expires="some day")
    with pytest.raises(ModelError, match="is damaged"):
        open_model(world.release)


def test_a_mean_of_rounds_is_released_until_a_day_and_opens(world: World, tmp_path: Path) -> None:
    last = dt.date(2090, 1, 1)
    card = release(world.consortium, STUDY, tmp_path / "mean", average=2, expires=last)
    assert (card["version"], card["expires"]) == ("1.0.2+mean2", "2090-01-01")
    assert "Until 2090-01-01." in (tmp_path / "mean" / "card.md").read_text()
    assert activate(world.site, open_model(tmp_path / "mean"), scores(0.5)).active
    assert active_model(world.site).card["version"] == "1.0.2+mean2"
