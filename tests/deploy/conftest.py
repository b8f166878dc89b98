"""A place without a network, for what is installed and run there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests import children
from tests.programs import needed


@pytest.fixture(scope="module")
def apart() -> Iterator[tuple[str, ...]]:
    """What to put before a command so that it has a loopback interface and no other."""
    keeper = children.start(
        [
            needed("unshare"),
            "--net",
            "sh",
            "-c",
            "ip link set lo up && echo up && exec sleep infinity",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"up\n"
        entry = (needed("nsenter"), f"--net=/proc/{keeper.pid}/ns/net")
        devices = children.run(
            [*entry, "ls", "/proc/self/net/dev_snmp6"], capture_output=True, text=True, check=True
        )
        assert devices.stdout.split() == ["lo"]
        yield entry
    finally:
        keeper.terminate()
        keeper.wait()
        if keeper.stdout is not None:
            keeper.stdout.close()
