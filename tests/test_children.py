"""Nothing that a test or a benchmark started outlives it, however it ended."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import children

ROOT = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="a promise on Linux only")

SUPERVISOR = """
import sys
from pathlib import Path
from common.process.child_processes import Child, Supervisor
sleep = (sys.executable, "-S", "-c", "import os, time; print(os.getpid()); time.sleep(60)")
child = Child("child", sleep, Path(sys.argv[1]) / "child.log")
def told(name, event, detail):
    if event == "started":
        Path(sys.argv[1], "supervised").write_text(detail)
Supervisor([child], told=told).run()
"""
"""A process of ours: its child is in a session of its own, and dies with it."""

SHELL = 'sleep 60 & echo "$!" > "$1/background"; echo "$$" > "$1/shell"; sleep 60; true'
"""A shell knows nothing of that."""

BY_START = """
import sys
from tests import children
children.start([sys.executable, "-c", {supervisor!r}, sys.argv[1]]).wait()
"""
BY_RUN = """
import sys
from tests import children
children.run(["bash", "-c", {shell!r}, "bash", sys.argv[1]])
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def below(pid: int) -> Iterator[int]:
    """Yield the process ids of everything that a process has started, directly or not."""
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, listed.read_text().split()):
            yield child
            yield from below(child)


def soon(holds: object, *, for_s: float = 20.0) -> bool:
    until = time.monotonic() + for_s
    while not holds():  # type: ignore[operator]
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@LINUX
@pytest.mark.parametrize(
    ("script", "files"),
    [
        (BY_START.format(supervisor=SUPERVISOR), {"supervised"}),
        (BY_RUN.format(shell=SHELL), {"background", "shell"}),
    ],
    ids=["a supervisor and its child", "a shell and its commands"],
)
def test_all_that_was_started_ends_with_a_python_that_is_killed(
    tmp_path: Path, script: str, files: set[str]
) -> None:
    with children.start([sys.executable, "-c", script, tmp_path], cwd=ROOT) as python:
        assert soon(
            lambda: all((tmp_path / f).exists() and (tmp_path / f).read_text() for f in files)
        )
        pids = set(below(python.pid))
        assert {int((tmp_path / name).read_text()) for name in files} < pids
        assert all(map(alive, pids))
        python.kill()
    assert soon(lambda: not any(map(alive, pids))), [pid for pid in pids if alive(pid)]


@LINUX
def test_what_takes_too_long_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        children.run(["bash", "-c", SHELL, "bash", tmp_path], timeout=1.0)
    pids = [int((tmp_path / name).read_text()) for name in ("background", "shell")]
    assert soon(lambda: not any(map(alive, pids)))


def test_a_program_is_run_as_subprocess_does_it(tmp_path: Path) -> None:
    words = [sys.executable, "-S", "-c", "import sys; print(*sys.argv[1:]); sys.exit(3)", tmp_path]
    done = children.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{tmp_path}\n", "")
    with pytest.raises(subprocess.CalledProcessError):
        children.run(words, check=True, stdout=subprocess.DEVNULL)
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert children.run([sys.executable, "-S", "-c", killed]).returncode == 128 + signal.SIGKILL


STARTERS = {
    ("subprocess", "Popen"),
    ("os", "popen"),
    ("os", "system"),
    ("multiprocessing", "Process"),
}
"""What starts a process that may outlive a Python that is killed."""

FINITE = {("subprocess", name) for name in ("run", "call", "check_call", "check_output")}
"""What waits for the end of a process: forbidden where that takes minutes."""

LONG = ("benchmarks", "deployment", "deploy", "guides.py")


def test_every_process_of_a_test_is_started_by_children() -> None:
    """So that none of them can be left behind; see the head of ``tests/children.py``."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        name = path.relative_to(ROOT / "tests")
        forbidden = STARTERS | (FINITE if name.parts[0] in LONG else set())
        if name == Path("children.py"):
            continue
        found += [
            f"tests/{name}:{node.lineno} calls {'.'.join(called)}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and (called := dotted(node.func)) in forbidden
        ]
    assert found == [], "use tests.children.start or run, so that it ends with its test"


def dotted(node: ast.expr) -> tuple[str, str] | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id, node.attr
    return None


def test_workers_of_the_test_suite_end_with_it() -> None:
    """pytest-xdist's workers are told so in ``tests/conftest.py``."""
    if "PYTEST_XDIST_WORKER" not in os.environ or sys.platform != "linux":
        pytest.skip("not a worker of pytest-xdist")
    import ctypes

    signal_number = ctypes.c_int()
    pr_get_pdeathsig = 2
    ctypes.CDLL(None).prctl(pr_get_pdeathsig, ctypes.byref(signal_number))
    assert signal_number.value == signal.SIGKILL
