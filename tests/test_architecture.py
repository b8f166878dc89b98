import subprocess
import sys
from pathlib import Path

from common.processes import script

ROOT = Path(__file__).parents[1]


def test_the_import_contracts_are_kept() -> None:
    command = [script("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_coordinator_loads_no_torch() -> None:
    code = (
        "import sys, server.cli, server.executor, server.gateway\n"
        "raise SystemExit(bool({'torch', 'monai', 'opacus', 'client'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
