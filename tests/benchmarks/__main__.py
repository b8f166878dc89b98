"""Run the named benchmarks, or all; print tables and write one JSON file each."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from common import console
from tests.benchmarks import (
    cold_segment,
    dicom_input,
    familiarity,
    missing_sequences,
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
)

BENCHMARKS = {
    "private_step": private_step.measure,
    "privacy_check": privacy_check.measure,
    "preparation": preparation.measure,
    "round_overhead": round_overhead.measure,
    "server_memory": server_memory.measure,
    "site_terms": site_terms.measure,
    "small_messages": small_messages.measure,
    "poisoning": poisoning.measure,
    "dicom_input": dicom_input.measure,
    "raw_preparation": raw_preparation.measure,
    "raw_rivals": raw_rivals.measure,
    "prediction": prediction.measure,
    "cold_segment": cold_segment.measure,
    "familiarity": familiarity.measure,
    "missing_sequences": missing_sequences.measure,
}


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
    broken = 0
    for name in chosen.names or BENCHMARKS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"gliofed-{name}-") as folder:
            result = BENCHMARKS[name](Path(folder))
        console.show_table(result.title, result.columns, result.rows)
        verdict = {True: "holds", False: "DOES NOT HOLD", None: "no promise"}[result.holds]
        console.say(f"{result.promise}: {verdict}\n")
        broken += result.holds is False
        record = {
            **dataclasses.asdict(result),
            "machine": {"cpus": os.cpu_count(), "kind": platform.machine()},
            "python": platform.python_version(),
            "seconds": round(time.monotonic() - began, 1),
        }
        (chosen.out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    return broken


if __name__ == "__main__":
    sys.exit(main())
