"""Keep a small set of child processes alive.

A *supervisor* starts each child, restarts it when it ends (waiting longer after each quick death)
and stops all of them, by pid, when it is told to stop. What it tells of a child that failed ends
with the child's last words. On Linux children also die with their parent, even when the parent is
killed with SIGKILL, so that nothing is left holding a port.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common.errors import StateError
from common.process.exit_reason import last_words
from common.process.proxies import without_proxies

FLOWER_ENVIRONMENT: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONUNBUFFERED": "1",
}
"""Nothing is fetched and nothing is told to anyone at run time."""

_QUICK_S = 10.0
_LONGEST_PAUSE_S = 15.0
_STOP_GRACE_S = 10.0


@dataclass(frozen=True)
class Child:
    """A command to keep running; its output goes to ``log``.

    ``ends`` names the children that are ended, and so started anew, whenever this one has ended:
    they hold what it left half done. When one of the files that it ``watches`` changes, the child
    is ended and started anew.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    ends: tuple[str, ...] = ()
    watches: tuple[Path, ...] = ()
    cut_by: tuple[Path, ...] = ()
    """When one of these appears, the child is killed at once, and started anew."""


class Supervisor:
    """Runs children until ``stop``; calls ``told(name, event, detail)`` at each start and end."""

    def __init__(self, children: Sequence[Child], *, told: Callable[[str, str, str], None]) -> None:
        self._children = children
        self._told = told
        self._stopping = threading.Event()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the children that run now."""
        return {name: child.pid for name, child in self._running.items() if child.poll() is None}

    def stop(self) -> None:
        """Ask ``run`` to end; safe to call from a signal handler."""
        self._stopping.set()

    def run(self, *, on_tick: Callable[[], None] | None = None) -> None:
        """Start the children and keep them alive until ``stop`` is called."""
        due = {child.name: 0.0 for child in self._children}
        pause = dict.fromkeys(due, 1.0)
        began: dict[str, float] = {}
        said: dict[str, int] = {}
        seen: dict[str, object] = {}
        there: dict[str, set[Path]] = {}
        renewed: set[str] = set()
        try:
            while not self._stopping.wait(0.2):
                now = time.monotonic()
                for child in self._children:
                    process = self._running.get(child.name)
                    if process is None and now >= due[child.name]:
                        said[child.name] = _length(child.log)
                        self._running[child.name] = _start(child)
                        began[child.name] = now
                        seen[child.name] = _stamps(child)
                        there[child.name] = _there(child)
                        self._told(child.name, "started", str(self._running[child.name].pid))
                    elif process is not None and process.poll() is not None:
                        quick = now - began[child.name] < _QUICK_S
                        pause[child.name] = (
                            min(_LONGEST_PAUSE_S, pause[child.name] * 2) if quick else 1.0
                        )
                        due[child.name] = now + pause[child.name]
                        if child.name in renewed:
                            renewed.discard(child.name)
                            due[child.name] = now
                        del self._running[child.name]
                        reason = _reason(process.returncode)
                        if process.returncode > 0 and _length(child.log) > said[child.name]:
                            reason += f": {last_words(child.log)}"
                        self._told(child.name, "ended", reason)
                        _end([self._running[name] for name in child.ends if name in self._running])
                    elif process is not None and _appeared(child, there[child.name]):
                        renewed.add(child.name)
                        process.kill()
                    elif process is not None and _stamps(child) != seen[child.name]:
                        renewed.add(child.name)
                        _end([process])
                if on_tick is not None:
                    on_tick()
        finally:
            self._stop_all()

    def _stop_all(self) -> None:
        _end(list(reversed(self._running.values())))


def stop_on_signals(supervisor: Supervisor) -> None:
    """Let SIGTERM and SIGINT end ``supervisor.run``."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())


@contextlib.contextmanager
def repeating(action: Callable[[], None], *, every_s: float) -> Iterator[None]:
    """Call ``action`` every ``every_s`` seconds from a thread of its own until the block ends."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every_s):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=30.0)


def script(name: str) -> str:
    """Return the path of a console script of this installation; raise StateError."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise StateError(
            f"The program {name} is not installed beside {sys.executable}.",
            do="Install gliofed with the extra for this role, such as gliofed[site].",
        )
    return str(path)


def _start(child: Child) -> subprocess.Popen[bytes]:
    child.log.parent.mkdir(parents=True, exist_ok=True)
    with child.log.open("ab") as log:
        return subprocess.Popen(
            list(child.command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**without_proxies(os.environ), **FLOWER_ENVIRONMENT, **child.environment},
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
            start_new_session=True,
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask the processes to end; kill those that take too long."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _STOP_GRACE_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline - time.monotonic()))
        if process.poll() is None:
            process.kill()
            process.wait()


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends; Linux only."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _stamps(child: Child) -> list[tuple[int, int]]:
    """Return what changes whenever a watched file is replaced; one that is away changes nothing."""
    found = []
    for path in child.watches:
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            found.append((about.st_mtime_ns, about.st_ino))
    return found


def _there(child: Child) -> set[Path]:
    return {path for path in child.cut_by if path.exists()}


def _appeared(child: Child, before: set[Path]) -> bool:
    """Return whether a file is there that was not ``before``, which is brought up to date."""
    now = _there(child)
    new = bool(now - before)
    before.clear()
    before.update(now)
    return new


def _length(log: Path) -> int:
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def _reason(returncode: int) -> str:
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"
