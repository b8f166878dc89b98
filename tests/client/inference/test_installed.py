"""Which model a clinic uses: the coordinator's, and never a worse one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.calibration import Counts
from client.inference.installed import (
    activate,
    active_model,
    calibrate,
    keep,
    temperatures_of,
)
from client.inference.model import open_model
from common.errors import IdentityError, ModelError
from tests.consortia import STUDY, World


def scores(value: float | None) -> dict[str, Any]:
    return {"cases": 1, "dice": {} if value is None else {"WT": value, "TC": value}}


def test_nothing_is_installed_at_first(world: World) -> None:
    with pytest.raises(ModelError, match="No model is installed at north"):
        active_model(world.site)


def test_the_first_model_is_activated_and_verified_on_use(world: World) -> None:
    assert activate(world.site, world.model(), scores(0.1)) is True
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
    ("old", "new", "taken"),
    [
        (0.5, 0.6, True),
        (0.5, 0.5, True),
        (0.5, 0.491, True),
        (0.5, 0.48, False),
        (None, 0.0, True),
        (0.5, None, False),
        (None, None, True),
    ],
)
def test_a_worse_model_is_not_activated(
    world: World, old: float | None, new: float | None, taken: bool
) -> None:
    activate(world.site, world.model(1), scores(old))
    assert activate(world.site, world.model(2), scores(new)) is taken
    expected = "1.0.2" if taken else "1.0.1"
    assert active_model(world.site).card["version"] == expected
    assert (world.site.folder / "models" / f"{STUDY}-1.0.2").is_dir()


def test_the_active_model_may_be_installed_again(world: World) -> None:
    activate(world.site, world.model(), scores(0.9))
    assert activate(world.site, world.model(), scores(0.1)) is True
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
    found = calibrate(world.site, model, counts, cases=1)
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
