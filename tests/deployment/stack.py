"""A consortium of real processes on loopback, for tests and benchmarks.

Coordinator and sites live below one folder. Sites are enrolled, studies published and approved in
this process, as the commands do it: each command would start a Python. All others are the installed
console scripts; the long-running ones are supervisors, which are ended by their process ids
together with what they keep alive. Nothing is found or ended by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.phantoms.cohort import write_cohort
from client.phantoms.profiles import PROFILES
from client.site.folder import Site
from client.study.round_training import starting_weights
from common.process.loopback_tls import free_port
from common.records.journal import Journal
from common.records.weights import save
from common.study.protocol import read_protocol
from server.consortium import provisioning
from server.consortium.provisioning import Consortium
from tests import children, consortia

_SCRIPTS = Path(sys.executable).parent
_ENVIRONMENT = {
    **os.environ,
    "PYTHONUNBUFFERED": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
}

PROTOCOL = """\
study = "{study}"
title = "A test"
expires = 2099-12-31
rounds = {rounds}
evaluate_every = {rounds}
[network]
size = "tiny"
[preprocessing]
spacing_mm = 6.0
[training]
local_steps = {local_steps}
learning_rate = 0.001
crop_size = [16, 16, 16]
[aggregation]
quorum = {quorum}
deadline_s = 240
[privacy]
max_epsilon = 10
"""


@dataclass
class Stack:
    """The folders of a consortium and the supervisors that run now."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    """What hospitals call, with ``host``."""
    listen: str = ""
    """Where the gateway listens, if not there."""
    entries: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Words before the command of a supervisor, by its name: to start it in another namespace."""
    coordinator: Path = field(init=False)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.coordinator = self.folder / "coordinator"
        self.call("gliofed-server", "init", self.coordinator, "--name", "Test")

    def call(self, script: str, *arguments: object) -> str:
        """Run a command to its end and return its standard output; raise if it fails."""
        words = [str(word) for word in arguments]
        if words[0] == "init":
            words += ["--host", self.host, "--port", str(self.port), "--listen", self.listen]
        done = children.run(
            [str(_SCRIPTS / script), *words],
            env=_ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{script} {words}: {done.stdout}{done.stderr}")
        return done.stdout

    def site(self, name: str) -> Path:
        return self.folder / name

    def enrol(self, name: str, *, seed: int, patients: int = 6, size: int = 32) -> None:
        """Make a hospital with phantom patients, admit it and let it join."""
        data = self.folder / f"data-{name}"
        write_cohort(data, PROFILES["reference"], patients=patients, size=size, seed=seed)
        site = consortia.enrol(self.consortium, self.site(name), name=name, data=data)
        consortia.edit(site, "threads = 0", "threads = 1")  # they share this machine's cores

    def publish(
        self, study: str, *, text: str = PROTOCOL, given: bool = False, **values: object
    ) -> None:
        """Publish a study; with ``given`` its starting weights are given, and those of its seed."""
        protocol = self.folder / f"{study}.toml"
        protocol.write_text(text.format(study=study, **{"quorum": 2, **values}))
        initial = None
        if given:
            initial = self.folder / f"{study}.safetensors"
            save(initial, starting_weights(read_protocol(protocol)), {})
        provisioning.publish(self.consortium, protocol, initial=initial)

    def start(
        self,
        name: str,
        *,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the coordinator (``server``) or a site in the background, or ``command`` for it."""
        script, verb, folder = (
            ("gliofed-server", "serve", self.coordinator)
            if name == "server"
            else ("gliofed-site", "run", self.site(name))
        )
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = children.start(
                [
                    *self.entries.get(name, ()),
                    *(command or [str(_SCRIPTS / script), verb, str(folder)]),
                ],
                env={**_ENVIRONMENT, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill_supervisor(self, name: str) -> None:
        """Kill a supervisor without a warning."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def end_supervisor(self, name: str) -> None:
        """Ask a supervisor to end, as a person would, and wait for it."""
        process = self._running.pop(name)
        process.terminate()
        process.wait(timeout=30)

    def child(self, name: str, child: str) -> int:
        """Return the process id of what the supervisor ``name`` last started as ``child``."""
        words = (self.folder / f"{name}.log").read_text()
        return int(re.findall(rf"^{child} started \((\d+)\)", words, re.MULTILINE)[-1])

    def children(self) -> set[int]:
        """Return the process ids of everything that any supervisor ever started."""
        logs = [path.read_text() for path in self.folder.glob("*.log")]
        return {int(pid) for text in logs for pid in re.findall(r" started \((\d+)\)", text)}

    def stop(self) -> None:
        """End every supervisor by SIGTERM and wait for it; raise if one does not end."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    @property
    def consortium(self) -> Consortium:
        return Consortium.open(self.coordinator)

    def opened(self, name: str) -> Site:
        return Site.open(self.site(name))

    @property
    def journal(self) -> Journal:
        return self.consortium.journal

    def report(self, study: str) -> dict[str, Any]:
        answer = self.call("gliofed-server", "status", self.coordinator, study, "--json")
        found: dict[str, Any] = json.loads(answer)["studies"][0]
        return found

    def wait_for_offer(self, study: str, *names: str, timeout_s: float = 180.0) -> None:
        paths = [self.site(name) / "studies" / study / "protocol.json" for name in names]
        until(lambda: all(path.exists() for path in paths), timeout_s=timeout_s, what="offer")

    def approve(self, study: str, *names: str) -> None:
        for name in names:
            self.opened(name).decide(study, "approve", by="Dr Test")


def until(
    holds: Callable[[], object], *, timeout_s: float, what: str, every_s: float = 0.05
) -> None:
    """Wait until ``holds``; raise TimeoutError naming ``what``."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(every_s)


def alive(pid: int) -> bool:
    """Return whether a process runs; one that ended and was not waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@contextlib.contextmanager
def running_stack(folder: Path, **settings: Any) -> Iterator[Stack]:
    """Yield a stack; end all its processes in the end, and fail if one of them is left."""
    stack = Stack(folder, **settings)
    try:
        yield stack
    finally:
        stack.stop()
        left = {pid for pid in stack.children() if alive(pid)}
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if left:
            raise RuntimeError(f"Left running after their supervisor: {sorted(left)}")
