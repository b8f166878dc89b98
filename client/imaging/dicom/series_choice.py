"""Which series of a study stand for its sequences, and why; pure.

A person's decision comes first and is taken at its word, except that no decision makes a volume out
of slices that are none. Then the rules: a series takes part if its weighting is sure enough, it is
one whole volume, and nothing hints at missing slices; originals come before what was computed from
them, a T1 said to be without contrast before one of which nothing is said, then the most isotropic,
then the latest. What is left over is not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from client.imaging.dicom.sequence_recognition import SURE, Verdict, weigh
from client.imaging.dicom.studies import Series, Study
from client.imaging.missing_sequences import sufficient
from common.regions import MODALITIES

NONE: Final = "none"
"""What a person says of a series that shall stand for no sequence."""

Decide = Callable[[Series], str | None]
"""What a person decided about a series: a role, ``NONE``, or None where nobody did."""

_NEARLY: Final = 1.05  # voxels whose shapes differ by less are equally isotropic
_SHORT: Final = 0.75
_MOST_TOLD: Final = 4
_AFTER: Final = 0.5  # of an unmarked T1 that was acquired after contrast had been given
_BEFORE: Final = 0.5  # of a T1 with a record alone, before one whose name says contrast


@dataclass(frozen=True)
class Judged:
    """A series, what it was taken for, and whether it is ``used``; ``why`` says it to a person."""

    series: Series
    verdict: Verdict
    used: bool
    why: str
    decided: bool = False


@dataclass(frozen=True)
class Choice:
    """The series of a study, judged, and those that were chosen, by role."""

    judged: tuple[Judged, ...]
    chosen: Mapping[str, Series]

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(role for role in MODALITIES if role not in self.chosen)

    def candidates(self, role: str) -> tuple[Judged, ...]:
        """Return what may be a missing sequence: series that are broken, or not told for certain.

        Where there is one, a person must say which, or that it is none: with another choice the
        study would not lack the sequence.
        """
        return tuple(
            one
            for one in self.judged
            if not one.used
            and not one.verdict.left_out
            and (one.verdict.role == role or (not one.decided and _may_be(role, one.verdict)))
        )

    @property
    def usable(self) -> bool:
        """Whether it is certain which sequences the study has, and they are enough for a case."""
        return sufficient(self.chosen) and not any(map(self.candidates, self.missing))

    def notes(self) -> tuple[str, ...]:
        """Return what a person should know of the chosen series before relying on them."""
        lacking = [
            f"{role}: series {one.name} {one.missing}"
            for role, one in self.chosen.items()
            if one.missing
        ]
        heights = {role: one.facts.extent_mm for role, one in self.chosen.items()}
        tallest = max(heights.values(), default=0.0)
        short = [
            f"{role}: series {self.chosen[role].name} covers {height:.0f} mm where another covers "
            f"{tallest:.0f} mm: slices may be missing at an end"
            for role, height in heights.items()
            if height < _SHORT * tallest
        ]
        left_out = [
            f", series {one.series.name} is left out: {one.why}"
            for one in self.judged
            if one.verdict.left_out and not one.used
        ]
        looked = f"{len(self.judged)} were looked at{''.join(left_out[:_MOST_TOLD])}"
        it = "it" if len(self.missing) == 1 else "them"
        absent = [f"{', '.join(self.missing)}: no series for {it}; {looked}"] * bool(self.missing)
        return (*absent, *lacking, *short)

    def code(self) -> str:
        """Return the code of the refusal when a sequence is missing: the fault that explains it."""
        explaining = [
            one.series.fault.code
            for one in self.judged
            if one.series.fault and one.verdict.role in self.missing
        ]
        if explaining:
            return explaining[0]
        kinds = [one.series.facts for one in self.judged]
        if all(one.modality != "MR" or one.secondary_capture for one in kinds):
            return "case-modality"
        told = {one.verdict.role for one in self.judged if one.verdict.role}
        only_faults = not told and len({one.series.fault for one in self.judged}) == 1
        fault = self.judged[0].series.fault if self.judged else None
        return fault.code if only_faults and fault else "case-series"


def _may_be(role: str, verdict: Verdict) -> bool:
    """Say whether a series that is not used may be ``role`` all the same.

    Also a T1 of which nothing says whether it shows contrast.
    """
    sure = verdict.role and verdict.confidence >= SURE
    return not sure or (role == "t1c" and verdict.role == "t1n" and not verdict.marked)


def choose(study: Study, decide: Decide = lambda _: None) -> Choice:
    """Return which series of ``study`` stand for its sequences."""
    decided = {one.uid: role for one in study.series if (role := decide(one)) is not None}
    verdicts = {one.uid: weigh(one.facts) for one in study.series}
    verdicts = _after_contrast(study, verdicts, decided)
    verdicts = _recorded_for_all(study, verdicts, decided)
    chosen: dict[str, Series] = {}
    better: dict[str, str] = {}
    for role in MODALITIES:
        named = [one for one in study.series if decided.get(one.uid) == role and not one.fault]
        free = [
            one
            for one in study.series
            if one.uid not in decided
            and verdicts[one.uid].role == role
            and verdicts[one.uid].confidence >= SURE
            and not one.fault
            and not one.missing
        ]
        if pool := named or free:
            ranks = {one.uid: _rank(one, verdicts[one.uid], pool) for one in pool}
            chosen[role] = min(pool, key=lambda one: ranks[one.uid])
            best = ranks[chosen[role].uid]
            better |= {uid: _better(best, rank) for uid, rank in ranks.items() if rank != best}
    used = {one.uid: role for role, one in chosen.items()}
    judged = [
        _judged(one, verdicts[one.uid], decided, used=used, chosen=chosen, better=better)
        for one in study.series
    ]
    return Choice(tuple(judged), chosen)


def _after_contrast(
    study: Study, verdicts: Mapping[str, Verdict], decided: Mapping[str, str]
) -> dict[str, Verdict]:
    """Doubt each unmarked T1 that was acquired after one with contrast: it may show it too."""
    given = [
        one.facts.started_s
        for one in study.series
        if decided.get(one.uid, verdicts[one.uid].role) == "t1c" and one.facts.started_s is not None
    ]
    result = dict(verdicts)
    for one in study.series:
        verdict, began = verdicts[one.uid], one.facts.started_s
        late = bool(given) and began is not None and began > min(given)
        if verdict.role == "t1n" and not verdict.marked and late:
            reasons = (*verdict.reasons, "it was acquired after contrast had been given")
            confidence = round(verdict.confidence * _AFTER, 3)
            result[one.uid] = replace(verdict, confidence=confidence, reasons=reasons)
    return result


def _recorded_for_all(
    study: Study, verdicts: Mapping[str, Verdict], decided: Mapping[str, str]
) -> dict[str, Verdict]:
    """Doubt each T1 whose record alone says contrast, where another's name says so of a later one.

    Many scanners write the agent into every series of an examination, those before it included.
    """
    named = [
        one.facts.started_s
        for one in study.series
        if decided.get(one.uid, verdicts[one.uid].role) == "t1c"
        and (one.uid in decided or verdicts[one.uid].confidence >= SURE)
        and not verdicts[one.uid].recorded
    ]
    first = min((began for began in named if began is not None), default=None)
    result = dict(verdicts)
    for one in study.series:
        verdict, began = verdicts[one.uid], one.facts.started_s
        later = began is not None and first is not None and began >= first
        if verdict.recorded and named and not later:
            why = "another is described so, and this one may have been acquired before it"
            confidence = round(verdict.confidence * _BEFORE, 3)
            result[one.uid] = replace(
                verdict, confidence=confidence, reasons=(*verdict.reasons, why)
            )
    return result


_REASONS: Final = (
    "this one was computed from other images",
    "of this one nothing says that it is without contrast",
    "its voxels are more isotropic",
    "it was acquired later",
    "it has the higher number",
)
"""Why the better of two series is better, by the first part of their ranks that differs."""


def _rank(one: Series, verdict: Verdict, others: list[Series]) -> tuple[float, ...]:
    """Order by: original, said to be without contrast, isotropic, late.

    ``others`` are those that ``one`` competes with.
    """
    finest = min(other.facts.anisotropy for other in others)
    shape = one.facts.anisotropy
    return (
        float(verdict.computed),
        float(verdict.role == "t1n" and not verdict.marked),
        0.0 if shape <= finest * _NEARLY else shape,
        -(one.facts.started_s or 0.0),
        -float(one.facts.number or 0),
    )


def _better(best: tuple[float, ...], other: tuple[float, ...]) -> str:
    """Return why a series that ranks ``best`` is used and not one that ranks as ``other``."""
    return next(why for why, a, b in zip(_REASONS, best, other, strict=True) if a != b)


def _judged(
    one: Series,
    verdict: Verdict,
    decided: Mapping[str, str],
    *,
    used: Mapping[str, str],
    chosen: Mapping[str, Series],
    better: Mapping[str, str],
) -> Judged:
    role = decided.get(one.uid)
    if role is not None:
        verdict = Verdict("" if role == NONE else role, 1.0, ("a person decided so",))
        if role == NONE:
            return Judged(one, verdict, False, "a person left it out", True)
    if one.uid in used:
        return Judged(one, verdict, True, "; ".join(verdict.reasons), role is not None)
    if verdict.left_out:
        return Judged(one, verdict, False, verdict.left_out)
    if one.fault:
        return Judged(one, verdict, False, one.fault.text, role is not None)
    if not verdict.role:
        return Judged(one, verdict, False, "; ".join(verdict.reasons))
    if one.missing and role is None:
        return Judged(one, verdict, False, f"{one.missing}; --set takes it all the same")
    if verdict.confidence < SURE:
        why = "; ".join(verdict.reasons) + "; not sure enough to be taken unasked"
        return Judged(one, verdict, False, why)
    best = chosen[verdict.role]
    by_person = decided.get(best.uid) == verdict.role and role is None
    reason = "a person chose it" if by_person else better.get(one.uid, "they are alike")
    return Judged(one, verdict, False, f"series {best.name} is used instead: {reason}")
