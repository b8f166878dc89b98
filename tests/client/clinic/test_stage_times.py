"""Each second of a segmentation belongs to one stage."""

from __future__ import annotations

import pytest

from client.clinic import stage_times
from client.clinic.stage_times import Spent, Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Wall and processor time, to be set."""
    now = [0.0, 0.0]
    monkeypatch.setattr(stage_times, "_now", lambda: (now[0], now[1]))
    return now


def test_what_passed_since_the_last_is_the_stages(clock: list[float]) -> None:
    watch = Stopwatch()
    clock[:] = [2.0, 1.0]
    watch.done("load")
    clock[:] = [5.0, 7.0]
    watch.done("predict")
    clock[:] = [6.0, 7.5]
    watch.done("load")
    assert watch.stages == {
        "load": Spent(wall_s=3.0, cpu_s=1.5),
        "predict": Spent(wall_s=3.0, cpu_s=6.0),
    }


def test_what_another_counted_is_not_counted_twice(clock: list[float]) -> None:
    watch = Stopwatch()
    clock[:] = [10.0, 12.0]
    watch.counted({"predict": Spent(wall_s=7.0, cpu_s=9.0), "load": Spent(wall_s=1.0, cpu_s=1.0)})
    watch.done("measure")
    assert watch.stages == {
        "predict": Spent(wall_s=7.0, cpu_s=9.0),
        "load": Spent(wall_s=1.0, cpu_s=1.0),
        "measure": Spent(wall_s=2.0, cpu_s=2.0),
    }
