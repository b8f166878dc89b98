"""What ``gliofed-clinic segment`` refuses: a sentence, an exit code, and nothing that looks like a
result. Each row spoils one thing of a case, a model or a call that is fine without it."""

from __future__ import annotations

import datetime as dt
import errno
import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from client.clinic.installed_models import activate
from client.clinic.revoked_models import take_revocations
from client.commands import clinic as cli
from common.study.protocol import PROTOCOL
from common.trust.identity import Identity
from server.release.revocation import revoke, write_revocations
from tests.client.imaging import test_broken_input as broken
from tests.consortia import STUDY, World, change_card, sign_again
from tests.scanners import write_study, zipped

Run = Callable[..., Any]
SEQUENCES = ("t1n", "t1c", "t2w", "t2f")


@dataclass
class Call:
    """What the command is called with; a row changes it, or what it names."""

    root: Path
    world: World
    monkeypatch: pytest.MonkeyPatch
    case: Path
    model: list[object]
    extra: list[object] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.root / "out"

    def file(self, name: str = "t2w") -> Path:
        return next(self.case.glob(f"*-{name}.nii.gz"))

    def change(self, make: Callable[[np.ndarray], np.ndarray], *names: str) -> None:
        for name in names or ("t2w",):
            image = nib.load(self.file(name))
            data = make(image.get_fdata(dtype=np.float32).copy())
            nib.save(nib.Nifti1Image(data, image.affine), self.file(name))

    def each(self, **values: Any) -> None:
        for path in self.case.rglob("*.dcm"):
            dataset = pydicom.dcmread(path)
            for key, value in values.items():
                setattr(dataset, key, value)
            dataset.save_as(path)


Spoil = Callable[[Call], object]


def ellipsoid(data: np.ndarray, share: float) -> np.ndarray:
    """Return a body that fills ``share`` of the field, with the texture of noise."""
    axes = [np.linspace(-1, 1, n) for n in data.shape]
    radius = np.sqrt(sum(one**2 for one in np.meshgrid(*axes, indexing="ij")))
    noise = np.random.default_rng(0).uniform(100, 200, data.shape)
    return np.where(radius <= np.quantile(radius, share), noise, 0).astype(np.float32)


def spot(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def make(data: np.ndarray) -> np.ndarray:
        data[12, 12, 12] = value
        return data

    return make


def rgb(call: Call) -> None:
    image = nib.load(call.file())
    colours = np.zeros(image.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, image.affine), call.file())


def in_air(data: np.ndarray) -> np.ndarray:
    """Lay a scanner's noise over all of the field."""
    noise: np.ndarray = data + np.random.default_rng(1).uniform(5, 50, data.shape)
    return noise


def on_another_grid(call: Call) -> None:
    image = nib.load(call.file())
    affine = image.affine.copy()
    affine[0, 3] += 5
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), affine), call.file())


def head(call: Call, **fields: Any) -> None:
    """Change fields of the header on the disk, as nibabel would not write them."""
    import gzip

    data = bytearray(gzip.decompress(call.file().read_bytes()))
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for key, value in fields.items():
        header[key] = value
    data[:348] = header.binaryblock
    call.file().write_bytes(gzip.compress(bytes(data)))


def no_size(call: Call) -> None:
    head(call, srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4, sform_code=1)


def second_patient(call: Call) -> None:
    other = max(path for path in Path(call.case.parent / "cohort").iterdir() if path.is_dir())
    for path in other.glob("*.nii.gz"):
        shutil.copy(path, call.case / path.name)


def forbidden(call: Call) -> None:
    """Root may read all files, so that the system's answer is given in its place."""
    name, real = call.file().name, os.open

    def opened(path: Any, *args: Any, **kwargs: Any) -> int:
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    call.monkeypatch.setattr(os, "open", opened)


def full(call: Call) -> None:
    real = os.fsync
    left = [2]  # mask and uncertainty still fit

    def sync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    call.monkeypatch.setattr(os, "fsync", sync)


def dicom(spoil: Spoil) -> Spoil:
    def applied(call: Call) -> None:
        call.case = write_study(call.root / "study")
        spoil(call)

    return applied


def as_broken(name: str) -> Spoil:
    """Take a row of the table of broken DICOM input."""
    return dicom(lambda call: broken.DICOM[name][0](call.root, call.monkeypatch))


def archive(name: str) -> Spoil:
    """Take a row of the table of broken zip files."""

    def applied(call: Call) -> None:
        call.case = call.root / "study.zip"
        zipped(write_study(call.root / "source"), call.case)
        broken.ZIP[name][0](call.root, call.monkeypatch)

    return applied


def second_study(call: Call) -> None:
    write_study(call.case / "later", study="1.2.9", seed=1)


def at_the_site(call: Call) -> World:
    activate(call.world.site, call.world.model(), {"cases": 1, "dice": {"WT": 0.1}})
    call.model = ["--site", call.world.site.folder]
    return call.world


def tampered(call: Call) -> None:
    folder = at_the_site(call).site.folder / "models" / f"{STUDY}-1.0.2"
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def revoked(call: Call) -> None:
    world = at_the_site(call)
    revoke(world.consortium, STUDY, number=2, by="Dr. Tamm", why="wrong labels at one site")
    write_revocations(world.consortium, call.root / "revoked.json")
    take_revocations(world.site, call.root / "revoked.json")


def expired(call: Call) -> None:
    yesterday = dt.date.today() - dt.timedelta(days=1)
    key = call.world.consortium.identity
    sign_again(call.world.release, key, expires=yesterday.isoformat())


def other_preprocessing(call: Call) -> None:
    call.monkeypatch.setattr("client.imaging.preprocessing.digest", lambda _: "0" * 64)


def other_postprocessing(call: Call) -> None:
    """The protocol is signed anew with other thresholds; the release still names the old file."""
    from common.trust.identity import Statement

    release, key = call.world.release, call.world.consortium.identity
    body = Statement.load(release / "protocol.json", what="study protocol").body
    changed = {**body["postprocessing"], "thresholds": [0.1, 0.1, 0.1]}
    key.sign(PROTOCOL, {**body, "postprocessing": changed}).save(release / "protocol.json")


def card_of_other_postprocessing(call: Call) -> None:
    model = call.world.model()
    changed = {**model.card["postprocessing"], "thresholds": [0.1, 0.1, 0.1]}
    change_card(call.world.release, postprocessing=changed)
    sign_again(call.world.release, call.world.consortium.identity)


def stranger(call: Call) -> None:
    sign_again(call.world.release, Identity.create(call.root / "stranger.key"))


REFUSED: dict[str, tuple[Spoil, int, str, str]] = {
    # what is wrong, how, exit code, error, words
    "T1c and FLAIR are missing": (
        lambda c: [c.file(n).unlink() for n in ("t1c", "t2f")],
        15, "case-sequence", "t1c or t2f must be there"),
    "a sequence that the model needs is missing": (
        lambda c: c.file().unlink(), 15, "case-sequence", "lacks t2w"),
    "no head: a body of 4 litres": (
        lambda c: c.change(lambda d: ellipsoid(d, 0.3), *SEQUENCES),
        15, "case-brain", "no brain"),
    "no head: a nut": (
        lambda c: c.change(lambda d: ellipsoid(d, 0.003), *SEQUENCES),
        15, "case-brain", "no brain"),
    "a head with its skull and air": (
        lambda c: c.change(in_air, *SEQUENCES),
        15, "case-not-stripped", "not skull-stripped"),
    "an empty volume": (
        lambda c: c.change(np.zeros_like), 15, "case-empty", "every voxel is 0"),
    "NaN": (lambda c: c.change(spot(np.nan)), 15, "case-values", "NaN"),
    "a truncated NIfTI": (
        lambda c: c.file().write_bytes(c.file().read_bytes()[:900]),
        15, "case-file", "truncated"),
    "text named as an image": (
        lambda c: c.file().write_bytes(b"not an image"), 15, "case-file", "not NIfTI"),
    "sequences on different grids": (on_another_grid, 15, "case-grid", "different grids"),
    "a 4-D file": (
        lambda c: c.change(lambda d: np.stack([d, d], axis=3)), 15, "case-shape", "2 channels"),
    "a colour image": (rgb, 15, "case-shape", "not plain numbers"),
    "voxels without a size": (no_size, 15, "case-affine", "zero or flat"),
    "a header of 27 trillion voxels": (
        lambda c: head(c, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]),
        15, "case-shape", "more than"),
    "a file that may not be read": (forbidden, 15, "case-file", "Permission denied"),
    "two patients in a folder": (second_patient, 15, "case-several", "holds 2 cases"),
    "no such folder": (
        lambda c: setattr(c, "case", c.root / "gone"), 15, "case-none", "is not a folder"),
    "an empty folder": (
        lambda c: shutil.rmtree(c.case) or c.case.mkdir(), 15, "case-none", "no image in it"),
    "another part of the body": (
        dicom(lambda c: c.each(BodyPartExamined="KNEE")), 15, "case-series", "no series for"),
    "CT instead of MR": (as_broken("CT instead of MR"), 15, "case-modality", "no series for"),
    "a duplicate slice": (as_broken("a duplicate slice"), 15, "case-slices", "twice"),
    "a missing middle slice": (
        as_broken("a missing middle slice"), 15, "case-slices", "in its middle"),
    "a colour series": (as_broken("a colour image"), 15, "case-pixels", "grey"),
    "a series without voxel size": (
        as_broken("voxels without a size"), 15, "case-affine", "how large"),
    "two studies": (dicom(second_study), 15, "case-several", "holds 2 cases"),
    "no zip file": (archive("not a zip"), 15, "case-zip", "as a zip file"),
    "a zip bomb": (archive("a bomb"), 15, "case-zip", "zip bomb"),
    "a path out of the zip": (archive("a path out of it"), 15, "case-zip", "leads out of it"),
    "weights that were changed": (tampered, 18, "model-tampered", "was changed after"),
    "a revoked model": (revoked, 18, "model-revoked", "wrong labels at one site"),
    "an expired model": (expired, 18, "model-expired", "for use until"),
    "another preprocessing than installed": (
        other_preprocessing, 18, "model-preprocessing", "another preprocessing"),
    "another post-processing than signed": (
        other_postprocessing, 18, "model-tampered", "protocol.json"),
    "a card with another post-processing": (
        card_of_other_postprocessing, 18, "model", "another postprocessing"),
    "a model that a stranger signed": (stranger, 11, "identity", "is signed by key"),
    "no model in the folder": (
        lambda c: shutil.rmtree(c.world.release), 18, "model", "holds no released model"),
    "no model at the site": (
        lambda c: setattr(c, "model", ["--site", c.world.site.folder]),
        18, "model", "No model is installed"),
    "an earlier result that is none": (
        lambda c: c.extra.extend(["--prior", c.root]), 10, "prior", "holds no result.json"),
    "a full disk": (full, 10, "disk-full", "The disk is full"),
}  # fmt: skip


@pytest.fixture
def clinic(command: Run) -> Run:
    return functools.partial(command, cli.main)


@pytest.fixture
def call(world: World, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    root = tmp_path / "call"
    root.mkdir()
    (root / "cohort").symlink_to(cohort)
    source = min(path for path in cohort.iterdir() if path.is_dir())
    case = Path(shutil.copytree(source, root / "case"))
    next(case.glob("*-seg.nii.gz")).unlink()
    return Call(root, world, monkeypatch, case, ["--model", world.release])


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_and_nothing_is_written(clinic: Run, call: Call, name: str) -> None:
    spoil, code, error, words = REFUSED[name]
    spoil(call)
    said = clinic("segment", call.case, "--out", call.out, *call.model, *call.extra, "--json")
    assert (said.code, said.json["error"]) == (code, error), said.out
    assert words in said.json["message"], said.json
    assert said.json["do"]
    assert not call.out.exists() or not list(call.out.iterdir())


def test_a_result_that_is_there_stays_as_it_is(clinic: Run, call: Call) -> None:
    call.out.mkdir()
    (call.out / "result.json").write_text("mine")
    said = clinic("segment", call.case, "--out", call.out, *call.model)
    assert (said.code, "is not an empty folder" in said.err) == (10, True)
    assert [(p.name, p.read_text()) for p in call.out.iterdir()] == [("result.json", "mine")]


def test_what_the_rows_spoil_was_fine(clinic: Run, call: Call) -> None:
    for number, case in enumerate((call.case, write_study(call.root / "study"))):
        out = call.root / f"out-{number}"
        assert clinic("segment", case, "--out", out, *call.model).code == 0
        assert (out / "result.json").is_file()


def test_there_are_at_least_25_rows() -> None:
    assert len(REFUSED) >= 25
