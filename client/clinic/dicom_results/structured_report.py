"""What was measured, as a structured report: DICOM's TID 1500, imaging measurement report.

Each label has a group that refers to its segment in the mask; the regions TC and WT, which are
unions of labels and no segments, have groups of their own. The report is complete, and unverified
until a person has reviewed the mask: then it names the person as observer and verifying observer
and the report that it follows.

Sources: DICOM PS3.16 TID 1500, 1411 (volumetric region), 1501 (measurement group).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import highdicom as hd
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from client.clinic.dicom_results.model_identity import (
    MANUFACTURER,
    Reviewed,
    Trackings,
    describe,
    device,
    equipment,
    measured_by,
    research_use,
)
from client.clinic.dicom_results.source_series import Source
from common.regions import LABEL_CODES, LABELS

_CM3: Final = Code("cm3", "UCUM", "cubic centimeter")
_SUMMED: Final = Code("126030", "DCM", "Sum of segmented voxel volumes")
_MR_BRAIN: Final = Code("24590-2", "LN", "MR Brain WO and W contrast IV")
_UNIONS: Final = {
    "TC": Code("TC", "99GLIOFED", "Tumor core"),
    "WT": Code("WT", "99GLIOFED", "Whole tumor"),
}
"""No terminology has these unions of labels."""


def make_report(
    source: Source,
    mask: hd.seg.Segmentation,
    *,
    volumes_ml: Mapping[str, float],
    diameters_mm: Mapping[str, tuple[float, float]],
    model: Mapping[str, Any],
    trackings: Trackings,
    reviewed: Reviewed | None = None,
) -> hd.sr.Comprehensive3DSR:
    """Return the report of ``volumes_ml`` by label and region, and of the longest diameter and the
    one at right angles to it of those in ``diameters_mm``."""
    groups: list[Any] = []
    for name, volume in volumes_ml.items():
        said: dict[str, Any] = {
            "tracking_identifier": hd.sr.TrackingIdentifier(uid=trackings[name], identifier=name),
            "finding_sites": [hd.sr.FindingSite(codes.SCT.Brain)],
            "measurements": _measurements(volume, diameters_mm.get(name), model),
            "finding_category": codes.SCT.MorphologicallyAbnormalStructure,
        }
        if name in LABELS:
            groups.append(
                hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                    referenced_segment=_segment(source, mask, LABELS[name]),
                    finding_type=Code(*LABEL_CODES[name]),
                    **said,
                )
            )
        else:
            groups.append(
                hd.sr.MeasurementsAndQualitativeEvaluations(finding_type=_UNIONS[name], **said)
            )
    observer = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID(),
        name=f"{model['name']} {model['version']}",
        manufacturer_name=MANUFACTURER,
        model_name=str(model["name"]),
        serial_number=str(model["weights_sha256"]),
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(
            observer_person_context=None if reviewed is None else _person(reviewed),
            observer_device_context=hd.sr.ObserverContext(
                observer_type=codes.DCM.Device, observer_identifying_attributes=observer
            ),
        ),
        procedure_reported=_MR_BRAIN,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    report = hd.sr.Comprehensive3DSR(
        evidence=[*source.datasets, mask],
        content=content[0],
        is_complete=True,
        contributing_equipment=equipment(model, reviewed),
        **_verified(reviewed),
        **describe("report", reviewed),
        **device(model),
    )
    report.CompletionFlagDescription = research_use(reviewed)
    return report


def _person(reviewed: Reviewed) -> hd.sr.ObserverContext:
    return hd.sr.ObserverContext(
        observer_type=codes.DCM.Person,
        observer_identifying_attributes=hd.sr.PersonObserverIdentifyingAttributes(
            name=reviewed.name, organization_name=reviewed.organization
        ),
    )


def _verified(reviewed: Reviewed | None) -> dict[str, Any]:
    if reviewed is None:
        return {}
    return {
        "is_verified": True,
        "verifying_observer_name": reviewed.name,
        "verifying_organization": reviewed.organization,
        "previous_versions": [reviewed.report],
    }


def _measurements(
    volume_ml: float, diameters_mm: tuple[float, float] | None, model: Mapping[str, Any]
) -> list[hd.sr.Measurement]:
    found = [
        hd.sr.Measurement(
            name=codes.SCT.Volume,
            value=volume_ml,
            unit=_CM3,
            method=_SUMMED,
            algorithm_id=measured_by(model),
        )
    ]
    axes = (codes.SCT.LongAxis, codes.SCT.PerpendicularAxis)
    for name, value in zip(axes, diameters_mm or (), strict=False):
        found.append(
            hd.sr.Measurement(
                name=name,
                value=round(value, 2),
                unit=codes.UCUM.Millimeter,
                algorithm_id=measured_by(model),
            )
        )
    return found


def _segment(source: Source, mask: hd.seg.Segmentation, number: int) -> hd.sr.ReferencedSegment:
    """Return the reference to a segment; one without a frame has the whole series as source."""
    return hd.sr.ReferencedSegment(
        sop_class_uid=mask.SOPClassUID,
        sop_instance_uid=mask.SOPInstanceUID,
        segment_number=number,
        source_series=hd.sr.SourceSeriesForSegmentation(source.first.SeriesInstanceUID),
    )
