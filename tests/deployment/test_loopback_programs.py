"""Flower's own programs, as they are started here, serve none but their own side.

Fails when a new Flower opens another port, or serves in a way of its own.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from client.site.folder import Site
from common.process.child_processes import FLOWER_ENVIRONMENT
from common.process.loopback_tls import LoopbackAddress, free_port
from server.commands import supervisor as coordinators
from server.consortium.provisioning import Consortium
from tests import children
from tests.deployment.stack import until

_LISTEN = "0A"


@contextmanager
def started(command: list[str], home: Path) -> Iterator[int]:
    environment = {**os.environ, **FLOWER_ENVIRONMENT, "FLWR_HOME": str(home)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = children.start(command, env=environment, **quiet)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def listening(pid: int) -> set[str]:
    """Return the addresses, as the kernel writes them, at which a process listens."""
    held = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTEN and f"socket:[{words[9]}]" in held:
                found.add(words[1])
    return found


def superlink(site: Site, consortium: Consortium) -> tuple[list[str], LoopbackAddress, str]:
    """The coordinator's, with the calls that would register a key or take a task."""
    del site
    command = list(coordinators.children(consortium)[0].command)
    return command, consortium.hub, "/v1/control/list-nodes"


def supernode(site: Site, consortium: Consortium) -> tuple[list[str], LoopbackAddress, str]:
    """A site's, whose coordinator is away."""
    del consortium
    site.runtime.create()
    command = [
        *(sys.executable, "-m", "client.runtime.supernode", str(site.folder)),
        *("--superlink", f"127.0.0.1:{free_port()}"),
        *("--root-certificates", str(site.folder / "ca.crt")),
        *("--auth-supernode-private-key", str(site.folder / "keys" / "node.key")),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(site.superexec_secret)),
    ]
    return command, site.runtime.known(), "/v1/runtime/acquire-task"


@pytest.mark.parametrize("program", [superlink, supernode])
def test_a_program_of_flower_serves_its_own_side_alone(
    site: Site,
    consortium: Consortium,
    tmp_path: Path,
    program: Callable[[Site, Consortium], tuple[list[str], LoopbackAddress, str]],
) -> None:
    command, at, call = program(site, consortium)
    with started(command, tmp_path) as pid:
        own = httpx.Client(
            base_url=f"https://{at.address}", verify=at.client_context(), trust_env=False
        )

        def answered() -> bool:
            try:
                return own.post(call).status_code > 0
            except httpx.TransportError:
                return False

        with own:
            until(answered, timeout_s=60, what="an answer")
        stranger = ssl.create_default_context(cafile=str(at.certificate))
        with pytest.raises(httpx.TransportError):
            httpx.post(f"https://{at.address}{call}", verify=stranger, trust_env=False)
        assert listening(pid) == {f"0100007F:{at.port:04X}"}
