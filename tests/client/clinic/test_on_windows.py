"""A clinic's commands on Windows, as far as Linux can be like it (``tests.windows``)."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import grimp
import httpx
import pydicom
import pytest

from client.clinic.result_schema import read_result
from client.imaging.nifti import read_volume
from client.review.versions import Versions
from tests import children
from tests.client.clinic.pacs.test_dimse import archive, kept
from tests.consortia import World
from tests.scanners import write_study, zipped
from tests.windows import OS_POSIX_ONLY, allowed_name

ROOT = Path(__file__).parents[3]
CONSOLE = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0", "USERNAME": "clinician"}
"""What a console says of itself in western Europe, and who Windows says is there."""


@contextlib.contextmanager
def started(*commands: list[Any]) -> Iterator[subprocess.Popen[str]]:
    """Run commands in a process like one on Windows, where text has the console's code page."""
    asked = [json.dumps(list(map(str, command))) for command in commands]
    with children.start(
        [sys.executable, "-X", "warn_default_encoding", "-m", "tests.windows", *asked],
        env={**os.environ, **CONSOLE, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="cp1252",
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said_until(process: subprocess.Popen[str], pattern: str) -> tuple[str, re.Match[str]]:
    """Return what the process says up to the first line that holds ``pattern``, and the match."""
    said = ""
    for line in process.stdout or ():
        said += line
        if found := re.search(pattern, line):
            return said, found
    raise AssertionError(said)


def test_a_study_is_segmented_sent_verified_and_reviewed(
    world: World, cohort: Path, tmp_path: Path
) -> None:
    case = min(path for path in cohort.iterdir() if path.is_dir())
    home = tmp_path / "Őr ∑"  # no letter of that code page
    study = zipped(write_study(home / "study"), home / "study.zip")
    plain, out = home / "plain", home / "result"
    model = ("--model", world.release)
    arrived: dict[str, Any] = {}
    with (
        archive(kept(arrived)) as pacs,
        started(
            ["client.commands.clinic", "segment", case, "--out", plain, *model],
            [
                "client.commands.clinic",
                "segment",
                case,
                "--out",
                home / "none",
                "--site",
                world.site.folder,
            ],
            ["client.commands.clinic", "segment", study, "--out", out, *model],
            ["client.commands.clinic", "send", out, "--pacs", pacs],
            ["client.commands.clinic", "verify", out, "--case", study, *model, "--recompute"],
            ["client.commands.clinic", "review", out, "--case", study, "--no-browser"],
        ) as process,
    ):
        for sentence, code in (
            (f"Written to {tmp_path}/\\u0150r \\u2211/plain: report.html", 0),
            ("A site's folder needs a POSIX system", 10),
            ("document.dcm, result.json.", 0),
            ("Stored 4 objects", 0),
            ("All that could be checked holds.", 0),
        ):
            said, ended = said_until(process, r"^== exit (\d+)")
            assert (sentence in " ".join(said.split()), int(ended[1])) == (True, code), said
        _, link = said_until(process, r"(http://127\.0\.0\.1:\d+)/login\?token=([\w-]{43})")
        with httpx.Client(base_url=link[1], timeout=60) as page:
            page.post("/login", data={"token": link[2]})
            page.headers["x-csrf"] = re.findall(r'csrf" content="(.*?)"', page.get("/").text)[0]
            script = page.get("/review/review.js")
            seen = page.get("/state").json()["sha256"]
            words = {"reviewer": "Dr. Őr", "comment": "∑", "decision": "accepted", "seen": seen}
            assert page.post("/decision", json=words).status_code == 200
        assert script.headers["content-type"].startswith("text/javascript")
        process.send_signal(signal.SIGINT)  # Ctrl+C
        assert int(said_until(process, r"^== exit (\d+)")[1][1]) == 130
    assert read_volume(plain / "segmentation.nii.gz", empty_ok=True).data.any()
    assert set(arrived) == set(read_result(out, do="", code="").dicom.values())
    assert Versions(out / "reviews").numbers == [1]
    review = pydicom.dcmread(out / "reviews" / "0001" / "segmentation.dcm")
    assert review.ContentCreatorName == "Dr. Őr"
    assert not [path for path in home.rglob("*") if not allowed_name(path.name)]


def test_a_site_and_a_coordinator_say_that_they_need_posix() -> None:
    with started(
        ["client.commands.site", "status", "north"], ["server.commands.coordinator", "--help"]
    ) as process:
        for program in ("gliofed-site", "gliofed-server"):
            said, ended = said_until(process, r"^== exit (\d+)")
            assert (int(ended[1]), "Traceback" in said) == (10, False), said
            assert f"{program} needs a POSIX system such as Linux" in said
            assert "On Windows itself only gliofed-clinic runs" in " ".join(said.split())


@cache
def clinic() -> dict[str, ast.Module]:
    """Return what is written in every module of ours that the clinic's command may load."""
    graph = grimp.build_graph("client", "common", cache_dir=None)
    found: dict[str, ast.Module] = {}
    waiting = {"client.commands.clinic"}
    while waiting:
        module = waiting.pop()
        path = ROOT.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        found[module] = ast.parse(path.read_text(encoding="utf-8"))
        package = module.rpartition(".")[0]
        needed = graph.find_modules_directly_imported_by(module) | ({package} - {""})
        waiting |= needed - found.keys()
    return found


def test_no_module_of_the_clinic_calls_what_windows_lacks() -> None:
    assert {(module, name) for module, tree in clinic().items() for name in lacked(tree)} == set()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("os.getuid()", ["os.getuid"]),
        ("0 if sys.platform == 'win32' else os.getuid()", []),
        ("if POSIX:\n    signal.alarm(1)", []),
        ("if old:\n    os.replace(a, b)\n    os.sync()", ["os.sync"]),
    ],
)
def test_what_windows_lacks_is_seen(text: str, names: list[str]) -> None:
    assert lacked(ast.parse(text)) == names


def lacked(node: ast.AST) -> list[str]:
    """Return what a program calls that Windows lacks, but where it asks for the system before."""
    if isinstance(node, ast.If | ast.IfExp) and re.search("platform|POSIX", ast.unparse(node.test)):
        return []
    found = [name for child in ast.iter_child_nodes(node) for name in lacked(child)]
    if (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("os", "signal", "socket")
        and node.attr in OS_POSIX_ONLY
    ):
        found.append(f"{node.value.id}.{node.attr}")
    return found


def test_every_text_file_of_the_clinic_names_its_encoding() -> None:
    found = [
        (module, node.lineno)
        for module, tree in clinic().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _as_text(node)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("call", "unnamed"),
    [
        ("path.read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.write_text(text)", True),
        ("path.open()", True),
        ("path.open('w')", True),
        ("path.open('rb')", False),
        ("open(path, 'a')", True),
        ("archive.open(name)", False),
    ],
)
def test_a_text_file_without_an_encoding_is_seen(call: str, unnamed: bool) -> None:
    (statement,) = ast.parse(call).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    assert _as_text(statement.value) == unnamed


def _as_text(call: ast.Call) -> bool:
    """Return whether a call opens a file as text and does not say in which encoding."""
    if any(word.arg == "encoding" for word in call.keywords):
        return False
    if isinstance(call.func, ast.Name):
        return call.func.id == "open" and not _binary(call.args[1:])
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if name == "open":
        return not call.args or (_mode(call.args[0]) is not None and not _binary(call.args))
    return name in ("read_text", "write_text")


def _binary(modes: list[ast.expr]) -> bool:
    return bool(modes) and "b" in (_mode(modes[0]) or "")


def _mode(value: ast.expr) -> str | None:
    """Return a constant that ``open`` takes as its mode, None for anything else."""
    if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
        return None
    return value.value if set(value.value) <= set("rwaxbt+") else None
