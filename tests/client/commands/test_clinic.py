"""gliofed-clinic: one command, its table, its JSON and its refusals."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.clinic.installed_models import activate, calibrate
from client.clinic.segment import segment
from client.commands import clinic as cli
from client.segmentation.calibration import Counts
from common.records.atomic_files import is_held
from tests.consortia import World

Run = Callable[..., Any]


@pytest.fixture
def clinic(command: Run) -> Run:
    return functools.partial(command, cli.main)


@pytest.fixture
def case(cohort: Path) -> Path:
    return min(path for path in cohort.iterdir() if path.is_dir())


def test_the_help_says_what_each_argument_is(clinic: Run) -> None:
    said = " ".join(clinic("segment", "--help").out.split())
    assert "Folder or DICOM zip of one case" in said
    assert "Folder of a result" in " ".join(clinic("send", "--help").out.split())


def test_segment_with_a_release(clinic: Run, world: World, case: Path, tmp_path: Path) -> None:
    said = clinic("segment", case, "--out", tmp_path / "out", "--model", world.release)
    assert said.code == 0
    assert "whole tumour" in said.out
    assert "never calibrated here" in said.out
    assert "nobody said whose signature" in said.err
    assert "Research use only" in said.err
    assert (tmp_path / "out" / "result.json").is_file()
    again = clinic("segment", case, "--out", tmp_path / "out", "--model", world.release, "--json")
    assert (again.code, again.json["error"]) == (10, "state")


def test_segment_with_the_sites_model(
    clinic: Run, world: World, case: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    none = clinic("segment", case, "--out", out, "--site", world.site.folder)
    assert (none.code, "No model is installed" in none.err) == (18, True)
    activate(world.site, world.model(), {"cases": 1, "dice": {"WT": 0.1}})
    calibrate(world.site, world.model(), Counts.none(), cases=3, patients=3)
    said = clinic("segment", case, "--out", out, "--site", world.site.folder, "--json")
    assert said.code == 0
    assert said.json["calibrated"] is True
    assert said.json == json.loads((out / "result.json").read_text())
    assert not any("whose signature" in warning for warning in said.json["warnings"])


def test_training_at_the_site_waits_for_the_segmentation(
    clinic: Run, world: World, case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    activate(world.site, world.model(), {"cases": 1, "dice": {"WT": 0.1}})
    held: list[bool] = []

    def look(*values: Any, **options: Any) -> Any:
        held.append(is_held(world.site.clinic_lock))
        return segment(*values, **options)

    monkeypatch.setattr("client.clinic.segment.segment", look)
    out = tmp_path / "out"
    assert clinic("segment", case, "--out", out, "--site", world.site.folder).code == 0
    assert (held, is_held(world.site.clinic_lock)) == ([True], False)
    out = tmp_path / "other"
    assert clinic("segment", case, "--out", out, "--model", world.release).code == 0
    assert held == [True, False]


def test_several_releases_predict_together(
    clinic: Run, world: World, case: Path, tmp_path: Path
) -> None:
    both = ("--model", world.releases[0], "--model", world.releases[1])
    said = clinic("segment", case, "--out", tmp_path / "out", *both, "--json")
    assert said.code == 0
    assert said.json["model"]["round"] == 1
    assert [one["round"] for one in said.json["together_with"]] == [2]


def test_one_model_must_be_named(clinic: Run, world: World, case: Path, tmp_path: Path) -> None:
    for extra in ([], ["--model", world.release, "--site", world.site.folder]):
        said = clinic("segment", case, "--out", tmp_path / "out", *extra)
        assert (said.code, "--model or --site" in said.err) == (18, True)


def test_a_case_that_is_none(clinic: Run, world: World, tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    said = clinic(
        "segment", tmp_path / "case", "--out", tmp_path / "out", "--model", world.release, "--json"
    )
    assert (said.code, said.json["error"]) == (15, "case-none")
    assert not (tmp_path / "out").exists()


def test_a_case_that_lacks_a_sequence_is_refused_by_a_model_that_needs_it(
    clinic: Run, world: World, case: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(case, tmp_path / "case"))
    next(folder.glob("*-t2w.nii.gz")).unlink()
    asked = ("segment", folder, "--out", tmp_path / "out", "--model", world.release)
    said = clinic(*asked)
    assert (said.code, "lacks t2w" in said.err) == (15, True)
    assert clinic(*asked, "--json").json["error"] == "case-sequence"
    assert not (tmp_path / "out").exists()


def test_a_case_that_lacks_a_sequence_is_warned_of_on_stderr(
    clinic: Run, world: World, case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(case, tmp_path / "case"))
    next(folder.glob("*-t1c.nii.gz")).unlink()
    model = world.model()
    training = model.protocol.training.model_copy(update={"sequence_dropout": 0.5})
    protocol = model.protocol.model_copy(update={"training": training})
    able = dataclasses.replace(model, protocol=protocol)
    monkeypatch.setattr("client.clinic.released_model.open_model", lambda _: able)
    said = clinic("segment", folder, "--out", tmp_path / "out", "--model", world.release)
    assert said.code == 0
    assert "Without contrast-enhanced T1 (t1c)" in said.err
    assert " to " in said.out
