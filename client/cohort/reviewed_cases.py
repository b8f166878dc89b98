"""Reviewed cases that a site trains on: scans and mask that a person accepted or corrected.

Each lies in the site's folder ``reviewed/HASH``: its sequences as NIfTI on their own grids, the
mask as ``seg.nii.gz``, and ``case.json``, written last before the folder gets its name. HASH is
keyed (``client.site.pseudonyms``), so that a listing names nobody; ``case.json`` holds the names
that the cohort uses, so that all scans of a patient share one budget, one split and one withdrawal.

Invariants: nothing is there without the policy's ``train_on_reviews``, nor used without it; one
case is there once, as reviewed last; a case of which the cohort has a mask of its own is not
taken. Nothing of it leaves but by training, as of any other case.

Out of scope: where such a case is used (``client.cohort.patient_split``: for training alone).
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from client.cohort.case_discovery import Cohort
from client.imaging.case import Case, Image
from client.imaging.image_reading import read_image
from client.imaging.label_codings import BRATS_2023
from client.imaging.nifti import write_volume
from client.site.folder import Site
from client.site.pseudonyms import patients_key, pseudonym, withdrawn
from common.errors import CaseError, ConsentError, StateError
from common.records.atomic_files import held, read_json, write_bytes
from common.regions import MODALITIES

_CASE: Final = "case.json"
_MASK: Final = "seg.nii.gz"


class _File(BaseModel):
    """``case.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    patient: str
    session: str
    review: int
    decision: Literal["accepted", "corrected"]


def hand_over(
    site: Site,
    case: Case,
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    *,
    decision: str,
    review: int,
) -> Path:
    """Copy the scans of ``case`` with the reviewed mask ``labels`` to the site; return where.

    It takes the place of an earlier one of the same case. Raises ConsentError (``policy-reviews``:
    the site does not train on reviews), CaseError (``case-rejected``, ``case-labelled``,
    ``withdrawn`` or as scans are read), StateError.
    """
    if not site.settings.policy.train_on_reviews:
        raise ConsentError(
            f"{site.name} does not train on reviewed cases.",
            do="Set train_on_reviews = true under [policy] in site.toml if the hospital allows it.",
            code="policy-reviews",
        )
    if decision not in ("accepted", "corrected"):
        raise CaseError(
            "A rejected mask is no label.", do="Correct the mask and save it.", code="case-rejected"
        )
    key = patients_key(site)
    if pseudonym(key, case.patient) in withdrawn(site):
        raise CaseError(
            "The patient has withdrawn: no study may use the case.",
            do="The review itself stays in the result's folder.",
            code="withdrawn",
        )
    facts = _File(
        patient=case.patient,
        session=case.session,
        review=review,
        decision=decision,  # type: ignore[arg-type] # checked above
    )
    place = _place(site, case.patient, case.session)
    partial = place.with_name(f".{place.name}.partial")
    with _locked(site):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True, mode=0o700)
            for name, image in case.images.items():
                volume = read_image(image)
                write_volume(partial / f"{name}.nii.gz", volume.data, volume.affine)
            write_volume(partial / _MASK, labels, affine)
            text = facts.model_dump_json(indent=2).encode() + b"\n"
            write_bytes(partial / _CASE, text, mode=0o600)
            _swap(partial, place)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    site.journal.append("review taken", case=place.name, decision=decision, review=review)
    return place


def take_back(site: Site, case: Case) -> bool:
    """Remove what was handed over of ``case``; say whether anything was."""
    return _remove(site, [_place(site, case.patient, case.session)]) > 0


def take_back_patient(site: Site, hidden: str) -> int:
    """Remove all that was handed over of the patient behind a pseudonym; return how many cases."""
    key = patients_key(site)
    found = [place for place, one in _there(site) if pseudonym(key, one.patient) == hidden]
    return _remove(site, found)


def reviewed_cases(site: Site) -> tuple[Case, ...]:
    """Return the cases that were handed over, none where the policy does not allow it.

    Raises StateError (code ``reviewed``) for one that is damaged.
    """
    if not site.settings.policy.train_on_reviews:
        return ()
    return tuple(_case(place, one) for place, one in _there(site))


def merged(cohort: Cohort, reviewed: tuple[Case, ...]) -> Cohort:
    """Return ``cohort`` with the reviewed cases of which it has no mask of its own."""
    own = {(case.patient, case.session) for case in cohort.labelled}
    new = {
        (case.patient, case.session): case
        for case in reviewed
        if (case.patient, case.session) not in own
    }
    if not new:
        return cohort
    kept = [case for case in cohort.cases if (case.patient, case.session) not in new]
    return replace(
        cohort,
        layout="+".join(filter(None, (cohort.layout, "reviewed"))),
        cases=(*kept, *new.values()),
    )


def _case(place: Path, one: _File) -> Case:
    return Case(
        patient=one.patient,
        session=one.session,
        images={
            name: Image(path) for name in MODALITIES if (path := place / f"{name}.nii.gz").exists()
        },
        label=place / _MASK,
        label_map=BRATS_2023,
        reviewed=True,
    )


def _there(site: Site) -> list[tuple[Path, _File]]:
    found = []
    for path in sorted(_folder(site).glob(f"[!.]*/{_CASE}")):
        try:
            found.append((path.parent, _File.model_validate(read_json(path, what="reviewed case"))))
        except ValidationError:
            raise StateError(
                f"The reviewed case in {path.parent} is damaged or of another version.",
                do="Remove its folder, and review the result again to hand it over.",
                code="reviewed",
            ) from None
    return found


def _remove(site: Site, places: list[Path]) -> int:
    gone = 0
    with _locked(site):
        for place in places:
            if place.exists():
                shutil.rmtree(place)
                site.journal.append("review taken back", case=place.name)
                gone += 1
    return gone


def _swap(new: Path, place: Path) -> None:
    """Put ``new`` where ``place`` is; killed between, the case is not there."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _place(site: Site, patient: str, session: str) -> Path:
    hidden = pseudonym(patients_key(site), f"reviewed\n{patient}\n{session}")
    return _folder(site) / hidden


def _folder(site: Site) -> Path:
    return site.folder / "reviewed"


def _locked(site: Site) -> AbstractContextManager[None]:
    return held(site.folder / "flower" / "reviewed.lock", what="A reviewed case is being kept")
