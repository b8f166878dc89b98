"""What a segmentation comes to: what a clinician reads, measured, described and written.

Written to the output folder, each file whole or not at all, ``result.json`` last, so that a folder
with a ``result.json`` is complete::

    segmentation.nii.gz   uint8, 0 background, 1 NCR, 2 ED, 3 ET, on the input's own grid (of raw
                          input, the grid of the contrast-enhanced T1, without it of the FLAIR)
    uncertainty.nii.gz    uint8 on the same grid, 0 (sure) to 100 (``client.clinic.uncertainty``)
    explanation.nii.gz    uint8, where it was asked for: how much the model's probabilities of each
                          voxel change, 0 to 100, as each sequence is hidden: one volume for each
    overview.png          contours on FLAIR and contrast-enhanced T1, or the one that is there
    report.html           all that a clinician reads on one page, in one file (``report.content``)
    report.pdf            the same on paper
    *.dcm                 of DICOM input, the same as objects of its study
                          (``client.clinic.dicom_results``)
    seal.json             with a site's key: its signature over ``result.json``
    result.json           volumes and their ranges, lesions, change, confidence, model, inputs, what
                          is missing, device, precision, layout and threads, preparation and its
                          digest, versions, digests of all other files, warnings, seconds in all and
                          of each stage; its fields are those of ``record.Result``, and of
                          ``result.schema.json``
"""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from client.clinic.lesion_measurements import Diameters, Findings, findings, labels_ml
from client.clinic.midline import Midline, midline_of
from client.clinic.ood import Familiarity, Unlike
from client.clinic.overlays import doubtful, explained, overview
from client.clinic.provenance import RESULT, outputs, seal, software
from client.clinic.rano_response import change
from client.clinic.report.content import content
from client.clinic.report.html_page import page
from client.clinic.report.pdf_sheet import sheet
from client.clinic.result_schema import RESULT_VERSION, Result, findings_json, read_prior
from client.clinic.review_outcome import UNREVIEWED
from client.clinic.sequence_importance import Explanation
from client.clinic.stage_times import Spent, Stage, Stopwatch
from client.cohort.case_discovery import Decide, read_case, undecided
from client.imaging.case import Case
from client.imaging.image_reading import read_image
from client.imaging.nifti import write_volume
from client.imaging.plausibility import warnings_of
from client.imaging.prepared_cache import content_sha256
from common.errors import StateError
from common.records.atomic_files import json_bytes, write_bytes
from common.regions import MODALITIES, MODALITY_NAMES
from common.trust.identity import Identity

if TYPE_CHECKING:
    from client.clinic.dicom_results.model_identity import Reviewed

SHOWN: Final = ("t2f", "t1c")
"""What pictures show and brains are told by."""

MASK: Final = "segmentation.nii.gz"
NO_TUMOUR: Final = "No tumour was found. This does not show that there is none."
UNLIKE: Final = "Unlike what the model learnt from, so not to be relied on:"


@dataclass(frozen=True)
class Segmentation:
    """A label map (X, Y, Z) on the grid ``affine`` of the input.

    ``history`` says how the input was prepared, ``input_sha256`` what the network was given: a site
    that trains on the case prepares the same. ``brain`` holds, of raw input, what is shown on that
    grid, without the skull; it is None where the files share a grid. ``uncertainty`` (X, Y, Z) says
    from 0 to 1 how unsure each voxel is, ``range_ml`` each region's volume of sure and of possible
    voxels (``client.clinic.uncertainty``), ``confidence`` which Dice is to be expected of each
    region (``client.segmentation.expected_dice``). ``seen`` are the images of ``SHOWN`` as they
    were read, None where only the brain may be shown or they were read elsewhere; ``familiarity``
    says whether the scan is unlike what the model learnt from (``client.clinic.ood``),
    ``explanation``, where it was asked for, what each sequence mattered, ``stages`` what computing
    it took here.
    """

    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    history: tuple[dict[str, Any], ...] = ()
    input_sha256: str = ""
    brain: Mapping[str, NDArray[np.float32]] | None = None
    uncertainty: NDArray[np.float32] | None = None
    range_ml: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    confidence: Mapping[str, float] = field(default_factory=dict)
    seen: Mapping[str, NDArray[np.float32]] | None = None
    familiarity: Familiarity | None = None
    explanation: Explanation | None = None
    stages: Mapping[Stage, Spent] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """What a result says of who made it; its fields are those of ``record.Result``.

    ``trusted`` says whether the model's signer is known to be the site's own consortium.
    """

    model: Mapping[str, Any]
    federation: Mapping[str, Any]
    together_with: Sequence[Mapping[str, Any]]
    postprocessing: Mapping[str, Any]
    precision: str
    calibrated: bool
    trusted: bool
    device: str | None = None
    layout: str | None = None
    threads: int | None = None


Segment = Callable[[Case], tuple[Segmentation, Origin]]
"""Segments a case, here or elsewhere."""


def segment_by(
    by: Segment,
    folder: Path,
    out: Path,
    *,
    decide: Decide = undecided,
    prior: Path | None = None,
    sealer: tuple[str, Identity] | None = None,
) -> dict[str, Any]:
    """Segment the case in ``folder`` into ``out`` with ``by``, here or elsewhere; as ``segment``.

    Raises what ``by`` raises, CaseError and StateError.
    """
    started, watch = time.monotonic(), Stopwatch()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StateError(f"{out} is not an empty folder.", do="Choose a new folder for the result.")
    before = None if prior is None else read_prior(prior)
    case = read_case(folder, decide=decide)
    watch.done("load")
    found, origin = by(case)
    watch.counted(found.stages)
    watch.done("measure" if found.stages else "service")
    images = (
        found.brain
        or found.seen
        or {name: read_image(case.images[name]).data for name in SHOWN if name in case.images}
    )
    watch.done("load")
    measured, midline = measure(found, images)
    volumes = volumes_ml(found)
    watch.done("measure")
    result = described(
        case,
        found,
        origin,
        measured,
        midline=midline,
        inputs={name: content_sha256(image) for name, image in case.images.items()},
    )
    result["case"] = folder.resolve().name
    result["source"] = str(folder.resolve())
    if before is not None:
        result["change"] = change(
            before,
            volumes_ml=volumes,
            range_ml=found.range_ml,
            of=measured.of,
            lesions=len(measured.lesions),
            sum_of_products_mm2=round(measured.sum_of_products_mm2, 1),
            model_sha256=origin.model["weights_sha256"],
        ).model_dump(mode="json")
    with _all_or_nothing(out):
        percent = _write_images(out, found)
        largest = measured.lesions[0].diameters if measured.lesions else None
        write_report(out, found, images, result, largest)
        if case.images[case.reference].parts:
            result["dicom"] = write_dicom(
                out, case, found, result, percent, {measured.of: largest} if largest else {}
            )
        result["outputs"] = outputs(out)
        watch.done("write")
        result["stages"] = {
            stage: spent.model_dump(mode="json") for stage, spent in watch.stages.items()
        }
        result["seconds"] = round(time.monotonic() - started, 3)
        written = json_bytes(result)
        if sealer is not None:
            seal(out, written, site=sealer[0], key=sealer[1])
        write_bytes(out / RESULT, written)
    return result


def measure(
    found: Segmentation, images: Mapping[str, NDArray[np.float32]]
) -> tuple[Findings, Midline | None]:
    """Measure the lesions; ``images`` show where the brain is, if ``found`` does not.

    With them comes the midline that sides were told by, None where no brain shows one.
    """
    shown = found.brain or {name: images[name] for name in SHOWN if name in images}
    brain = np.any([image > 0 for image in shown.values()], axis=0)
    midline = midline_of(brain, found.affine)
    return findings(found.labels, found.affine, midline), midline


def described(
    case: Case,
    found: Segmentation,
    origin: Origin,
    measured: Findings,
    *,
    midline: Midline | None,
    inputs: Mapping[str, str],
) -> dict[str, Any]:
    """Return what ``result.json`` says; ``inputs`` holds the SHA-256 of each sequence."""
    volumes = volumes_ml(found)
    return {
        "result_version": RESULT_VERSION,
        "case": case.name,
        "source": "",
        "study_date": _study_date(case),
        "made": dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        "volumes_ml": volumes,
        "range_ml": {name: list(ends) for name, ends in found.range_ml.items()},
        "missing": list(case.missing),
        "grid_of": case.reference,
        "confidence": dict(found.confidence),
        "calibrated": origin.calibrated,
        "explanation": None
        if found.explanation is None
        else found.explanation.told.model_dump(mode="json"),
        "familiarity": None
        if found.familiarity is None
        else found.familiarity.model_dump(mode="json"),
        "findings": findings_json(measured),
        "midline": None
        if midline is None
        else {"normal": list(midline.normal), "offset_mm": midline.offset_mm},
        "review": None,
        "change": None,
        "model": dict(origin.model),
        "federation": dict(origin.federation),
        "together_with": [dict(other) for other in origin.together_with],
        "postprocessing": dict(origin.postprocessing),
        "precision": origin.precision,
        "device": origin.device,
        "layout": origin.layout,
        "threads": origin.threads,
        "inputs": {
            name: {
                "file": image.path.name,
                "channel": image.index,
                "series": image.series or None,
                "sha256": inputs[name],
            }
            for name, image in case.images.items()
        },
        "preparation": list(found.history),
        "prepared_sha256": found.input_sha256,
        "dicom": {},
        "outputs": {},
        "software": software(),
        "warnings": [
            *_warnings(
                found, volumes, trusted=origin.trusted, private=origin.federation["private"]
            ),
            *_incomplete(case.missing),
            *(f"{UNLIKE} {one.says}" for one in _unlike(found)),
            *case.notes,
        ],
        "stages": {},
        "seconds": 0.0,
    }


def _write_images(out: Path, found: Segmentation) -> NDArray[np.uint8] | None:
    """Write mask and uncertainty; return the uncertainty as it was written, in percent."""
    write_volume(out / MASK, found.labels, found.affine)
    if found.explanation is not None:
        changed = np.rint(100 * np.clip(found.explanation.changed, 0, 1)).astype(np.uint8)
        write_volume(out / "explanation.nii.gz", changed, found.affine)
    if found.uncertainty is None:
        return None
    percent = np.rint(100 * np.clip(found.uncertainty, 0, 1)).astype(np.uint8)
    write_volume(out / "uncertainty.nii.gz", percent, found.affine)
    return percent


def write_report(
    out: Path,
    found: Segmentation,
    images: Mapping[str, NDArray[np.float32]],
    result: Mapping[str, Any],
    largest: Diameters | None,
) -> None:
    """Write the picture, and the report as page and as PDF."""
    labels, affine, unsure = found.labels, found.affine, found.uncertainty
    seen = overview(images, labels, affine, volumes=result["volumes_ml"], diameters=largest)
    doubt = (
        None
        if unsure is None
        else doubtful(images, labels, affine, uncertainty=unsure, diameters=largest)
    )
    mattered = (
        None
        if found.explanation is None
        else explained(
            images,
            labels,
            affine,
            changed=dict(
                zip(
                    found.explanation.told.without,
                    np.moveaxis(found.explanation.changed, -1, 0),
                    strict=True,
                )
            ),
            diameters=largest,
        )
    )
    report = content(
        Result.model_validate(result), overview=seen, doubtful=doubt, explained=mattered
    )
    write_bytes(out / "overview.png", seen)
    write_bytes(out / "report.html", page(report))
    write_bytes(out / "report.pdf", sheet(report))


def write_dicom(
    out: Path,
    case: Case,
    found: Segmentation,
    result: Mapping[str, Any],
    percent: NDArray[np.uint8] | None,
    diameters: Mapping[str, Diameters],
    reviewed: Reviewed | None = None,
) -> dict[str, str]:
    """Write the result as DICOM objects, ``report.pdf`` among them; return their UIDs by name.

    ``reviewed`` says who reviewed the mask, if somebody did.
    """
    from client.clinic.dicom_results.writer import write_results  # not for NIfTI

    return write_results(
        out,
        case.images[case.reference],
        found.labels,
        found.affine,
        percent=percent,
        volumes_ml=result["volumes_ml"],
        model=result["model"],
        diameters_mm={name: (one.long_mm, one.across_mm) for name, one in diameters.items()},
        reviewed=reviewed,
    )


@contextmanager
def _all_or_nothing(out: Path) -> Iterator[None]:
    """Leave nothing in the folder ``out``, which was empty, if the result does not become whole."""
    try:
        yield
    except BaseException:
        for path in out.iterdir() if out.is_dir() else ():
            path.unlink()
        raise


def _study_date(case: Case) -> str | None:
    """Return the date of a DICOM study; the session of other cases is any word."""
    found = re.fullmatch(r"(\d{4})(\d{2})(\d{2})", case.session)
    dicom = any(image.parts for image in case.images.values())
    return "-".join(found.groups()) if dicom and found else None


def volumes_ml(found: Segmentation) -> dict[str, float]:
    """Return the volume in mL of each label and of the regions TC and WT."""
    return labels_ml(found.labels, found.affine)


def _unlike(found: Segmentation) -> tuple[Unlike, ...]:
    return () if found.familiarity is None else found.familiarity.unlike


def _incomplete(missing: tuple[str, ...]) -> list[str]:
    """Say what a segmentation without some sequences is worth."""
    if not missing:
        return []
    names = " and ".join(f"{MODALITY_NAMES[name]} ({name})" for name in missing)
    warnings = [
        f"Without {names}: the segmentation is less exact than with all four sequences, and its "
        "uncertainty and the ranges of its volumes are wider."
    ]
    if "t1c" in missing:
        warnings.append(
            "Without contrast-enhanced T1 nothing shows which tumour takes up contrast: enhancing "
            "tumour and tumour core are guesses."
        )
    if len(missing) == len(MODALITIES) - 1:
        warnings.append(
            "With one sequence alone nothing tells how much the others would have changed: the "
            "uncertainty is only what the network says of itself."
        )
    return warnings


def _warnings(
    found: Segmentation, volumes: dict[str, float], *, trusted: bool, private: bool
) -> list[str]:
    warnings = [UNREVIEWED]
    if not trusted:
        warnings.append(
            "The model's files fit its signature, but nobody said whose signature it is: install "
            "the model at a site and use --site to have that checked."
        )
    if not private:
        warnings.append("The model was trained WITHOUT differential privacy.")
    if volumes["WT"] == 0:
        warnings.append(NO_TUMOUR)
    spacing = np.linalg.norm(found.affine[:3, :3], axis=0)
    if spacing.max() > 2.0:
        warnings.append(
            f"The input's voxels are up to {spacing.max():.1f} mm wide: small parts of a tumour "
            "cannot be seen and volumes are coarse."
        )
    return warnings + warnings_of(found.history)
