"""The checks of a GPU, here tiny and on the CPU: honest code passes, planted faults are seen."""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.privacy.secure_noise import grid
from client.site.execution import ExecutionOptions
from common.versions import proven
from tests import consortia
from tests.gpu import __main__ as command
from tests.gpu import checks, costs, federated
from tests.gpu.material import CLIPPING_NORM, Scale

torch.set_num_threads(1)
TINY = Scale("tiny", side=16, cost_side=16, volume=(24, 16, 16), turns=1)


def test_each_check_holds_on_a_cpu() -> None:
    found = list(checks.run(checks.checks("cpu", TINY)))
    assert len(found) == 16
    assert [one for one in found if not one.holds] == []
    # What runs otherwise than the reference is no more than rounding away from it, and not equal.
    rounded = {one.name for one in found if 0 < one.found < one.limit}
    assert {"training step, bfloat16 AMP", "prediction, bfloat16"} <= rounded


def longer(values: Any) -> Any:
    return values * 1.01


@pytest.mark.parametrize(
    ("name", "computed", "fault"),
    [
        ("training step, float32", "_trained", longer),
        ("training step, two replicas on one device", "_trained", np.zeros_like),
        ("private step, float32", "_privately_trained", longer),
        ("private step, bfloat16 AMP", "_privately_trained", lambda update: update * np.nan),
        ("prediction, float32", "_predicted", longer),
    ],
)
def test_what_a_device_computes_wrongly_is_seen(
    name: str, computed: str, fault: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = getattr(checks, computed)

    def faulty(scale: Scale, execution: ExecutionOptions) -> Any:
        found = honest(scale, execution)
        return found if execution is checks.CPU else fault(found)

    monkeypatch.setattr(checks, computed, faulty)
    (found,) = checks.run({name: checks.checks("cpu", TINY)[name]})
    assert not found.holds, found


def test_a_prediction_that_is_never_the_same_twice_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest, turns = checks.predict, iter(range(9))
    monkeypatch.setattr(
        checks, "predict", lambda *some, **more: honest(*some, **more) + next(turns)
    )
    assert checks.repeated(TINY, checks.CPU)[1] > 0


def test_a_clip_that_is_too_long_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = checks.clipper
    monkeypatch.setattr(
        checks, "clipper", lambda *given: lambda gradient: longer(honest(*given)(gradient))
    )
    assert checks.longest(TINY, checks.CPU)[1] > 1


def test_noise_off_the_grid_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = checks.noise
    monkeypatch.setattr(checks, "noise", lambda *some, **more: longer(honest(*some, **more)))
    assert checks.inexact_noise(TINY, checks.CPU)[1] > 0


def test_a_sum_that_depends_on_the_order_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_float32(parts: Any, zero: torch.Tensor, **named: Any) -> tuple[torch.Tensor, int]:
        total = zero.float()
        for part in parts:
            total += part.float()
        return total.double(), 0

    monkeypatch.setattr(checks, "clipped_sum", in_float32)
    assert checks.inexact_sums(TINY, ExecutionOptions(prefetch=0))[1] > 0


def test_a_norm_is_compared_exactly() -> None:
    unit = grid(CLIPPING_NORM)
    values = torch.zeros(5, dtype=torch.float64)
    values[1] = -CLIPPING_NORM
    assert checks._exact_norm(values) == 1.0
    values[2] = unit
    assert checks._exact_norm(values) == math.nextafter(1.0, 2.0)
    values[1] += unit
    assert checks._exact_norm(values) < 1.0
    many = torch.from_numpy(np.random.default_rng(0).integers(-(2**26), 2**26, 5000) * unit)
    expected = float(torch.linalg.vector_norm(many)) / CLIPPING_NORM
    assert checks._exact_norm(many) == pytest.approx(expected, rel=1e-14)


class _Nothing:
    def run(self) -> None:
        """No round happens."""


def test_a_round_is_run_and_what_it_lacks_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert federated.missing(tmp_path / "honest", "cpu")[1] == 0
    monkeypatch.setattr(consortia, "rounds", lambda *_: _Nothing())
    assert federated.missing(tmp_path / "lacking", "cpu")[1] == 4


def test_the_table_says_what_was_found_and_on_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = checks.Check("clip", "exact norm / clipping norm", 1.0, 1.0, 0.1)
    bad = checks.Check("noise", "entries that are not exact", float("nan"), 0.0, 0.1)
    cost = costs.Cost("a step", "float32", 0.25, 3_000_000)
    monkeypatch.setattr(checks, "run", lambda _: iter([good, bad]))
    monkeypatch.setattr(costs, "costs", lambda *_: iter([cost]))
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--out", str(tmp_path)])
    assert command.main() == 1
    text = (tmp_path / "gpu-check.txt").read_text("utf-8")
    assert "Do not hold: noise." in text
    assert "Nothing of this says anything about a GPU" in text
    assert re.search(r"a step +float32 +0\.250 +3\n", text)
    record = json.loads((tmp_path / "gpu-check.json").read_text("utf-8"))
    assert [one["holds"] for one in record["checks"]] == [True, False]
    assert record["device"] == "cpu"
    assert "noise: entries that are not exact" in capsys.readouterr().out


def test_without_cuda_it_is_not_pretended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cuda"])
    assert command.main() == 1
    assert "torch finds no CUDA device here" in capsys.readouterr().err


def test_what_the_check_needs_is_named_in_proven_versions() -> None:
    lines = (Path(__file__).parent / "needs.txt").read_text("utf-8").splitlines()
    names = [line.split("#")[0].strip() for line in lines if line and line[0] != "#"]
    pinned = {name.lower().replace("_", "-") for name in proven()}
    asked = importlib.metadata.requires("pydantic") or []
    for name in names:
        if "==" in name:
            assert name in asked
        else:
            assert name.lower().replace("_", "-") in pinned, name
