"""Without a network: an installation from a wheelhouse, the guides from end to end, the demo."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

from tests import children
from tests.deploy.test_guides import told
from tests.deploy.wheelhouse import BARE, fill
from tests.guides import HOSPITALS, ROOT, commands, story
from tests.programs import needed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheelhouse in it, as it was carried over."""
    root = tmp_path_factory.mktemp("offline")
    fill(root)
    return root


@pytest.fixture(scope="module")
def programs(folder: Path, apart: tuple[str, ...]) -> Path:
    """Where the commands are that the guide's own blocks installed without a network."""
    programs = folder / "gliofed" / "bin"
    with story(folder, programs, entry=apart, environment=BARE) as reader:
        reader.tell(
            [b for b in commands() if "install" in b.info and "make wheelhouse" not in b.text],
            hospitals=("north",),
        )
        assert "gliofed-clinic" in reader.said
    place = children.run(
        [programs / "python", "-c", "import server; print(server.__file__)"],
        capture_output=True,
        text=True,
        env=BARE,
        cwd=folder,
        check=True,
    )
    assert place.stdout.startswith(str(folder / "gliofed"))
    return programs


def test_the_wheel_holds_every_file_that_the_product_reads(folder: Path) -> None:
    (wheel,) = (folder / "wheelhouse").glob("gliofed-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        packed = set(opened.namelist())
    listed = children.run(
        [needed("git"), "ls-files", "server", "client", "common"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert set(listed) <= packed


def test_a_changed_wheel_is_found(folder: Path, tmp_path: Path) -> None:
    house = tmp_path / "wheelhouse"
    house.mkdir()
    wheel = next((folder / "wheelhouse").glob("gliofed-*.whl"))
    (house / wheel.name).write_bytes(wheel.read_bytes() + b" ")
    sums = (folder / "wheelhouse" / "SHA256SUMS").read_text().splitlines()
    (house / "SHA256SUMS").write_text("".join(f"{s}\n" for s in sums if wheel.name in s))
    (check,) = (b for b in commands() if "--check" in b.text)
    with story(tmp_path, Path(sys.executable).parent) as reader, pytest.raises(RuntimeError):
        reader.tell([check])


def test_the_guides_alone_from_an_installation_without_a_network(
    folder: Path, apart: tuple[str, ...], programs: Path
) -> None:
    with story(folder, programs, entry=apart, environment=BARE) as reader:
        reader.tell([b for b in commands() if "install" not in b.info], hospitals=HOSPITALS)
    told(folder)


def test_the_demo_from_an_installation_without_a_network(
    folder: Path, apart: tuple[str, ...], programs: Path
) -> None:
    done = children.run(
        [*apart, "bash", folder / "source" / "deploy" / "demo" / "demo.sh", folder / "demo"],
        env={
            **os.environ,
            **BARE,
            "DEMO_PATIENTS": "8",
            "PATH": f"{programs}:{os.environ['PATH']}",
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    study = json.loads((folder / "demo" / "status.json").read_text())["studies"][0]
    assert len(study["rounds"]) == study["rounds_planned"]
    assert (folder / "demo" / "segmentation" / "segmentation.nii.gz").is_file()
