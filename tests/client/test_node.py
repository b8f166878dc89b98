from __future__ import annotations

import subprocess
import sys

import pytest

# A SuperNode whose loop ends in one of the ways it can while its server thread goes on.
PROGRAM = """
import threading, time
import client.node as node

def flower_supernode():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {ending}

node.flower_supernode = flower_supernode
node.main()
"""


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("return", 1, ""),
        ("raise SystemExit(0)", 0, ""),
        ("raise SystemExit(7)", 7, ""),
        ("raise SystemExit", 1, ""),
        ("raise RuntimeError('the link is gone')", 1, "the link is gone"),
    ],
)
def test_nothing_of_a_supernode_outlives_its_loop(ending: str, code: int, said: str) -> None:
    program = PROGRAM.format(ending=ending)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert said in done.stderr
