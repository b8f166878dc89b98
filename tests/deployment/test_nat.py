"""A coordinator behind NAT: hospitals call port 443 of one address, the gateway has 9443 inside.

Three network namespaces (``wires``): the hospital, the box that translates, the coordinator. The
hospital knows the box alone, and so does the coordinator. It takes minutes of real processes, so
that it is run with the slow tests; what it rests on is in
tests/server/consortium/test_listen_address.py and test_gateway.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import children
from tests.deployment.stack import Stack, running_stack, until
from tests.deployment.test_faults import TABLE, write_row
from tests.deployment.trial import NORTH
from tests.deployment.wires import HUB, Wires, laid, needed_here
from tests.programs import needed

pytestmark = pytest.mark.slow
INSIDE = "10.77.2.1"
"""The coordinator's own address, which no hospital knows."""

RULES = f"""
table ip nat {{
    chain in {{
        type nat hook prerouting priority dstnat
        ip daddr {HUB} tcp dport 443 dnat to {INSIDE}:9443
    }}
    chain out {{
        type nat hook postrouting priority srcnat
        snat to {HUB}
    }}
}}
"""


@pytest.fixture
def box() -> Iterator[Wires]:
    needed_here()
    program = needed("nft")
    with laid([NORTH, "coordinator"]) as wires:
        here = wires.entry("server")
        forward = ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]
        children.run([*here, *forward], check=True)
        children.run([*here, program, "-f", "-"], input=RULES, text=True, check=True)
        yield wires


@pytest.fixture
def stack(box: Wires, tmp_path: Path) -> Iterator[Stack]:
    entries = {"server": box.entry("coordinator"), NORTH: box.entry(NORTH)}
    with running_stack(
        tmp_path, host=HUB, port=443, listen=f"{INSIDE}:9443", entries=entries
    ) as stack:
        stack.enrol(NORTH, seed=1, size=24)
        yield stack


def behind(stack: Stack, command: str) -> tuple[int, str]:
    """Run a command of the coordinator's on its own machine; return how it ended, and its words."""
    program = str(Path(sys.executable).parent / "gliofed-server")
    words = [*stack.entries["server"], program, command, str(stack.coordinator)]
    done = children.run(words, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_round_is_done_through_nat_and_another_port(stack: Stack) -> None:
    study = "pilot"
    began = time.monotonic()
    stack.start("server")
    stack.start(NORTH)
    stack.publish(study, rounds=1, local_steps=2, quorum=1)
    stack.wait_for_offer(study, NORTH, timeout_s=150)
    stack.approve(study, NORTH)
    stack.call("gliofed-server", "launch", stack.coordinator, study, "--no-wait")
    until(lambda: stack.journal.events("study finished"), timeout_s=240, what="end of the study")
    (closed,) = stack.journal.events("round closed")
    assert closed.facts["took_part"] == [NORTH]
    for command in ("health", "doctor"):
        code, told = behind(stack, command)
        assert code == 0, told
    if TABLE:
        row = ["NAT: port 443 outside, 9443 inside", "always", "round 1 closed; finished"]
        write_row(Path(TABLE), [*row, f"{time.monotonic() - began:.0f}"])
