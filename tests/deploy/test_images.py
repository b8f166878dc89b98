"""The images' own steps, in a Debian root instead of a container: what Docker would do with them.

Each line of a Dockerfile is carried out as it stands, without a network; then the image's commands
run as its user on a root that is read only. What stays unproven: Docker itself, and its base image.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.errors import StateError
from tests import children
from tests.deploy.wheelhouse import fill
from tests.guides import ROOT
from tests.programs import needed

pytestmark = pytest.mark.slow

ENTER = """
set -eu
root=$1; shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount --bind "$STATE" "$root/var/lib/gliofed"
[ "$READ_ONLY" = no ] || mount -o remount,bind,ro "$root"
ip link set lo up
exec chroot --userspec="$OWNER" "$root" "$@"
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian with Python, called ``python`` as in the base image."""
    root = tmp_path_factory.mktemp("debian") / "root"
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    program = shutil.which("debootstrap", path=path) or needed("debootstrap")
    children.run(
        [program, "--variant=minbase", "--include=python3,python3-venv", "bookworm", root],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (root / "usr" / "local" / "bin" / "python").symlink_to("/usr/bin/python3")
    return root


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("wheels"))


class Image:
    """A Dockerfile, carried out below ``root``."""

    def __init__(self, role: str, root: Path, state: Path) -> None:
        text = (ROOT / "deploy" / role / "Dockerfile").read_text().replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        self.steps = [(word, rest.strip()) for word, _, rest in (s.partition(" ") for s in lines)]
        self.root, self.state = root, state
        self.environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root"}
        self.owner = "0:0"
        self.last: dict[str, list[str]] = {}

    def call(
        self, words: Sequence[str], *, folder: str = "/", read_only: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the image, without a network."""
        inner = ["env", "-i", "-C", folder, *(f"{k}={v}" for k, v in self.environment.items())]
        return children.run(
            [
                *(needed("unshare"), "--net", "--mount", "--pid", "--fork", "--kill-child"),
                *("sh", "-c", ENTER, "sh", str(self.root), *inner, *words),
            ],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "STATE": str(self.state),
                "READ_ONLY": "yes" if read_only else "no",
                "OWNER": self.owner,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def build(self, house: Path) -> None:
        """Carry the steps out; both stages in one root, whose wheelhouse goes with the first."""
        folder = "/"
        for word, rest in self.steps:
            if word == "FROM" and " AS " not in rest:
                shutil.rmtree(self.root / "wheelhouse")
                folder = "/"
            elif word == "COPY" and not rest.startswith("--from"):
                assert rest == "wheelhouse /wheelhouse"
                shutil.copytree(house, self.root / "wheelhouse")
            elif word == "WORKDIR":
                folder = rest
                (self.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif word == "RUN":
                done = self.call(json.loads(rest), folder=folder)
                assert done.returncode == 0, (rest, done.stdout, done.stderr)
            elif word == "ENV":
                for pair in rest.split():
                    name, _, value = pair.partition("=")
                    self.environment[name] = value.replace("$PATH", self.environment["PATH"])
            elif word == "USER":
                self.owner = rest
            elif word == "HEALTHCHECK" and "CMD" in rest:
                self.last[word] = json.loads(rest.partition("CMD ")[2])
            elif word in {"ENTRYPOINT", "CMD"}:
                self.last[word] = json.loads(rest)


@pytest.mark.parametrize("role", ["coordinator", "site", "clinic"])
def test_an_image_is_built_offline_and_runs_read_only_as_nobody(
    role: str, base: Path, house: Path, tmp_path: Path
) -> None:
    root, state = tmp_path / "root", tmp_path / "state"
    # Not copytree, which would read the devices to their end.
    children.run([needed("cp"), "--archive", base, root], check=True)
    state.mkdir()
    (root / "var/lib/gliofed").mkdir(parents=True, exist_ok=True)
    image = Image(role, root, state)
    image.build(house)
    shutil.chown(state, 10001, 10001)

    (program,) = image.last["ENTRYPOINT"]
    helped = image.call([program, "--help"], read_only=True)
    assert helped.returncode == 0, helped.stderr
    assert "Commands" in helped.stdout
    refused = image.call(["python", "-c", "open('/opt/gliofed/x', 'w')"], read_only=True)
    assert "Read-only file system" in refused.stderr

    made = {
        "coordinator": "init /var/lib/gliofed/coordinator --name A --host localhost --port 9443",
        "site": "request /var/lib/gliofed/site --name north",
        "clinic": "segment /nowhere --model /nowhere --out /var/lib/gliofed/result",
    }[role]
    done = image.call([program, *made.split()], folder="/var/lib/gliofed", read_only=True)
    if role == "clinic":
        assert done.returncode != 0
        assert "/nowhere" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert (state / role).stat().st_uid == 10001
    # Nobody serves it: the health check must say so, and not break.
    health = image.call(image.last["HEALTHCHECK"], read_only=True)
    assert health.returncode == StateError.exit_code
    assert "What to do" in health.stderr
