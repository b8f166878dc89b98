"""All DICOM objects of one result, each written whole or not at all::

segmentation.dcm   the mask, binary, coded segments, on the source series' own frames
report.dcm         volumes and diameters, TID 1500
uncertainty.dcm    how unsure each voxel is, in percent
document.dcm       report.pdf, encapsulated, where there is one
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage

from client.clinic.dicom_results.encapsulated_pdf import make_document
from client.clinic.dicom_results.model_identity import Reviewed
from client.clinic.dicom_results.parametric_map import make_uncertainty
from client.clinic.dicom_results.segmentation import make_segmentation
from client.clinic.dicom_results.source_series import Source, read_source
from client.clinic.dicom_results.structured_report import make_report
from client.imaging.case import Image
from client.imaging.dicom.headers import DAMAGED, quiet
from common.errors import CaseError
from common.records.atomic_files import read_json, replacing


def write_results(
    out: Path,
    image: Image,
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    *,
    percent: NDArray[np.uint8] | None,
    volumes_ml: Mapping[str, float],
    model: Mapping[str, Any],
    diameters_mm: Mapping[str, tuple[float, float]] | None = None,
    reviewed: Reviewed | None = None,
) -> dict[str, str]:
    """Write the objects into ``out`` and return the UID of each by its file's name.

    ``image`` is the DICOM series on whose grid ``affine`` (RAS, mm) ``labels`` and ``percent`` lie,
    both (column, row, slice); ``diameters_mm`` holds the longest diameter of a label or region and
    the one at right angles to it, ``model`` its identity, ``reviewed`` who reviewed the mask.
    Raises CaseError, StateError.
    """
    with quiet():  # pydicom's warnings quote headers
        source = read_source(image, affine, labels.shape)
        pdf = out / "report.pdf"
        try:
            made = _made(
                source,
                labels,
                percent=percent,
                volumes_ml=volumes_ml,
                model=model,
                diameters_mm=diameters_mm or {},
                pdf=pdf.read_bytes() if pdf.exists() else None,
                reviewed=reviewed,
            )
        except DAMAGED as error:
            raise CaseError(
                f"No DICOM object can be made from the headers of {image.title} "
                f"({type(error).__name__}).",
                do="Export the series again from the archive, or convert it to NIfTI.",
                code="case-headers",
            ) from error
        for name, dataset in made.items():
            with replacing(out / name) as path:
                dataset.save_as(path, enforce_file_format=True)
    return {name: str(dataset.SOPInstanceUID) for name, dataset in made.items()}


def _made(
    source: Source,
    labels: NDArray[np.uint8],
    *,
    percent: NDArray[np.uint8] | None,
    volumes_ml: Mapping[str, float],
    model: Mapping[str, Any],
    diameters_mm: Mapping[str, tuple[float, float]],
    pdf: bytes | None,
    reviewed: Reviewed | None,
) -> dict[str, Dataset]:
    trackings = {name: hd.UID() for name in volumes_ml}
    if reviewed is not None:
        trackings |= reviewed.trackings
    mask = make_segmentation(source, labels, model=model, trackings=trackings, reviewed=reviewed)
    report = make_report(
        source,
        mask,
        volumes_ml=volumes_ml,
        diameters_mm=diameters_mm,
        model=model,
        trackings=trackings,
        reviewed=reviewed,
    )
    made: dict[str, Dataset] = {"segmentation.dcm": mask, "report.dcm": report}
    if percent is not None:
        made["uncertainty.dcm"] = make_uncertainty(source, percent, model=model)
    if pdf is not None:
        made["document.dcm"] = make_document(source, pdf, model=model, reviewed=reviewed)
    return made


def read_results(out: Path) -> list[Dataset]:
    """Return the objects of the complete result in ``out``, none where there are none.

    Raises CaseError (``case-file``) where one that ``result.json`` names is gone or another.
    """
    path = out / "result.json"
    named = dict(read_json(path, what="result").get("dicom") or {}) if path.exists() else {}
    found: list[Dataset] = []
    for name, uid in named.items():
        try:
            dataset = pydicom.dcmread(out / Path(name).name)
            same = str(dataset.SOPInstanceUID) == uid
        except DAMAGED:
            same = False
        if not same:
            raise CaseError(
                f"{out / Path(name).name} is not the object that result.json names.",
                do="Segment the case again.",
                code="case-file",
            )
        found.append(dataset)
    return found


def study_of(out: Path) -> str:
    """Return the UID of the study that the result in ``out`` belongs to, "" without DICOM.

    Raises CaseError as ``read_results`` does.
    """
    found = read_results(out)
    return str(found[0].StudyInstanceUID) if found else ""


def reviewed_by(
    out: Path,
    *,
    reviewer: str,
    decision: str,
    corrected: bool,
    time: dt.datetime,
    organization: str,
) -> Reviewed:
    """Return what objects say that follow the result in ``out``, which has objects itself.

    ``corrected`` says whether a person, now or in an earlier review, changed what the model drew.

    Raises CaseError (``case-file``) where they are gone or others than ``result.json`` names.
    """
    with quiet():
        found = {str(one.SOPClassUID): one for one in read_results(out)}
        try:
            report = hd.sr.Comprehensive3DSR.from_dataset(found[str(Comprehensive3DSRStorage)])
            content: Any = report.content
            groups = (
                *content.get_volumetric_roi_measurement_groups(),
                *content.get_image_measurement_groups(),
            )
            trackings = {str(one.tracking_identifier): hd.UID(one.tracking_uid) for one in groups}
        except DAMAGED as error:
            raise CaseError(
                f"The structured report in {out} cannot be read ({type(error).__name__}).",
                do="Segment the case again.",
                code="case-file",
            ) from error
    return Reviewed(
        reviewer=reviewer,
        decision=decision,
        corrected=corrected,
        time=time,
        organization=organization,
        trackings=trackings,
        report=report,
    )
