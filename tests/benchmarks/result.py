"""What a benchmark found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Result:
    """One table of figures; ``holds`` says whether ``promise`` does, None if nothing is promised.

    ``facts`` are the figures for programs.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    promise: str
    holds: bool | None
    facts: dict[str, Any] = field(default_factory=dict)
