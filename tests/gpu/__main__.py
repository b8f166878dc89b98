"""Compare what the GPU computes with what the CPU computes, and measure what it costs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import platform
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

MB: Final = 1e6


def main() -> int:
    """Return the number of checks that do not hold."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the noise of a comparison is not the operating system's
    try:
        return _main()
    finally:
        logging.disable(before)


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, default=Path(".bench"), help="folder for the tables")
    chosen = parser.parse_args()
    try:
        import torch

        from common import console
        from tests.gpu import checks, costs, federated
        from tests.gpu.material import Scale
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"Python finds no module {error.name}. The docstring of tests/gpu says how to bring "
            "the packages of tests/gpu/needs.txt to a machine without a network.\n"
        )
        return 1
    there = torch.cuda.is_available()
    device = chosen.device if chosen.device != "auto" else "cuda" if there else "cpu"
    if device == "cuda" and not there:
        sys.stderr.write("torch finds no CUDA device here. Mend the driver, or use --device cpu.\n")
        return 1
    if device == "cuda":
        name = torch.cuda.get_device_name()
        scale = Scale("base", side=48, cost_side=128, volume=(240, 240, 155), turns=5)
        console.say(f"{name}, torch {torch.__version__}. It takes less than ten minutes.")
    else:
        name = platform.processor() or platform.machine()
        scale = Scale("small", side=24, cost_side=32, volume=(48, 48, 48), turns=2)
        console.say(
            f"No CUDA device {'is used' if there else 'is here'}: the same code runs on the CPU, "
            f"with small crops, torch {torch.__version__}. It takes about three minutes."
        )
    began = time.monotonic()
    found: list[checks.Check] = []
    with tempfile.TemporaryDirectory(prefix="gliofed-gpu-") as folder:
        wanted = checks.checks(device, scale)
        wanted["one round of two hospitals"] = partial(federated.missing, Path(folder), device)
        for one in checks.run(wanted):
            found.append(one)
            console.say(_line(one))
    measured: list[costs.Cost] = []
    for cost in costs.costs(device, scale):
        measured.append(cost)
        console.say(f"{cost.work}, {cost.precision}: {cost.seconds:.3f} s")
    record = {
        "device": device,
        "name": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "scale": dataclasses.asdict(scale),
        "checks": [{**dataclasses.asdict(one), "holds": one.holds} for one in found],
        "costs": [dataclasses.asdict(one) for one in measured],
        "seconds": round(time.monotonic() - began, 1),
    }
    text = table(record)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "gpu-check.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    (chosen.out / "gpu-check.txt").write_text(text, "utf-8")
    console.say(f"\n{text}")
    console.say(f"Written to {chosen.out}: gpu-check.json, gpu-check.txt.")
    return sum(not one.holds for one in found)


def table(record: dict[str, Any]) -> str:
    """Return what was found and measured as text, which says on what."""
    broken = [one["name"] for one in record["checks"] if not one["holds"]]
    scale = record["scale"]
    heading = f"cost, SegResNet base, crops of {scale['cost_side']}^3"
    lines = [
        f"Device {record['device']} ({record['name']}), torch {record['torch']}, CUDA "
        f"{record['cuda'] or 'none'}, Python {record['python']}: {record['seconds']:.0f} s",
        f"SegResNet {scale['size']}, crops of {scale['side']}^3, compared with the CPU in float32",
        "",
        f"{'check':<44} {'found':>9} {'limit':>9}",
        *(
            f"{one['name']:<44} {one['found']:>9.2g} {one['limit']:>9.2g}  {one['measure']}"
            + ("" if one["holds"] else "  DOES NOT HOLD")
            for one in record["checks"]
        ),
        "",
        f"{heading:<58} {'precision':<9} {'seconds':>8} {'peak MB':>8}",
        *(
            f"{one['work']:<58} {one['precision']:<9} {one['seconds']:>8.3f} "
            f"{one['peak_bytes'] / MB:>8.0f}"
            for one in record["costs"]
        ),
        "",
        f"Do not hold: {'; '.join(broken)}." if broken else "All checks hold.",
        *(
            []
            if record["device"] == "cuda"
            else ["Nothing of this says anything about a GPU: there was none, or it was not used."]
        ),
    ]
    return "\n".join(lines) + "\n"


def _line(one: Any) -> str:
    verdict = "holds" if one.holds else "DOES NOT HOLD"
    return f"{one.name}: {one.measure} {one.found:.3g} (limit {one.limit:g}): {verdict}"


if __name__ == "__main__":
    sys.exit(main())
