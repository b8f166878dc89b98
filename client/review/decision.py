"""A decision about a mask, and the version that it becomes: all that a clinician reads, anew.

Volumes, lesions and change are measured on the mask that was decided about; what the model said of
its own mask (ranges, expected Dice) holds for that alone and is left out where the mask is another.
A rejected mask is kept with its report; no DICOM object is made of it, which a PACS could take for
a result.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.clinic.lesion_measurements import findings, labels_ml
from client.clinic.midline import Midline
from client.clinic.provenance import RESULT, outputs, seal, software
from client.clinic.rano_response import Before, change
from client.clinic.result_folder import (
    MASK,
    NO_TUMOUR,
    SHOWN,
    Segmentation,
    write_dicom,
    write_report,
)
from client.clinic.result_schema import Result, findings_json, read_result
from client.clinic.review_outcome import UNREVIEWED, Decision, Review, edit_of
from client.imaging.nifti import write_volume
from client.review.review_case import Subject
from common.errors import StateError
from common.records.atomic_files import json_bytes, write_bytes
from common.trust.identity import Identity

NOT_STATED: Final = "not stated"
_LONGEST_NAME: Final = 64
_LONGEST_COMMENT: Final = 2000


@dataclass(frozen=True)
class Said:
    """What a person decided, in the person's words."""

    decision: Decision
    reviewer: str
    comment: str


def said(decision: str, reviewer: str, comment: str, *, changed: bool) -> Said:
    """Return a decision that can be kept; raise StateError (code ``review-decision``).

    ``changed`` says whether the mask differs from the one that was opened.
    """
    reviewer, comment = " ".join(reviewer.split()), comment.strip()
    if decision not in ("accepted", "corrected", "rejected"):
        raise _refused(f"{decision!r} is no decision", "Accept, correct or reject the mask.")
    if not 0 < len(reviewer) <= _LONGEST_NAME:
        raise _refused(
            f"it needs a name of at most {_LONGEST_NAME} letters", "Write your name beside it."
        )
    if len(comment) > _LONGEST_COMMENT:
        raise _refused(
            f"the comment has {len(comment)} letters", f"Shorten it to {_LONGEST_COMMENT}."
        )
    if decision == "rejected" and not comment:
        raise _refused("a rejection needs a reason", "Write the reason as a comment.")
    if decision == "accepted" and changed:
        raise _refused("the mask was changed", "Save it as corrected, or take the changes back.")
    if decision == "corrected" and not changed:
        raise _refused("nothing was changed", "Accept the mask as it is, or correct it first.")
    return Said(decision, reviewer, comment)  # type: ignore[arg-type] # checked above


def _refused(why: str, do: str) -> StateError:
    return StateError(f"The decision was not kept: {why}.", do=do, code="review-decision")


def save(
    subject: Subject,
    labels: NDArray[np.uint8],
    what: Said,
    *,
    sealer: tuple[str, Identity] | None = None,
) -> int:
    """Keep a decision about ``labels`` as a new version and return its number.

    With ``sealer`` (a site's name and key) it is sealed as results are. Raises CaseError,
    StateError; then there is no new version.
    """
    now = dt.datetime.now().astimezone()
    review = Review(
        number=subject.versions.next,
        decision=what.decision,
        reviewer=what.reviewer,
        comment=what.comment,
        time=now.isoformat(timespec="seconds"),
        opened=subject.opened,
        opened_sha256=subject.opened_sha256,
        machine_sha256=subject.machine_sha256,
        result_sha256=subject.result_sha256,
        edit=edit_of(subject.machine, labels, affine=subject.affine),
    )
    record = review.model_dump(mode="json")

    def write(folder: Path) -> None:
        _write(folder, subject, labels, review, now=now, sealer=sealer)

    return subject.versions.save(
        record,
        write,
        decision=what.decision,
        reviewer=what.reviewer,
        opened=subject.opened,
        changed_voxels=review.edit.changed_voxels,
    )


def _write(
    folder: Path,
    subject: Subject,
    labels: NDArray[np.uint8],
    review: Review,
    *,
    now: dt.datetime,
    sealer: tuple[str, Identity] | None,
) -> None:
    stored = subject.result.midline
    midline = None if stored is None else Midline(stored.normal, stored.offset_mm)
    measured = findings(labels, subject.affine, midline)
    result = reviewed_result(
        subject.result, review, labels, subject.affine, findings_json(measured)
    )
    largest = measured.lesions[0].diameters if measured.lesions else None
    doubt = subject.percent
    found = Segmentation(
        labels=labels,
        affine=subject.affine,
        uncertainty=None if doubt is None else doubt.astype(np.float32) / np.float32(100),
    )
    write_volume(folder / MASK, labels, subject.affine)
    pictured = {name: subject.images[name] for name in SHOWN if name in subject.images}
    write_report(folder, found, pictured, result, largest)
    before = _with_objects(subject)
    if before is not None and review.decision != "rejected":
        from client.clinic.dicom_results.writer import reviewed_by  # not for NIfTI

        result["dicom"] = write_dicom(
            folder,
            subject.case,
            found,
            result,
            None,
            {measured.of: largest} if largest else {},
            reviewed=reviewed_by(
                before,
                reviewer=review.reviewer,
                decision=review.decision,
                corrected=review.edit.changed_voxels > 0,
                time=now.replace(tzinfo=None),
                organization=NOT_STATED if sealer is None else sealer[0],
            ),
        )
    result["outputs"] = outputs(folder)
    written = json_bytes(result)
    if sealer is not None:
        seal(folder, written, site=sealer[0], key=sealer[1])
    write_bytes(folder / RESULT, written)


def reviewed_result(
    machine: Result,
    review: Review,
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    measured: dict[str, Any],
) -> dict[str, Any]:
    """Return what ``result.json`` says of a review of ``machine``; ``measured`` are its lesions."""
    volumes = labels_ml(labels, affine)
    same = not review.edit.changed_voxels
    warnings = [one for one in machine.warnings if one not in (UNREVIEWED, NO_TUMOUR)]
    return {
        **machine.model_dump(mode="json"),
        "volumes_ml": volumes,
        "range_ml": {str(name): list(ends) for name, ends in machine.range_ml.items()}
        if same
        else {},
        "confidence": {str(name): one for name, one in machine.confidence.items()} if same else {},
        "findings": measured,
        "change": _change(machine, volumes, measured, same=same),
        "review": review.model_dump(mode="json"),
        "dicom": {},
        "outputs": {},
        "software": software(),
        "warnings": [*warnings, *([] if volumes["WT"] else [NO_TUMOUR])],
    }


def _change(
    machine: Result, volumes: dict[str, float], measured: dict[str, Any], *, same: bool
) -> dict[str, Any] | None:
    """Return the change since the prior that ``machine`` was compared with, of this mask."""
    known = machine.change
    if known is None or same:
        return None if known is None else known.model_dump(mode="json")
    before = Before(
        folder=known.prior,
        case=known.prior_case,
        date=known.prior_date,
        volumes_ml={name: one.before for name, one in known.volumes_ml.items()},
        range_ml={},
        lesions=None if known.lesions is None else known.lesions[0],
        of=known.of,
        sum_of_products_mm2=None
        if known.sum_of_products_mm2 is None
        else known.sum_of_products_mm2.before,
        model_sha256=machine.model.weights_sha256 if known.same_model else "",
    )
    return change(
        before,
        volumes_ml=volumes,
        range_ml={},
        of=measured["of"],
        lesions=measured["count"],
        sum_of_products_mm2=measured["sum_of_products_mm2"],
        model_sha256=machine.model.weights_sha256,
    ).model_dump(mode="json")


def _with_objects(subject: Subject) -> Path | None:
    """Return the newest version that has DICOM objects, for new ones to follow."""
    if not subject.result.dicom:
        return None
    for number in reversed(subject.versions.numbers):
        place = subject.versions.place(number)
        if read_result(place, do="Restore it.", code="review-changed").dicom:
            return place
    return subject.folder
