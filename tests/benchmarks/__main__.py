"""Run the named benchmarks, or all; print tables and write one JSON file each.

Each says beforehand about how long it takes, and prints each row once it is known. What was said so
far is in NAME.unfinished.json meanwhile, so that a run that is cut off has something to show.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from common import console
from common.records.atomic_files import write_json
from tests.benchmarks import (
    cold_segment,
    dicom_input,
    draw_durations,
    familiarity,
    missing_sequences,
    plausibility,
    poisoning,
    prediction,
    preparation,
    privacy_check,
    private_step,
    raw_preparation,
    raw_rivals,
    round_overhead,
    server_memory,
    site_terms,
    small_messages,
    small_volumes,
)
from tests.benchmarks.result import Benchmark, Result

BENCHMARKS: Final[dict[str, Benchmark]] = {
    "private_step": Benchmark(private_step.measure, minutes=30),
    "privacy_check": Benchmark(privacy_check.measure, minutes=3),
    "preparation": Benchmark(preparation.measure, minutes=3),
    "round_overhead": Benchmark(round_overhead.measure, minutes=4),
    "server_memory": Benchmark(server_memory.measure, minutes=2),
    "site_terms": Benchmark(site_terms.measure, minutes=10),
    "small_messages": Benchmark(small_messages.measure, minutes=10),
    "poisoning": Benchmark(poisoning.measure, minutes=15),
    "dicom_input": Benchmark(dicom_input.measure, minutes=1),
    "raw_preparation": Benchmark(raw_preparation.measure, minutes=1.5 * raw_preparation.CASES),
    "raw_rivals": Benchmark(raw_rivals.measure, minutes=raw_rivals.minutes()),
    "prediction": Benchmark(prediction.measure, minutes=15 + 4 * prediction.TURNS),
    "small_volumes": Benchmark(small_volumes.measure, minutes=2),
    "cold_segment": Benchmark(cold_segment.measure, minutes=13 + cold_segment.TURNS),
    "familiarity": Benchmark(familiarity.measure, minutes=3),
    "draw_durations": Benchmark(draw_durations.measure, minutes=1),
    "missing_sequences": Benchmark(missing_sequences.measure, minutes=6),
    "plausibility": Benchmark(plausibility.measure, minutes=6),
}
_QUIET_S: Final = 60.0
"""After so long without a line, one says that the work goes on."""


def main() -> int:
    """Return the number of promises that do not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=Path(".bench"), help="folder for the JSON")
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark is named {', '.join(sorted(unknown))}")
    chosen.out.mkdir(parents=True, exist_ok=True)
    names = chosen.names or list(BENCHMARKS)
    if len(names) > 1:
        total = sum(expected_s(name, chosen.out) for name in names)
        console.say(f"{len(names)} benchmarks, about {_minutes(total)} in all.\n")
    return sum(run(name, chosen.out).holds is False for name in names)


def run(name: str, out: Path) -> Result:
    """Run a benchmark, printing what it says, and write its file; return its result."""
    unfinished = out / f"{name}.unfinished.json"
    console.say(f"{name}, about {_minutes(expected_s(name, out))}:")
    began = time.monotonic()
    said: list[str] = []
    record: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "kind": platform.machine()},
        "python": platform.python_version(),
    }
    with tempfile.TemporaryDirectory(prefix=f"gliofed-{name}-") as folder, _telling(began) as tell:
        work = BENCHMARKS[name].measure(Path(folder))
        while True:
            try:
                said.append(next(work))
            except StopIteration as end:
                result: Result = end.value
                break
            tell(said[-1])
            record["seconds"] = round(time.monotonic() - began, 1)
            write_json(unfinished, {**record, "said": said})
    console.show_table(result.title, result.columns, result.rows)
    verdict = {True: "holds", False: "DOES NOT HOLD", None: "no promise"}[result.holds]
    console.say(f"{result.promise}: {verdict}\n")
    record["seconds"] = round(time.monotonic() - began, 1)
    done = {**dataclasses.asdict(result), **record}
    (out / f"{name}.json").write_text(json.dumps(done, indent=2) + "\n")
    unfinished.unlink(missing_ok=True)
    return result


def expected_s(name: str, out: Path) -> float:
    """Return about how many seconds a benchmark takes: as its last run in ``out`` did, if any."""
    try:
        return float(json.loads((out / f"{name}.json").read_text())["seconds"])
    except FileNotFoundError:
        return 60 * BENCHMARKS[name].minutes


class _Telling:
    """Prints lines with the time since ``began``, and says now and then that the work goes on."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._last = ""
        self._said = began
        self._lock = threading.Lock()

    def __call__(self, said: str) -> None:
        with self._lock:
            self._last = said
            self._print(said)

    def go_on(self) -> None:
        with self._lock:
            if time.monotonic() - self._said >= _QUIET_S:
                self._print(f"... still at work after: {self._last or 'the start'}")

    def _print(self, text: str) -> None:
        self._said = time.monotonic()
        minutes, seconds = divmod(int(self._said - self._began), 60)
        console.say(f"  {minutes:3d}:{seconds:02d}  {text}")


@contextmanager
def _telling(began: float) -> Iterator[_Telling]:
    tell = _Telling(began)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_QUIET_S / 12):
            tell.go_on()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        ended.set()
        thread.join()


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min"


if __name__ == "__main__":
    sys.exit(main())
