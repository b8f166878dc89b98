"""Whether this machine can train and segment: one step of each, of noise, in a process of its own.

``python -m client.views.compute_check DIR`` imports what the worker and the clinic import, and
computes on the device that ``site.toml`` names. A library that cannot be imported or that ends its
process costs that process alone. No patient, no ledger and no network is touched.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.site.folder import Site
from common.doctor.findings import Finding, ok, problem
from common.errors import GliofedError
from common.process.child_processes import FLOWER_ENVIRONMENT

_IMPORTED: Final = ("client.worker", "client.clinic.segment", "client.privacy.accountant")
_PATIENCE_S: Final = 300.0
_SHAPE: Final = (16, 16, 16)


@dataclass(frozen=True)
class Trial:
    """How the process ended."""

    code: int | None
    """Its exit code, negative for a signal, None if it did not end in time."""
    last_line: str
    """Of what it wrote to standard error."""
    seconds: float


def try_out(folder: Path, *, patience_s: float = _PATIENCE_S) -> Trial:
    """Run the trial of the site in ``folder`` as the supervisor runs the worker."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "client.views.compute_check", str(folder)],
            env={**os.environ, **FLOWER_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=patience_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Trial(None, "", time.monotonic() - began)
    lines = done.stderr.strip().splitlines()
    return Trial(done.returncode, lines[-1] if lines else "", time.monotonic() - began)


def of_trial(found: Trial, folder: Path) -> Finding:
    """Judge how the trial of the site in ``folder`` ended."""
    if found.code == 0:
        return ok("trial", f"A step of training and a segmentation worked ({found.seconds:.0f} s).")
    told = "A step of training and a segmentation, tried on noise, "
    command = f"{sys.executable} -m client.views.compute_check {folder}"
    again = f"`{command}` repeats it and shows all it says."
    if found.code is None:
        return problem("trial", f"{told}did not end in {found.seconds:.0f} s.", again)
    if found.code < 0:
        name = signal.Signals(-found.code).name
        do = {
            "SIGILL": "Install a build of torch for this processor.",
            "SIGKILL": "The memory may be too small: stop other work, or raise its limit.",
        }.get(name, again)
        return problem("trial", f"{told}were killed by {name}.", do)
    if found.code == 1:  # no error of ours
        again += " Libraries come with `gliofed[site]` and `-c constraints.txt`, as deploy/ says."
    return problem(
        "trial", f"{told}failed, so no order can be carried out: {found.last_line}", again
    )


def run_trial(site: Site) -> None:
    """Train one step, and segment, on the device of ``site.toml``; raise whatever goes wrong."""
    for name in _IMPORTED:
        importlib.import_module(name)
    import numpy as np

    from client.networks.registry import build
    from client.privacy.dp_sgd import CountingCharge, train_privately
    from client.segmentation.prediction import predict
    from client.site.execution import execution_for
    from common.study.protocol import NetworkOptions, PrivacyOptions, TrainingOptions

    @dataclass(frozen=True)
    class Noise:
        image: np.typing.NDArray[np.float32]
        labels: np.typing.NDArray[np.uint8]

    numbers = np.random.default_rng(0)
    noise = Noise(
        numbers.normal(size=(4, *_SHAPE)).astype(np.float32),
        numbers.integers(4, size=_SHAPE, dtype=np.uint8),
    )
    network = build(NetworkOptions(size="tiny"), seed=0)
    execution = execution_for(site.settings.machine)
    train_privately(
        network,
        [[lambda: noise]],
        TrainingOptions(local_steps=1, crop_size=_SHAPE, learning_rate=1e-3),
        PrivacyOptions(sampling_rate=1.0, nominal_patients=1),
        CountingCharge(),
        execution=execution,
    )
    predict(network, noise.image, crop_size=_SHAPE, execution=execution)


if __name__ == "__main__":
    try:
        run_trial(Site.open(Path(sys.argv[1])))
    except GliofedError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001  the process's edge: whoever reads it wants one line
        traceback.print_exc()
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
