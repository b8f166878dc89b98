"""Numbers that take seconds to compute, remembered in this process and on the disk.

Only a cache: without the file, with a damaged one or with one that other versions made, everything
is computed again, and a file that cannot be written is not. A checksum tells damage, not malice:
who may write it may change the program as well. Out of scope: what the numbers mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, Final

from common.errors import StateError
from common.records.atomic_files import held, read_json, write_json

MOST_ANSWERS: Final = 1000
"""So many stay on the disk, the newest."""


class Answers:
    """Answers to questions, both as plain values, that hold for one ``maker``.

    ``maker`` names everything that an answer depends on beside its question: versions.
    """

    def __init__(self, path: Path | None, *, maker: str) -> None:
        self._path = path
        self._maker = maker
        self._known = self._read()

    def get(self, question: str) -> float | None:
        return self._known.get(question)

    def put(self, question: str, answer: float) -> None:
        """Remember ``answer``, also for other processes; theirs are kept."""
        self._known[question] = answer
        if self._path is None:
            return
        # Busy, a full disk, no permission: then it is computed again after a restart.
        with (
            contextlib.suppress(StateError, OSError),
            held(self._path.with_suffix(".lock"), what="The answers are written"),
        ):
            newest = list({**self._read(), question: answer}.items())[-MOST_ANSWERS:]
            write_json(
                self._path,
                {"maker": self._maker, "answers": newest, "sha256": self._checksum(newest)},
            )

    def _read(self) -> dict[str, float]:
        if self._path is None:
            return {}
        try:
            found = read_json(self._path, what="answers")
            answers = [(question, answer) for question, answer in found["answers"]]
            whole = found["sha256"] == self._checksum(answers)
        except (StateError, TypeError, KeyError, ValueError):
            return {}
        return dict(answers) if whole else {}

    def _checksum(self, answers: list[tuple[Any, Any]]) -> str:
        return hashlib.sha256(json.dumps([self._maker, answers]).encode()).hexdigest()
