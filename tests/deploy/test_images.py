"""The images' own steps, in a root folder instead of a container: what Docker would do with them.

Each line of a Dockerfile is carried out as it stands, without a network; then the image's commands
run on a root that is read only. There are two bases. A Debian made by debootstrap takes the whole
wheelhouse. This machine's own root, below an overlay, takes gliofed's own wheel; what gliofed
depends on is read from the environment of the tests, which spares the installation of torch.
What stays unproven: Docker itself, and its base image.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from client.phantoms.cohort import write_cohort
from client.phantoms.profiles import PROFILES
from common.errors import StateError
from tests import children
from tests.deploy.wheelhouse import fill
from tests.deployment.stack import PROTOCOL, until
from tests.guides import ROOT
from tests.programs import needed

pytestmark = pytest.mark.slow  # a Debian, a wheelhouse, three images, a study: minutes

ROLES: Final = ("coordinator", "site", "clinic")
NAMED: Final = "10001:10001"
PACKAGES: Final = Path(sysconfig.get_path("purelib")).resolve()
UNNAMED: Final = "1000670000:0"
"""A number that the image does not know, in group 0, as OpenShift runs every image."""

ENTER: Final = """
set -eu
root=$1; shift
if [ -n "$LAYERS" ]; then
    mount -t overlay -o "$LAYERS" overlay "$root"
    mount --bind /dev "$root/dev"
else
    mount --bind "$root" "$root"
fi
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
for volume in $VOLUMES; do mount --bind "${volume%%:*}" "$root${volume##*:}"; done
[ "$READ_ONLY" = no ] || mount -o remount,bind,ro "$root"
# Not exec: what changes its user outlives its parent; this shell does not, and takes all with it.
chroot --userspec="$OWNER" --groups= "$root" "$@" || exit $?
"""


class Image:
    """A Dockerfile, carried out in ``root``, or in ``layer`` above this machine's root."""

    def __init__(self, role: str, root: Path, *, entry: Sequence[str], layer: Path | None) -> None:
        text = (ROOT / "deploy" / role / "Dockerfile").read_text().replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        self.steps = [(word, rest.strip()) for word, _, rest in (s.partition(" ") for s in lines)]
        self.root, self.layer, self.entry = root, layer, entry
        self.files = root if layer is None else layer / "upper"
        programs = "/usr/local/bin" if layer is None else f"{sys.base_prefix}/bin"
        self.environment = {"PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        self.user = "0:0"
        self.folder = "/"
        self.last: dict[str, list[str]] = {}

    def start(
        self,
        words: Sequence[str],
        *,
        read_only: bool = True,
        user: str = "",
        home: bool = True,
        volumes: Mapping[Path, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program of the image, without a network; ``home=False`` leaves out HOME.

        Killing what is returned kills all that the program started.
        """
        for inside in (volumes or {}).values():
            (self.files / inside.lstrip("/")).mkdir(parents=True, exist_ok=True)
        left_out = () if home else ("HOME", "MPLCONFIGDIR")
        given = [f"{k}={v}" for k, v in self.environment.items() if k not in left_out]
        layers = ""
        if self.layer is not None and read_only:
            layers = f"lowerdir={self.files}:/"
        elif self.layer is not None:
            layers = f"lowerdir=/,upperdir={self.files},workdir={self.layer}/work"
        return children.start(
            [
                *self.entry,
                *(needed("unshare"), "--mount", "--pid", "--fork", "--kill-child"),
                *("sh", "-c", ENTER, "sh", str(self.root)),
                *("env", "-i", "-C", self.folder, *given, *words),
            ],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LAYERS": layers,
                "VOLUMES": " ".join(f"{path}:{inside}" for path, inside in (volumes or {}).items()),
                "READ_ONLY": "yes" if read_only else "no",
                "OWNER": user or self.user,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(
        self,
        words: Sequence[str],
        *,
        read_only: bool = True,
        user: str = "",
        home: bool = True,
        volumes: Mapping[Path, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the image to its end."""
        begun = self.start(words, read_only=read_only, user=user, home=home, volumes=volumes)
        out, err = begun.communicate()
        return subprocess.CompletedProcess(words, begun.returncode, out, err)

    def build(self, house: Path) -> None:
        """Carry the steps out; both stages in one root, whose wheelhouse goes with the first."""
        for word, rest in self.steps:
            if word == "FROM" and " AS " not in rest:
                shutil.rmtree(self.files / "wheelhouse")
                self.folder = "/"
            elif word == "COPY" and not rest.startswith("--from"):
                assert rest == "wheelhouse /wheelhouse"
                shutil.copytree(house, self.files / "wheelhouse")
            elif word == "WORKDIR":
                self.folder = rest
                (self.files / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif word == "RUN":
                self._run(json.loads(rest))
            elif word == "ENV":
                for pair in rest.split():
                    name, _, value = pair.partition("=")
                    self.environment[name] = value.replace("$PATH", self.environment["PATH"])
            elif word == "USER":
                self.user = rest
            elif word == "HEALTHCHECK" and "CMD" in rest:
                self.last[word] = json.loads(rest.partition("CMD ")[2])
            elif word in {"ENTRYPOINT", "CMD"}:
                self.last[word] = json.loads(rest)

    def _run(self, words: list[str]) -> None:
        installs = self.layer is not None and "--no-index" in words
        if installs:
            words = [*words, "--no-deps"]
        done = self.call(words, read_only=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        if installs:
            self._lend()

    def _lend(self) -> None:
        """Let the image read from this environment what its wheelhouse would have brought."""
        (packages,) = (self.files / "opt/gliofed/lib").glob("python*/site-packages")
        (packages / "lent.pth").write_text(f"{PACKAGES}\n")
        ours = Path(sys.executable).parent
        for script in ours.glob("flower-*"):
            text = script.read_text().splitlines(keepends=True)
            copy = self.files / "opt/gliofed/bin" / script.name
            copy.write_text("".join(["#!/opt/gliofed/bin/python\n", *text[1:]]))
            copy.chmod(0o755)


def _debian(folder: Path) -> Path:
    """Return a Debian with Python, called ``python`` as in the base image."""
    root = folder / "debian"
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    program = shutil.which("debootstrap", path=path) or needed("debootstrap")
    children.run(
        [program, "--variant=minbase", "--include=python3,python3-venv", "bookworm", root],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    return root


def _layer(folder: Path) -> Path:
    """Return a layer above this machine's root in which every user finds ``python``."""
    (folder / "work").mkdir()
    programs = Path(sys.base_prefix) / "bin"
    above = folder / "upper" / programs.relative_to("/")
    for read in (programs, PACKAGES):
        # Open to all, as the folders below may not be.
        (folder / "upper" / read.relative_to("/")).mkdir(parents=True, exist_ok=True)
    if not (programs / "python").exists():
        python = programs / f"python{sysconfig.get_python_version()}"
        (above / "python").symlink_to(python)
    return folder


@pytest.fixture(scope="module", params=["this machine", "debian"])
def images(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    apart: tuple[str, ...],
) -> Iterator[dict[str, Image]]:
    """The three images, built; all their programs share one loopback interface."""
    folder = tmp_path_factory.mktemp("images")
    lent = request.param == "this machine"
    house = fill(folder, alone=lent)
    debian = None if lent else _debian(folder)
    with contextlib.ExitStack() as stack:
        built = {}
        for role in ROLES:
            root, layer = folder / role, None
            if debian is None:
                root.mkdir()
                # Not below the root, of which it becomes a part.
                layer = _layer(
                    Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
                )
            else:
                # Not copytree, which would read the devices to their end.
                children.run([needed("cp"), "--archive", debian, root], check=True)
            built[role] = Image(role, root, entry=apart, layer=layer)
            built[role].build(house)
        yield built


def _owned(folder: Path, user: str) -> Path:
    """Return the folder, made if need be, with all that is in it given to ``user``."""
    folder.mkdir(exist_ok=True)
    uid, _, gid = user.partition(":")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, int(uid), int(gid))
    return folder


@pytest.mark.parametrize("user", [NAMED, UNNAMED])
@pytest.mark.parametrize("role", ROLES)
def test_an_image_runs_read_only_as_nobody(
    role: str, user: str, images: dict[str, Image], tmp_path: Path
) -> None:
    image = images[role]
    state = _owned(tmp_path / "state", user)
    volumes = {state: "/var/lib/gliofed"}
    (program,) = image.last["ENTRYPOINT"]
    helped = image.call([program, "--help"], user=user)
    assert helped.returncode == 0, helped.stderr
    assert "Commands" in helped.stdout
    refused = image.call(["python", "-c", "open('/opt/gliofed/x', 'w')"], user=user)
    assert "Read-only file system" in refused.stderr

    made = {
        "coordinator": "init /var/lib/gliofed/coordinator --name A --host localhost --port 9443",
        "site": "request /var/lib/gliofed/site --name north",
        "clinic": "segment /nowhere --model /nowhere --out /var/lib/gliofed/result",
    }[role]
    done = image.call([program, *made.split()], user=user, volumes=volumes)
    if role == "clinic":
        assert done.returncode != 0
        assert "/nowhere" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert (state / role).stat().st_uid == int(user.partition(":")[0])
    # Nobody serves it: the health check must say so, and not break.
    health = image.call(image.last["HEALTHCHECK"], user=user, volumes=volumes)
    assert health.returncode == StateError.exit_code
    assert "What to do" in health.stderr


class World:
    """A coordinator, a hospital and its clinic, each in its image, as a user without a name."""

    def __init__(self, images: dict[str, Image], folder: Path) -> None:
        self.images, self.folder = images, folder
        write_cohort(folder / "mri", PROFILES["reference"], patients=8, size=32, seed=1)
        for path in (folder, folder / "mri"):
            path.chmod(0o755)
        self.running: dict[str, subprocess.Popen[str]] = {}

    def state(self, role: str) -> Path:
        return _owned(self.folder / f"{role}-state", UNNAMED)

    def volumes(self, role: str) -> dict[Path, str]:
        data = {} if role == "coordinator" else {self.folder / "mri": "/data"}
        return {self.state(role): "/var/lib/gliofed", **data}

    def hand_over(self, name: str, sender: str, receiver: str) -> None:
        """Carry a file or folder from one to the other, as people do."""
        source, target = self.state(sender) / name, self.state(receiver) / Path(name).name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)

    def start(self, role: str) -> None:
        """Start the image as it stands."""
        image = self.images[role]
        words = [*image.last["ENTRYPOINT"], *image.last["CMD"]]
        self.running[role] = image.start(
            words, user=UNNAMED, home=False, volumes=self.volumes(role)
        )

    def tried(self, role: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command as ``docker exec`` would."""
        volumes = self.volumes(role)
        return self.images[role].call(list(words), user=UNNAMED, home=False, volumes=volumes)

    def says(self, role: str, *words: str) -> str:
        done = self.tried(role, *words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def end(self) -> None:
        for process in self.running.values():
            process.kill()
            process.communicate()


@pytest.fixture
def images_world(images: dict[str, Image], tmp_path: Path) -> Iterator[World]:
    made = World(images, tmp_path)
    try:
        yield made
    finally:
        made.end()


def test_the_images_train_install_and_segment_as_a_user_without_a_name(
    images_world: World,
) -> None:
    world = images_world
    server, site = "gliofed-server", "gliofed-site"
    world.says(
        "coordinator", server, "init", "coordinator", "--name=A", "--host=localhost", "--port=9443"
    )
    world.says("site", site, "request", "site", "--name=north", "--data=/data")
    world.hand_over("site/request.json", "site", "coordinator")
    world.says("coordinator", server, "admit", "coordinator", "request.json", "--out=kit.json")
    world.hand_over("kit.json", "coordinator", "site")
    world.says("site", site, "join", "site", "kit.json")
    draft = PROTOCOL.format(study="pilot", rounds=1, local_steps=1).replace(
        "quorum = 2", "quorum = 1"
    )
    (world.state("coordinator") / "pilot.toml").write_text(draft)
    world.says("coordinator", server, "study", "coordinator", "pilot.toml")

    world.start("coordinator")
    world.start("site")
    offered = world.folder / "site-state/site/studies/pilot/protocol.json"
    until(offered.exists, timeout_s=300, what="the offer")
    for role in ("coordinator", "site"):
        world.says(role, *world.images[role].last["HEALTHCHECK"])
    digest = json.loads(world.says("site", site, "plan", "site", "pilot", "--json"))["digest"]
    world.says("site", site, "approve", "site", "pilot", f"--digest={digest}", "--by=Dr Adams")
    world.says("coordinator", server, "launch", "coordinator", "pilot")
    doctor = json.loads(world.says("site", site, "doctor", "site", "--json"))
    assert {one["level"] for one in doctor["findings"] if one["about"] == "trial"} == {"ok"}

    world.says("coordinator", server, "release", "coordinator", "pilot", "--out=model")
    world.hand_over("model", "coordinator", "site")
    assert "active" in world.says("site", site, "install", "site", "model")

    results = _owned(world.folder / "results", UNNAMED)
    case = sorted((world.folder / "mri").iterdir())[0]
    volumes = {world.folder / "coordinator-state/model": "/model", case: "/case"}
    # As deploy/clinic/compose.yaml has it.
    done = world.images["clinic"].call(
        ["gliofed-clinic", "segment", "/case", "--model", "/model", "--out", "/results/result"],
        user=UNNAMED,
        home=False,
        volumes={**volumes, results: "/results"},
    )
    assert done.returncode == 0, done.stderr
    assert (results / "result/segmentation.nii.gz").is_file()
