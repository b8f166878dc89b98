import ast
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import StateError
from common.process import child_processes
from common.process.child_processes import (
    Child,
    Supervisor,
    repeating,
    script,
    stop_on_signals,
)
from common.process.loopback_tls import free_port
from tests import children

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


class Told:
    """What a supervisor said, and a tick that acts once a condition holds or gives up in time."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def __call__(self, name: str, event: str, detail: str) -> None:
        self.events.append((name, event, detail))

    def count(self, event: str) -> int:
        return sum(said == event for _, said, _ in self.events)


def run_until(supervisor: Supervisor, done: Callable[[], bool], *, limit_s: float = 20.0) -> None:
    until = time.monotonic() + limit_s

    def tick() -> None:
        if done() or time.monotonic() > until:
            supervisor.stop()

    supervisor.run(on_tick=tick)
    assert time.monotonic() <= until


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_processes, "_LONGEST_PAUSE_S", 0.2)


def test_a_killed_child_is_started_again_and_all_are_stopped(tmp_path: Path, quick: None) -> None:
    told = Told()
    children = [Child(name, SLEEP, tmp_path / f"{name}.log") for name in ("one", "two")]
    supervisor = Supervisor(children, told=told)
    seen: list[int] = []
    killed: list[int] = []

    def done() -> bool:
        pids = supervisor.pids
        seen.extend(pid for pid in pids.values() if pid not in seen)
        if not killed and len(pids) == 2:
            killed.append(pids["one"])
            os.kill(pids["one"], signal.SIGKILL)
        return len(pids) == 2 and len(seen) == 3

    run_until(supervisor, done)
    assert ("one", "ended", "killed by SIGKILL") in told.events
    assert told.count("started") == 3
    assert not any(alive(pid) for pid in seen)
    assert supervisor.pids == {}


def test_a_child_that_dies_at_once_is_given_longer_and_longer_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    starts: list[float] = []

    class Time:
        monotonic = staticmethod(lambda: clock[0])

    class Never(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            del timeout
            return super().wait(0.01)

    def told(name: str, event: str, detail: str) -> None:
        if event == "started":
            starts.append(clock[0])
        else:
            assert detail == "exit code 3"

    child = Child("bad", (sys.executable, "-S", "-c", "raise SystemExit(3)"), tmp_path / "log")
    supervisor = Supervisor([child], told=told)
    supervisor._stopping = Never()

    def tick() -> None:
        if supervisor.pids:
            return  # the clock stands still while the child lives
        clock[0] += 0.5
        if len(starts) == 6 or clock[0] > 200:
            supervisor.stop()

    with monkeypatch.context() as patch:
        patch.setattr(child_processes, "time", Time)
        supervisor.run(on_tick=tick)
    pauses = [round(b - a) for a, b in itertools.pairwise(starts)]
    # A child ends a moment after the clock was looked at, or before.
    assert all(later >= sooner - 1 for sooner, later in itertools.pairwise(pauses))
    assert pauses[0] <= 3
    assert pauses[-1] in {15, 16}


def test_output_and_environment(tmp_path: Path, quick: None) -> None:
    code = "import os; print(os.environ['COLOUR'], os.environ['FLWR_TELEMETRY_ENABLED'])"
    log = tmp_path / "deep" / "child.log"
    child = Child("child", (sys.executable, "-c", code), log, {"COLOUR": "red"})
    told = Told()
    run_until(Supervisor([child], told=told), lambda: told.count("ended") == 1)
    assert log.read_text().splitlines()[0] == "red 0"
    assert ("child", "ended", "exit code 0") in told.events


def test_a_child_that_fails_is_named_with_its_own_last_words(tmp_path: Path, quick: None) -> None:
    silent = "raise SystemExit(2)"
    speaking = "raise SystemExit('ERROR: The port is taken.')"
    children = []
    for name, code in {"silent": silent, "speaking": speaking}.items():
        log = tmp_path / f"{name}.log"
        log.write_text("What a process before it said.\n")
        children.append(Child(name, (sys.executable, "-S", "-c", code), log))
    told = Told()
    run_until(
        Supervisor(children, told=told),
        lambda: (
            {name for name, event, _ in told.events if event == "ended"} == {"silent", "speaking"}
        ),
    )
    assert ("silent", "ended", "exit code 2") in told.events
    assert ("speaking", "ended", "exit code 1: The port is taken.") in told.events


def test_a_child_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_processes, "_STOP_GRACE_S", 0.3)
    code = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"
    child = Child("deaf", (sys.executable, "-c", code), tmp_path / "log")
    supervisor = Supervisor([child], told=Told())
    pids: list[int] = []

    def done() -> bool:
        pids.extend(supervisor.pids.values())
        return (tmp_path / "log").exists() and "up" in (tmp_path / "log").read_text()

    run_until(supervisor, done)
    assert pids
    assert not alive(pids[-1])


PARENT = """
import sys
from pathlib import Path
from common.process.child_processes import Child, Supervisor, stop_on_signals
sleep = (sys.executable, "-c", "import time; time.sleep(60)")
children = [Child(n, sleep, Path(sys.argv[1]) / n) for n in ("one", "two")]
supervisor = Supervisor(children, told=lambda name, event, detail: print(event, detail, flush=True))
stop_on_signals(supervisor)
supervisor.run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a promise on Linux only")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_children_do_not_outlive_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    root = Path(child_processes.__file__).parents[2]
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with children.start(command, stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline().split()[1]) for _ in range(2)]
        assert all(alive(pid) for pid in pids)
        parent.send_signal(number)
        parent.wait(20)
    until = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in pids)
    assert (parent.returncode == 0) == (number != signal.SIGKILL)


def test_signals_stop_a_supervisor(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    supervisor = Supervisor([], told=Told())
    try:
        stop_on_signals(supervisor)
        os.kill(os.getpid(), signal.SIGTERM)
        supervisor.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_action_is_repeated_until_the_block_ends() -> None:
    calls: list[int] = []
    enough = threading.Event()

    def act() -> None:
        calls.append(1)
        if len(calls) == 3:
            enough.set()

    with repeating(act, every_s=0.01):
        assert enough.wait(10)
    count = len(calls)
    time.sleep(0.05)
    assert len(calls) == count


def test_a_script_is_found_beside_the_interpreter() -> None:
    python = Path(sys.executable).name
    assert script(python) == str(Path(sys.executable).parent / python)
    with pytest.raises(StateError, match="no-such-program is not installed"):
        script("no-such-program")


def test_a_free_port_is_free() -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


def test_a_child_that_ends_takes_along_those_that_hold_its_work(tmp_path: Path) -> None:
    told = Told()
    children = [
        Child("server", SLEEP, tmp_path / "server.log"),
        Child("worker", SLEEP, tmp_path / "worker.log", ends=("server",)),
        Child("other", SLEEP, tmp_path / "other.log"),
    ]
    supervisor = Supervisor(children, told=told)
    first: dict[str, int] = {}

    def done() -> bool:
        if not first and len(supervisor.pids) == 3:
            first.update(supervisor.pids)
            os.kill(first["worker"], signal.SIGKILL)
        again = supervisor.pids
        if not first or len(again) < 3:
            return False
        return again["worker"] != first["worker"] and again["server"] != first["server"]

    run_until(supervisor, done)
    started = [name for name, event, _ in told.events if event == "started"]
    assert sorted(started) == ["other", "server", "server", "worker", "worker"]


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


def test_a_file_that_appears_cuts_a_child_off_each_time(tmp_path: Path, quick: None) -> None:
    cut, told = tmp_path / "stopped", Told()
    child = Child("one", (sys.executable, "-c", DEAF), tmp_path / "one.log", cut_by=(cut,))
    supervisor = Supervisor([child], told=told)
    ticks = itertools.count()
    again: list[int] = []

    def done() -> bool:
        """Let it appear, go and appear again, a few looks after each start."""
        started = told.count("started")
        if next(ticks) % 3:
            return False
        if started == 1:
            cut.touch()
        elif started == 2 and cut.exists():
            cut.unlink()
        elif started == 2:
            again.append(1)
            cut.touch()
        return started == 3

    run_until(supervisor, done)
    ended = [detail for _, event, detail in told.events if event == "ended"]
    assert ended == ["killed by SIGKILL"] * 2
    assert again == [1]


def test_a_child_is_given_no_proxy_and_speaks_to_this_machine_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://anna:s3cret@proxy:3128")
    monkeypatch.setenv("http_proxy", "http://anna:s3cret@proxy:3128")
    program = "import os; print(sorted(os.environ.items()), flush=True); import time; time.sleep(9)"
    log = tmp_path / "one.log"
    child = Child("one", (sys.executable, "-c", program), log, {"all_proxy": "http://own:1"})
    supervisor = Supervisor([child], told=Told())
    run_until(supervisor, lambda: log.exists() and log.read_text().endswith("]\n"))
    said = dict(ast.literal_eval(log.read_text()))
    assert {name: said[name] for name in said if name.lower().endswith("_proxy")} == {
        "NO_PROXY": "127.0.0.1,localhost,::1",
        "no_proxy": "127.0.0.1,localhost,::1",
        "all_proxy": "http://own:1",
    }
