"""Without a network: a wheelhouse, a fresh environment from it, and the guides from end to end."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


def test_the_wheel_holds_every_file_that_the_product_reads(folder: Path) -> None:
    (wheel,) = (folder / "wheelhouse").glob("gliofed-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        packed = set(opened.namelist())
    listed = subprocess.run(
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


def test_the_guides_alone_from_a_fresh_environment_without_a_network(folder: Path) -> None:
    """Each shell enters one namespace that has a loopback interface and nothing else."""
    keeper = subprocess.Popen(
        [
            needed("unshare"),
            "--net",
            "sh",
            "-c",
            "ip link set lo up && echo up && exec sleep infinity",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"up\n"
        entry = (needed("nsenter"), f"--net=/proc/{keeper.pid}/ns/net")
        devices = subprocess.run(
            [*entry, "ls", "/proc/self/net/dev_snmp6"], capture_output=True, text=True, check=True
        )
        assert devices.stdout.split() == ["lo"]
        with story(folder, folder / "gliofed" / "bin", entry=entry, environment=BARE) as reader:
            reader.tell(
                [b for b in commands() if "make wheelhouse" not in b.text][:3], hospitals=("north",)
            )
            assert "gliofed-clinic" in reader.said
            place = subprocess.run(
                [
                    folder / "gliofed" / "bin" / "python",
                    "-c",
                    "import server; print(server.__file__)",
                ],
                capture_output=True,
                text=True,
                env=BARE,
                cwd=folder,
                check=True,
            )
            assert place.stdout.startswith(str(folder / "gliofed"))
            reader.tell([b for b in commands() if "install" not in b.info], hospitals=HOSPITALS)
    finally:
        keeper.terminate()
        keeper.wait()
        if keeper.stdout is not None:
            keeper.stdout.close()
    told(folder)
