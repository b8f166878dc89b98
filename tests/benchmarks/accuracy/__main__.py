"""Do the runs that are not done yet, then write the table and the curves.

It says beforehand about how long that takes, as the runs did that are done.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from common import console
from common.process.child_processes import die_with_parent
from tests.benchmarks.accuracy import table
from tests.benchmarks.accuracy.cohorts import hospitals
from tests.benchmarks.accuracy.plan import RUNS
from tests.benchmarks.accuracy.runs import RESULTS, done, path_of
from tests.benchmarks.federation import data_folder


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.accuracy", description=__doc__
    )
    parser.add_argument("--hours", type=float, default=6.0, help="begin no run after that")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--only", default="", help="runs whose name begins so")
    parser.add_argument("--work", type=Path, default=Path(".bench/accuracy"))
    chosen = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    skipped = () if data_folder() else ("folder",)
    wanted = [run for run in RUNS if run.key.startswith(chosen.only) and run.cohort not in skipped]
    # First seeds first: a row with one seed is worth more than another with three.
    due = [
        (run, seed)
        for place in range(max((len(run.seeds) for run in wanted), default=0))
        for run in wanted
        for seed in run.seeds[place : place + 1]
        if not path_of(run, seed).exists()
    ]
    console.say(f"{len(due)} runs are due{_about(len(due), chosen.workers)}.")
    console.say("Preparing their hospitals.")
    # Before the workers begin: two must not make the same one.
    for run, _ in due:
        hospitals(run.cohort, chosen.work, run.protocol)
        if run.pretrained:
            hospitals(f"outside-{run.cohort}", chosen.work, run.protocol)
    ends = time.monotonic() + 3600 * chosen.hours
    with ProcessPoolExecutor(
        chosen.workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=die_with_parent if sys.platform == "linux" else None,
    ) as pool:
        running: set[Future[str]] = set()
        while due or running:
            while due and len(running) < chosen.workers and time.monotonic() < ends:
                run, seed = due.pop(0)
                console.say(f"{run.key} {seed} begins, {len(due)} are left")
                running.add(pool.submit(done, run, seed, chosen.work))
            if not running:
                console.say(f"{len(due)} runs are left; the same command goes on with them.")
                break
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                console.say(future.result())
    table.write(RESULTS, RUNS)


def _about(count: int, workers: int) -> str:
    """Return in words how long ``count`` runs take if they are like those that are done."""
    took = [json.loads(path.read_bytes())["cpu_seconds"] for path in RESULTS.glob("*.json")]
    if not took or not count:
        return ""
    return f", about {count * statistics.fmean(took) / workers / 3600:.1f} hours"


if __name__ == "__main__":
    main()
