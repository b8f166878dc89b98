"""When an answer leaves, so that how long a round took does not tell who was drawn for it.

The time of a private round grows with the number of patients drawn, which nobody may learn: of 24
patients it could tell as much again as epsilon says. An answer therefore waits. With
``answer_every_s = "auto"`` the answers of one study all take the same time, which is found in the
first round: what that took, times a margin in which the number drawn varies by six standard
deviations (reckoned from the protocol alone), rounded up to a step of 25 %. A round that takes
longer raises it, and is seen to; after twenty rounds that would all have fitted into a time two
steps shorter, it is that. A round that fails waits as well.

The other way, to give each step the same work with throw-away patients, takes longer and keeps the
machine busy meanwhile (``tests.benchmarks.draw_durations``); it hides neither the disk nor a scan
that cannot be read.

Not hidden: how large the cohort is, how fast the machine; that a round was longer than any before;
of the first round, its time to 25 %. Out of scope: a study without privacy, which waits for
nothing.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from client.site.folder import Site
from common.errors import StateError
from common.records.atomic_files import read_json, write_json
from common.study.protocol import StudyProtocol

_LOG = logging.getLogger(__name__)

_STEP: Final = 1.25
_SPARE: Final = 1.1
"""For what else varies from round to round: other programs, the disk."""
_DEVIATIONS: Final = 6.0
_ROUNDS: Final = 20
_MOST_VARIATION: Final = 0.5
_OF_DEADLINE: Final = 0.9
"""The share of the round's deadline after which an answer does not wait any longer."""


def margin(protocol: StudyProtocol) -> float:
    """Return by how much a round may take longer than the one before, for its draws alone.

    Over a round's T steps, ``sampling_rate`` q and ``nominal_patients`` n, n q T patients are drawn
    in the mean, with standard deviation sqrt(n q (1 - q) T).
    """
    rate, patients = protocol.privacy.sampling_rate, protocol.privacy.nominal_patients
    drawn = rate * patients * protocol.training.steps_per_round
    variation = min(_MOST_VARIATION, math.sqrt((1 - rate) / drawn))
    return _SPARE * (1 + _DEVIATIONS * variation)


class Known(NamedTuple):
    """What is remembered: the time from beginning to answer, and of the rounds since it is that
    the longest and how many they were."""

    answer_s: float = 0.0
    longest_s: float = 0.0
    rounds: int = 0


def answer_after(protocol: StudyProtocol, taken_s: float, known: Known) -> tuple[float, Known]:
    """Return the time from a round's beginning to its answer, and what to remember.

    That time does not depend on ``taken_s``, as long as that is no longer than ``known.answer_s``.
    """
    if taken_s > known.answer_s:
        due_s = _rounded(taken_s * margin(protocol))
        return due_s, Known(due_s)
    longest_s, rounds = max(known.longest_s, taken_s), known.rounds + 1
    if rounds < _ROUNDS:
        return known.answer_s, Known(known.answer_s, longest_s, rounds)
    enough_s = _rounded(longest_s * margin(protocol))
    shorter = enough_s * _STEP < known.answer_s / math.sqrt(_STEP)
    return known.answer_s, Known(enough_s if shorter else known.answer_s)


def _rounded(seconds: float) -> float:
    """Return ``seconds`` rounded up to a step, of which one second is the first."""
    return float(_STEP ** math.ceil(math.log(max(1.0, seconds), _STEP)))


@dataclass
class Work:
    """Work on patients that began at ``began_s`` of some clock, and whose answer may wait."""

    site: Site
    protocol: StudyProtocol
    began_s: float

    def wait_s(self, now_s: float, *, failed: bool) -> float:
        """Return how long the answer has to wait; remember it for the rounds to come."""
        every = self.site.settings.policy.answer_every_s
        taken_s = now_s - self.began_s
        if not self.protocol.private or every == 0:
            return 0.0
        if every != "auto":
            return math.ceil(taken_s / every) * every - taken_s
        due_s, known = answer_after(self.protocol, taken_s, self._known())
        if not failed:  # a round that failed says little of how long one takes
            self._remember(known)
        limit_s = _OF_DEADLINE * self.protocol.aggregation.deadline_s
        return max(taken_s, min(due_s, limit_s)) - taken_s

    @property
    def _path(self) -> Path:
        return self.site.folder / "studies" / self.protocol.study / "answers.json"

    def _known(self) -> Known:
        try:
            answer_s, longest_s, rounds = read_json(self._path, what="time of answers")["train"]
            return Known(float(answer_s), float(longest_s), int(rounds))
        except (StateError, KeyError, TypeError, ValueError) as error:
            if self._path.exists():
                _LOG.warning("The time after which rounds are answered is found anew. %s", error)
            return Known()

    def _remember(self, known: Known) -> None:
        try:
            write_json(self._path, {"train": known})
        except StateError as error:
            _LOG.warning("The time after which rounds are answered is not kept. %s", error)
