"""Which sequence a person takes a DICOM series for: remembered in the site's folder, by keyed hash.

``series.json`` holds no UID, no name and no number of a series: each is a keyed hash under the
site's key for pseudonyms, so that who has the file alone learns nothing. Invariants: a decision
holds until it is forgotten, wherever the files are moved; of one study at most one series stands
for a sequence; a damaged file is refused: with other decisions another scan would be trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.cohort.case_discovery import Cohort, Decide, read_cohort, read_studies, undecided
from client.cohort.reviewed_cases import merged, reviewed_cases
from client.site.folder import Site
from client.site.pseudonyms import patients_key, pseudonym
from common.errors import CaseError, StateError
from common.records.atomic_files import held, read_json, write_bytes
from common.regions import MODALITIES

if TYPE_CHECKING:
    from client.cohort.dicom import Judgement
    from client.imaging.dicom.studies import Series

NONE: Final = "none"
"""Instead of a sequence: the series stands for none."""

Named = Sequence[tuple[str, str]]
"""Pairs of a sequence, or ``NONE``, and the number of a series, as a person types them."""


class _File(BaseModel):
    """``series.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    decided: dict[
        Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")],
        Literal["t1n", "t1c", "t2w", "t2f", "none"],
    ] = {}


def parse(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Read ``t1c=5`` and ``none=7``; raise ValueError."""
    named = []
    for text in texts:
        role, _, name = text.partition("=")
        if role not in (*MODALITIES, NONE) or not name.strip():
            known = ", ".join(MODALITIES)
            raise ValueError(f"{text} must read like t1c=5: one of {known} or none, and a series")
        named.append((role, name.strip()))
    roles = [role for role, _ in named if role != NONE]
    if len(set(roles)) < len(roles) or len({name for _, name in named}) < len(named):
        raise ValueError("each sequence and each series may be named once")
    return named


def for_once(named: Named, base: Decide = undecided) -> Decide:
    """Return decisions that take the series in ``named`` as said there, others as ``base`` does."""
    by_name = {name: role for role, name in named}
    roles = {role for role, _ in named} - {NONE}

    def decide(series: Series) -> str | None:
        known = base(series)
        return by_name.get(series.name, None if known in roles else known)

    return decide


def decisions(site: Site) -> Decide:
    """Return what people decided at ``site``; raise StateError (codes ``series``, patients-key)."""
    decided = _read(site)
    if not decided:
        return undecided
    key = patients_key(site)
    return lambda series: decided.get(_hidden(key, series.uid))


def cohort_of(site: Site) -> Cohort:
    """Return the site's cohort as people decided about its series, with what they reviewed.

    Raises CaseError, StateError.
    """
    reviewed = reviewed_cases(site)
    try:
        cohort = read_cohort(site.data, decide=decisions(site), labels=site.settings.labels)
    except CaseError as error:
        if not reviewed or error.code != "case-none" or not site.data.is_dir():
            raise
        cohort = Cohort("", (), ())
    return merged(cohort, reviewed)


def judged(site: Site, study: str | None = None) -> list[Judgement]:
    """Return the DICOM studies of the cohort and what each series was taken for.

    ``study`` names one, by its folder or zip file as they are listed or as a path. Raises CaseError
    (code ``case-none``) when there is none.
    """
    found = read_studies(site.data, decide=decisions(site))
    if study is not None:
        paths = [Path(study).resolve(), (site.data / study).resolve()]
        named = [one for one in found if one.name == study.rstrip("/")]
        found = named or [one for one in found if one.study.place.resolve() in paths]
    if not found or (study is not None and len(found) > 1):
        raise CaseError(
            f"{site.data} holds {'no' if not found else 'more than one'} DICOM study"
            + (f" named {study}." if study else "."),
            do="`gliofed-site series DIR` lists the studies; `gliofed-site check DIR` says what "
            "cannot be read.",
            code="case-none",
        )
    return found


def decide(site: Site, study: Judgement, named: Named) -> None:
    """Remember that the series in ``named`` stand for those sequences; raise CaseError, StateError.

    Codes: ``case-series`` (the study has no such series) or that of the fault that keeps a series
    from being a volume.
    """
    by_name = {one.name: one for one in study.study.series}
    for role, name in named:
        series = by_name.get(name)
        if series is None:
            raise CaseError(
                f"{study.name} holds no series {name}.",
                do=f"It holds {', '.join(by_name)}.",
                code="case-series",
            )
        if role != NONE and series.fault is not None:
            raise CaseError(
                f"Series {name} of {study.name} cannot stand for {role}: it {series.fault.text}.",
                do="Export the whole series again, or choose another.",
                code=series.fault.code,
            )
    key = patients_key(site)
    with _locked(site):
        decided = _read(site)
        roles = {role for role, _ in named} - {NONE}
        for series in study.study.series:
            if decided.get(hidden := _hidden(key, series.uid)) in roles:
                del decided[hidden]
        new = {_hidden(key, by_name[name].uid): role for role, name in named}
        _write(site, {**decided, **new})
    for hidden, role in new.items():
        site.journal.append("series decided", series=hidden, role=role)


def forget(site: Site, study: Judgement) -> int:
    """Forget what was decided about the series of ``study``; return how many decisions it was."""
    key = patients_key(site)
    own = {_hidden(key, series.uid) for series in study.study.series}
    with _locked(site):
        decided = _read(site)
        left = {hidden: role for hidden, role in decided.items() if hidden not in own}
        _write(site, left)
    for hidden in own & set(decided):
        site.journal.append("series forgotten", series=hidden)
    return len(decided) - len(left)


def _hidden(key: bytes, uid: str) -> str:
    return pseudonym(key, f"series\n{uid}")  # no patient's name holds a line break


def _read(site: Site) -> dict[str, str]:
    path = _path(site)
    if not path.exists():
        return {}
    try:
        return dict(_File.model_validate(read_json(path, what="list of decided series")).decided)
    except ValidationError:
        raise StateError(
            f"The list of decided series, {path}, is damaged or of another version.",
            do="Restore it from the newest backup, or remove it and decide again with "
            "`gliofed-site series`.",
            code="series",
        ) from None


def _write(site: Site, decided: Mapping[str, str]) -> None:
    file = _File.model_validate({"decided": decided})
    write_bytes(_path(site), file.model_dump_json(indent=2).encode() + b"\n", mode=0o600)


def _locked(site: Site) -> AbstractContextManager[None]:
    return held(site.folder / "flower" / "series.lock", what="A series is being decided")


def _path(site: Site) -> Path:
    return site.folder / "series.json"
