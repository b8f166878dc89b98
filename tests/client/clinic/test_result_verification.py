"""A result that was written verifies; whatever is changed in it, or in what it names, is told."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from client.clinic.installed_models import activate
from client.clinic.segment import segment
from client.commands import clinic as cli
from client.site.execution import ExecutionOptions
from tests.consortia import World
from tests.scanners import write_study

Run = Callable[..., Any]
PLAIN = ExecutionOptions(prefetch=0)


@pytest.fixture
def clinic(command: Run) -> Run:
    return functools.partial(command, cli.main)


@pytest.fixture(scope="module")
def written(finished: Path, cohorts: tuple[Path, ...], tmp_path_factory: Any) -> Path:
    """A case, and its result sealed by the site ``north``."""
    from client.clinic.released_model import open_model
    from client.site.folder import Site

    root = Path(tmp_path_factory.mktemp("written"))
    case = min(path for path in cohorts[0].iterdir() if path.is_dir())
    shutil.copytree(case, root / "case")
    site = Site.open(finished / "north")
    segment(
        root / "case",
        root / "result",
        open_model(finished / "release-2"),
        execution=PLAIN,
        trusted=True,
        sealer=(site.name, site.identity),
    )
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "own"))


def verdicts(said: Any) -> dict[str, str]:
    return {one["about"]: one["verdict"] for one in said.json["checks"]}


def edited(root: Path, **fields: Any) -> None:
    path = root / "result" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def relabel(root: Path) -> None:
    """Change one voxel of the mask."""
    path = root / "result" / "segmentation.nii.gz"
    image = nib.load(path)
    data = np.asarray(image.dataobj).copy()
    data[0, 0, 0] = 3
    nib.save(nib.Nifti1Image(data, image.affine), path)


def test_a_sound_result_holds_at_the_site_that_made_it(
    clinic: Run, world: World, root: Path
) -> None:
    activate(world.site, world.model(), {"cases": 1, "dice": {"WT": 0.1}})
    asked = ("verify", root / "result", "--site", world.site.folder, "--case", root / "case")
    said = clinic(*asked, "--recompute", "--json")
    assert (said.code, said.json["holds"]) == (0, True)
    assert verdicts(said) == {
        "seal": "holds",
        "files": "holds",
        "volumes": "holds",
        "model glioma-10 1.0.2": "holds",
        "input": "holds",
        "mask": "holds",
    }
    words = clinic(*asked)
    assert words.code == 0
    assert "All that could be checked holds." in words.out


def test_what_is_not_given_is_not_said_to_hold(clinic: Run, root: Path) -> None:
    said = clinic("verify", root / "result", "--json")
    assert said.code == 0
    assert {k for k, v in verdicts(said).items() if v == "unchecked"} == {
        "seal",
        "model glioma-10 1.0.2",
        "input",
    }
    assert "3 not checked" in clinic("verify", root / "result").out


def a_file_changed(root: Path, _: World) -> None:
    path = root / "result" / "report.pdf"
    path.write_bytes(path.read_bytes() + b" ")


def a_file_gone(root: Path, _: World) -> None:
    (root / "result" / "overview.png").unlink()


def a_number_edited(root: Path, _: World) -> None:
    volumes = json.loads((root / "result" / "result.json").read_text())["volumes_ml"]
    edited(root, volumes_ml={**volumes, "ET": volumes["ET"] + 5})


def warnings_taken_out(root: Path, _: World) -> None:
    edited(root, warnings=[])


def another_image(root: Path, _: World) -> None:
    path = next((root / "case").glob("*-t2w.nii.gz"))
    image = nib.load(path)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) * 2, image.affine), path)


def weights_changed(_: Path, world: World) -> None:
    path = world.site.folder / "models" / "glioma-10-1.0.2" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


def model_gone(_: Path, world: World) -> None:
    shutil.rmtree(world.site.folder / "models" / "glioma-10-1.0.2")


def mask_changed_with_its_digest(root: Path, _: World) -> None:
    from client.clinic.provenance import outputs

    relabel(root)
    edited(root, outputs=outputs(root / "result"))


BROKEN: dict[str, tuple[Callable[[Path, World], None], int, str]] = {
    "a file that was changed": (a_file_changed, 10, "report.pdf was changed"),
    "a file that is gone": (a_file_gone, 10, "overview.png is missing"),
    "a number in result.json": (a_number_edited, 11, "changed after north sealed it"),
    "warnings taken out": (warnings_taken_out, 11, "changed after north sealed it"),
    "another image": (another_image, 15, "Not the images that were segmented: t2w"),
    "weights that were changed": (weights_changed, 18, "was changed after it was signed"),
    "a model that is not installed": (model_gone, 18, "is not installed at north"),
    "a mask whose digest was changed too": (mask_changed_with_its_digest, 11, "sealed it"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_was_changed_is_told(clinic: Run, world: World, root: Path, name: str) -> None:
    spoil, code, words = BROKEN[name]
    activate(world.site, world.model(), {"cases": 1, "dice": {"WT": 0.1}})
    spoil(root, world)
    asked = ("verify", root / "result", "--site", world.site.folder, "--case", root / "case")
    said = clinic(*asked)
    assert said.code == code
    assert words in said.err
    assert "This is not what was written." in said.out
    assert clinic(*asked, "--json").json["holds"] is False


def test_another_model_is_told(clinic: Run, world: World, root: Path) -> None:
    said = clinic("verify", root / "result", "--model", world.releases[0])
    assert (said.code, "was made with weights" in said.err) == (18, True)
    assert clinic("verify", root / "result", "--model", world.releases[1]).code == 0


def test_a_seal_of_another_site_does_not_hold(
    clinic: Run, world: World, root: Path, tmp_path: Path
) -> None:
    from client.clinic.provenance import seal
    from common.trust.identity import Identity

    data = (root / "result" / "result.json").read_bytes()
    seal(root / "result", data, site="north", key=Identity.create(tmp_path / "stranger.key"))
    said = clinic("verify", root / "result", "--site", world.site.folder)
    assert (said.code, "is signed by key" in said.err) == (11, True)
    (root / "result" / "seal.json").unlink()
    said = clinic("verify", root / "result", "--json")
    assert verdicts(said)["seal"] == "unchecked"


def test_a_mask_that_the_model_does_not_draw_is_told(clinic: Run, world: World, root: Path) -> None:
    mask_changed_with_its_digest(root, world)
    (root / "result" / "seal.json").unlink()
    said = clinic(
        "verify", root / "result", "--case", root / "case", "--model", world.release,
        "--recompute",
    )  # fmt: skip
    assert said.code == 10
    assert "1 of " in said.err
    assert "The versions are the same" in said.err


def test_reviewed_versions_are_checked_too(clinic: Run, root: Path) -> None:
    review = root / "result" / "reviews" / "0001"
    source = root / "result"
    review.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, review / path.name)
    assert verdicts(clinic("verify", source, "--json"))["review 0001: files"] == "holds"
    (review / "segmentation.nii.gz").write_bytes(b"")
    said = clinic("verify", source)
    assert (said.code, "review 0001: files" in said.err) == (10, True)
    (review / "result.json").write_text("{")
    assert "review 0001: result" in clinic("verify", source).err


@pytest.mark.parametrize("content", [None, "{", "[]", '{"result_version": 9}'])
def test_what_is_no_result_is_refused(clinic: Run, tmp_path: Path, content: str | None) -> None:
    (tmp_path / "result").mkdir()
    if content is not None:
        (tmp_path / "result" / "result.json").write_text(content)
    said = clinic("verify", tmp_path / "result", "--json")
    assert (said.code, said.json["error"]) == (10, "state")


def test_a_dicom_study_is_found_again(clinic: Run, world: World, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    segment(study, tmp_path / "out", world.model(), execution=PLAIN, trusted=True)
    said = clinic("verify", tmp_path / "out", "--case", study, "--json")
    assert (said.code, verdicts(said)["input"]) == (0, "holds")
    next((study / "5").iterdir()).unlink()
    assert clinic("verify", tmp_path / "out", "--case", study).code == 15
