"""A wheelhouse for the tests that install from one: made by the guide's own block."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from tests import children
from tests.guides import ROOT, commands, story
from tests.programs import needed

BARE = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PYTHONPATH": ""}
"""An environment in which pip and Python know nothing of this machine."""


def fill(folder: Path, *, alone: bool = False) -> Path:
    """Return ``folder``/wheelhouse; GLIOFED_WHEELHOUSE names one that was made before.

    Its wheel of gliofed is made anew in any case, and is there ``alone`` if that is asked.
    """
    source = folder / "source"
    files = children.run(
        [needed("git"), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, files.split("\0")):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    made = os.environ.get("GLIOFED_WHEELHOUSE")
    if made is None and not alone:
        (block,) = (b for b in commands() if "make wheelhouse" in b.text)
        with story(source, Path(sys.executable).parent) as reader:
            reader.tell([block])
        shutil.move(source / "wheelhouse", folder / "wheelhouse")
        return folder / "wheelhouse"
    house = folder / "wheelhouse"
    if alone or made is None:
        house.mkdir()
    else:
        shutil.copytree(made, house, copy_function=os.link)
    for old in (*house.glob("gliofed-*.whl"), house / "SHA256SUMS", house / "constraints.txt"):
        old.unlink(missing_ok=True)
    children.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", house, source], check=True
    )
    shutil.copyfile(source / "deploy" / "constraints.txt", house / "constraints.txt")
    held = sorted([*house.glob("*.whl"), house / "constraints.txt"])
    sums = (f"{hashlib.sha256(one.read_bytes()).hexdigest()}  {one.name}\n" for one in held)
    (house / "SHA256SUMS").write_text("".join(sums))
    return house
