"""What each stage of a segmentation took, by the wall's clock and by the processor's.

The processor's is that of this process, all its threads together: a wall time above it was spent
waiting, for a disk or for others' work on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

Stage = Literal["load", "prepare", "predict", "service", "explain", "measure", "write"]
"""Reading files; making the network's input; the network's work, or all that a service does;
explaining, where that was asked for; back to the input's grid and measuring; pictures and files."""

Seconds = Annotated[float, Field(ge=0)]
_DIGITS: Final = 3


class Spent(BaseModel):
    """Seconds of one stage."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    wall_s: Seconds
    cpu_s: Seconds


class Stopwatch:
    """Counts from its making; ``done`` gives what passed since the last ``done`` to a stage."""

    def __init__(self) -> None:
        self._spent: dict[Stage, tuple[float, float]] = {}
        self._since = _now()

    def done(self, stage: Stage) -> None:
        now = _now()
        wall_s, cpu_s = self._spent.get(stage, (0.0, 0.0))
        self._spent[stage] = (
            wall_s + now[0] - self._since[0],
            cpu_s + now[1] - self._since[1],
        )
        self._since = now

    def counted(self, others: Mapping[Stage, Spent]) -> None:
        """Take over what another counted since the last ``done``; the rest is the next stage's."""
        for stage, spent in others.items():
            wall_s, cpu_s = self._spent.get(stage, (0.0, 0.0))
            self._spent[stage] = (wall_s + spent.wall_s, cpu_s + spent.cpu_s)
            self._since = (self._since[0] + spent.wall_s, self._since[1] + spent.cpu_s)

    @property
    def stages(self) -> dict[Stage, Spent]:
        return {
            stage: Spent(wall_s=round(max(0.0, wall_s), _DIGITS), cpu_s=round(cpu_s, _DIGITS))
            for stage, (wall_s, cpu_s) in self._spent.items()
        }


def _now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()
