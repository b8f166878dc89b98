"""Which rounds' weights stay on the coordinator's disk, and which are removed.

Kept are those of the last rounds, as many as ``launch --keep-rounds`` says, and those of every
round that a release was made of. That covers what needs old weights: a study that is resumed (the
last round, and the one before to compare updates with), a release of a recent round or the mean of
some, a backup. Reports, late updates and amendments need the journal alone.

The journal says that weights are removed before they are, and only after it said that the rounds
that replace them are closed: killed in between, the rest is removed after the next round.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from common.errors import StateError
from common.records.journal import Entry, Journal
from server.consortium.published_study import Study

REMOVED: Final = "weights removed"


@dataclass(frozen=True)
class Stock:
    """The rounds, 0 for the start, whose weights are on the disk, and those that were removed."""

    keep_rounds: int
    """How many of the last are kept; 0 for all."""
    on_disk: tuple[int, ...]
    released: tuple[int, ...]
    """Of those, the ones that a release was made of."""
    removed: tuple[int, ...]


def surplus(
    on_disk: Iterable[int], *, closed: Collection[int], released: Collection[int], keep: int
) -> list[int]:
    """Return the rounds whose weights are not needed any more; with ``keep`` 0 there are none.

    ``closed`` are the rounds that the journal says are closed, and 0, the start. A round that is
    not closed yet may be on its way to be.

    >>> surplus([0, 1, 2, 3, 4, 5], closed=[0, 1, 2, 3, 4], released=[1], keep=3)
    [0]
    """
    if not keep:
        return []
    last = sorted(closed)[-keep:]
    return [one for one in sorted(on_disk) if one in closed and one not in {*last, *released}]


def stock(study: Study, entries: Iterable[Entry]) -> Stock:
    """Return what of the study's weights is here; ``entries`` are its facts."""
    gone: set[int] = set()
    released: set[int] = set()
    for entry in entries:
        if entry.event == REMOVED:
            gone.update(entry.facts["removed"])
        elif entry.event == "model released":
            released.update(entry.facts.get("rounds", [entry.facts["round"]]))
    here = study.checkpoints()
    return Stock(
        keep_rounds=study.keep_rounds,
        on_disk=tuple(here),
        released=tuple(one for one in here if one in released),
        removed=tuple(sorted(gone - set(here))),
    )


def tidy(study: Study, journal: Journal) -> None:
    """Remove the weights that are not needed any more; raise StateError."""
    keep = study.keep_rounds
    if not keep or len(study.checkpoints()) <= keep:
        return
    entries = journal.events(study=study.protocol.study)
    closed = {0, *(int(e.facts["round"]) for e in entries if e.event == "round closed")}
    found = stock(study, entries)
    due = surplus(found.on_disk, closed=closed, released=found.released, keep=keep)
    said = {one for e in entries if e.event == REMOVED for one in e.facts["removed"]}
    if news := [one for one in due if one not in said]:
        journal.append(REMOVED, study=study.protocol.study, removed=news)
    for number in due:
        study.remove(number)
    for number in surplus(study.states(), closed=closed, released=(), keep=keep):
        study.remove_state(number)


def check_kept(study: Study, journal: Journal, rounds: Collection[int]) -> None:
    """Raise StateError (code ``not-kept``) if weights of one of ``rounds`` were removed."""
    name = study.protocol.study
    found = stock(study, journal.events(study=name))
    if lost := sorted(set(rounds) & set(found.removed)):
        many = len(lost) > 1
        raise StateError(
            f"The weights of round{'s' if many else ''} {spans(lost)} of {name} were removed: only "
            f"those of the last {found.keep_rounds} rounds and of releases are kept.",
            do=f"Here are those of {spans(found.on_disk)}. `gliofed-server launch --keep-rounds N` "
            "lets a study keep more from then on.",
            code="not-kept",
        )


def spans(numbers: Iterable[int]) -> str:
    """Return numbers as a person writes them.

    >>> spans([0, 1, 2, 5, 7, 8])
    '0 to 2, 5, 7, 8'
    """
    runs: list[list[int]] = []
    for one in sorted(numbers):
        if runs and one == runs[-1][-1] + 1:
            runs[-1].append(one)
        else:
            runs.append([one])
    words = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(words) or "none"
