"""demo.sh with programs that only write down how they were called: order, waiting, ending.

The demo itself, with real programs, is ``test_demo``.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import children

DEMO = Path(__file__).parents[2] / "deploy" / "demo" / "demo.sh"
SITES = ("hospital-a", "hospital-b", "hospital-c")

PROGRAM = """#!/bin/bash
echo "$(basename "$0") $*" >>"$CALLS/calls"
case "$1" in
serve | run) echo $$ >>"$CALLS/pids" ;;&
run) mkdir -p "$2/studies/demo"; touch "$2/studies/demo/protocol.json" ;;&
serve | run | $HANGS) echo $$ >>"$CALLS/pids"; exec sleep 60 ;;
$FAILS) echo "Error: it broke"; exit 7 ;;
esac
"""
PYTHON = """#!/bin/bash
case "$2" in
parts) printf "%s\\n" $TRAINERS >trainers.txt; printf "%s\\n" $SCORERS >scorers.txt
    echo "hospital-a $KIND /a folder/of one patient" >clinic.txt ;;
table) echo "the table: $*" ;;
*) echo 1234 ;;
esac
"""


class Stage(NamedTuple):
    folder: Path
    environment: dict[str, str]

    def begin(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return children.start(
            ["/bin/bash", DEMO, self.folder / "demo", *map(str, arguments)],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def play(self, *arguments: object, **environment: str) -> tuple[int, str]:
        with self.begin(*arguments, **environment) as process:
            out = process.communicate(timeout=60)[0]
        return process.returncode, out

    def calls(self, word: str) -> list[str]:
        path = self.folder / "calls"
        called = path.read_text().splitlines() if path.exists() else []
        return [line for line in called if f" {word} " in f"{line} "]

    def pids(self) -> set[int]:
        path = self.folder / "pids"
        return set(map(int, path.read_text().split())) if path.exists() else set()

    def running(self) -> set[int]:
        return {pid for pid in self.pids() if alive(pid)}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # what nobody has waited for yet has ended all the same
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def within(seconds: float, what: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.05)
    return what()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("gliofed-server", "gliofed-site", "gliofed-clinic", "python"):
        (programs / name).write_text(PYTHON if name == "python" else PROGRAM)
        (programs / name).chmod(0o755)
    known = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "CALLS": str(tmp_path),
        "HANGS": "nothing",
        "FAILS": "nothing",
        "TRAINERS": " ".join(SITES),
        "SCORERS": " ".join(SITES),
        "KIND": "test",
    }
    made = Stage(tmp_path, known)
    yield made
    for pid in made.running():
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("environment", "alone", "weights"),
    [
        ({}, 3, 5),
        ({"DEMO_FULL": "1"}, 6, 8),
        ({"TRAINERS": "hospital-a hospital-c"}, 2, 4),
        ({"SCORERS": "hospital-b"}, 3, 5),
        ({"SCORERS": ""}, 3, 0),
    ],
)
def test_what_is_compared(
    stage: Stage, environment: dict[str, str], alone: int, weights: int
) -> None:
    code, out = stage.play(**environment)
    assert code == 0, out
    assert len(stage.calls("train-alone")) == alone
    assert bool(stage.calls("--no-private")) is ("DEMO_FULL" in environment)
    scored = stage.calls("evaluate")
    scorers = environment.get("SCORERS", " ".join(SITES)).split()
    assert sorted(one.split()[2] for one in scored) == scorers
    assert {one.count("--weights") for one in scored} == ({weights} if weights else set())
    ways = "private no-private" if "DEMO_FULL" in environment else "private"
    assert f"summary.py table {ways}" in out
    assert [int(n) for n in re.findall(r"^--- Step (\d) took \d+ s;", out, re.M)] == [*range(1, 8)]
    assert re.search(r"about \d+ minutes from here with \d+ cores", out)
    assert within(5, lambda: not stage.running())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("test", "a patient whom no hospital trained on"),
        ("validation", "none is held out"),
        ("train", "TRAINED ON"),
    ],
)
def test_the_patient_who_is_segmented_is_called_what_they_are(
    stage: Stage, kind: str, said: str
) -> None:
    _, out = stage.play(KIND=kind)
    assert said in re.search(r"=== 6\..*", out)[0]  # type: ignore[index]
    assert stage.calls("segment")[0].split(" --out")[0].endswith("/a folder/of one patient")


@pytest.mark.parametrize("command", ["phantoms", "approve", "train-alone", "launch", "evaluate"])
def test_a_command_that_fails_ends_the_demo_and_is_heard(stage: Stage, command: str) -> None:
    code, out = stage.play(FAILS=command)
    assert code == 7, out
    assert command == "evaluate" or "Error: it broke" in out
    assert within(5, lambda: not stage.running())


def test_one_hospital_for_each_folder(stage: Stage, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "README").touch()
    code, out = stage.play(data)
    assert (code, out.strip()) == (1, f"{data} has no subfolder: make one for each hospital.")
    for name in ("north", "south"):
        (data / name).mkdir()
    code, out = stage.play(data, TRAINERS="north south", SCORERS="")
    assert code == 0, out
    assert "2 hospitals, one for each folder" in out
    assert not stage.calls("phantoms")
    assert len(stage.calls("request")) == 2


def test_all_cores_are_counted_whatever_the_environment_says_of_threads(stage: Stage) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("macOS has no such call")
    cores = len(os.sched_getaffinity(0))
    _, out = stage.play(OMP_NUM_THREADS="1", OMP_THREAD_LIMIT="1", FAILS="init")
    assert re.search(rf"with {cores} cores", out), out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("command", ["phantoms", "launch"])
def test_what_the_demo_started_ends_with_it(
    stage: Stage, command: str, number: signal.Signals
) -> None:
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent was killed")
    expected = {"phantoms": 3, "launch": 5}[command]
    with stage.begin(HANGS=command) as process:
        assert within(30, lambda: len(stage.pids()) >= expected)
        assert len(stage.running()) >= expected
        process.send_signal(number)
        assert within(20, lambda: not stage.running())
        process.kill()
