"""What ``gliofed-clinic segment`` takes of a person's time, from the shell's prompt to the result.

A phantom of 240 x 240 x 155 voxels of 1 mm, four sequences, as NIfTI files and as a DICOM study;
SegResNet of 4.7 million parameters, trained for a few minutes on phantoms so that masks mean
something. Each turn is a process of its own, as from a shell. The stages are those of
``result.json``; what it does not count is the start: the interpreter, imports, the model's files.
The files were written just before and lie in the system's cache: the disk is not measured.

The promise is about the NIfTI case and wall time on an idle machine; on a busy one the processor's
time says more, so both are shown. ``GLIOFED_BENCH_WEIGHTS`` names weights of an earlier run, to
save the training.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from client.cohort.case_discovery import read_case
from client.imaging.image_reading import read_image
from client.phantoms.cohort import write_cohort
from client.phantoms.profiles import PROFILES
from common.records.weights import Arrays
from server.release.release_folder import release
from tests import children, consortia
from tests.benchmarks.predicting import NETWORK, THREADS
from tests.benchmarks.prediction import SIDE, trained
from tests.benchmarks.result import Measuring, Result, line
from tests.scanners import SEQUENCES, write_series

MOST_S: Final = 15.0
"""For everything but the network's work."""

TURNS: Final = int(os.environ.get("GLIOFED_BENCH_TURNS", "3"))
SIZE: Final = 240
START: Final = "start"
STAGES: Final = (START, "load", "prepare", "predict", "measure", "write")


def measure(folder: Path) -> Measuring:
    """Return the median seconds of each stage, by the wall's clock and by the processor's."""
    torch.set_num_threads(THREADS)
    columns = ["input, clock", *STAGES, "all", "all but predict", "peak MB"]
    yield "a case, and the training of its network"
    write_cohort(folder / "patient", PROFILES["reference"], patients=1, size=SIZE, seed=1)
    nifti = min(path for path in (folder / "patient").iterdir() if path.is_dir())
    cases = {"NIfTI": nifti, "DICOM": as_dicom(nifti, folder / "study")}
    model = released(folder / "coordinator", folder / "release", trained(folder / "training"))
    rows: list[list[object]] = []
    facts: dict[str, Any] = {}
    for kind, case in cases.items():
        turns = []
        for turn in range(TURNS):
            turns.append(cold(case, folder / f"{kind}-{turn}", model))
            yield f"{kind}, turn {turn + 1}: {turns[-1]['stages']['all']['wall_s']:.1f} s in all"
        peak = max(turn["peak_bytes"] for turn in turns)
        for clock in ("wall_s", "cpu_s"):
            spent = {
                stage: statistics.median(turn["stages"][stage][clock] for turn in turns)
                for stage in (*STAGES, "all")
            }
            rest = statistics.median(
                turn["stages"]["all"][clock] - turn["stages"]["predict"][clock] for turn in turns
            )
            name = f"{kind}, {'wall' if clock == 'wall_s' else 'processor'}"
            rows.append([name, *spent.values(), rest, peak / 1e6])
            yield line(columns, rows[-1])
            facts.setdefault(kind, {"peak_bytes": peak})[clock] = {**spent, "but_predict": rest}
    most = facts["NIfTI"]["wall_s"]["but_predict"]
    return Result(
        title=f"A cold segment of 240 x 240 x 155 voxels, {THREADS} threads, seconds",
        columns=columns,
        rows=rows,
        promise=f"of NIfTI everything but predict at most {MOST_S:g} s, it takes {most:.1f}",
        holds=most <= MOST_S,
        facts=facts,
    )


def cold(case: Path, out: Path, model: Path) -> dict[str, Any]:
    """Segment ``case`` in a new process; return what that took."""
    command = [sys.executable, "-m", "client.commands.clinic", "segment", str(case)]
    command += ["--out", str(out), "--model", str(model), "--threads", str(THREADS)]
    done = children.run(
        [sys.executable, "-m", "tests.benchmarks.cold_run", *command],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    took = json.loads(done.stdout)
    if took["code"]:
        raise RuntimeError(f"segment ended with {took['code']}")
    counted = json.loads((out / "result.json").read_bytes())["stages"]
    return {"peak_bytes": took["peak_bytes"], "stages": _with_start(counted, took)}


def _with_start(
    counted: Mapping[str, Mapping[str, float]], took: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Return the stages with what nobody counted, which is the start (and the farewell)."""
    stages = {name: dict(spent) for name, spent in counted.items()}
    clocks = ("wall_s", "cpu_s")
    stages[START] = {c: took[c] - sum(spent[c] for spent in counted.values()) for c in clocks}
    stages["all"] = {c: took[c] for c in clocks}
    return stages


def released(coordinator: Path, out: Path, weights: Arrays) -> Path:
    """Return a release of ``weights`` as the model of a study's first round."""
    consortium = consortia.found(coordinator)
    protocol = consortia.publish(
        consortium,
        consortia.tiny_protocol(
            network=NETWORK.model_dump(),
            preprocessing={"spacing_mm": 1.0},
            training={"crop_size": [SIDE, SIDE, SIDE]},
        ),
    )
    digest = consortium.study(protocol.study).save(1, weights)
    consortium.journal.append(
        "round closed",
        study=protocol.study,
        round=1,
        weights=digest,
        state="",
        took_part=[],
        dropped={},
        privacy_spent={},
        seconds=0.0,
    )
    release(consortium, protocol.study, out)
    return out


def as_dicom(nifti: Path, folder: Path) -> Path:
    """Write a case's four sequences as a scanner would, one file a slice."""
    images = {name: read_image(one) for name, one in read_case(nifti).images.items()}
    for number, (name, description, times) in SEQUENCES.items():
        image = images[name]
        data = np.rint(image.data).astype(np.int16)
        write_series(
            folder / f"{number}", number, description, data=data, affine=image.affine, **times
        )
    return folder
