import subprocess
import sys
from pathlib import Path

from common.processes import script

ROOT = Path(__file__).parents[1]


def test_the_import_contracts_are_kept() -> None:
    command = [script("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


HEAVY = {"torch", "monai", "opacus"}


def test_the_coordinator_loads_no_torch() -> None:
    assert not loaded("server.cli, server.executor, server.gateway") & {*HEAVY, "client"}


def test_a_sites_commands_load_what_they_need_alone() -> None:
    """A person who asks for help or gives a decision waits for no network to be imported."""
    assert not loaded("client.cli, client.clinic") & HEAVY


def loaded(modules: str) -> set[str]:
    """Return the names of what a fresh Python has in memory once it imported ``modules``."""
    code = f"import sys, {modules}\nprint(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())
