"""The report for people inside DICOM: an encapsulated PDF. Source: DICOM PS3.3 A.45.1."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

import highdicom as hd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from client.clinic.dicom_results.model_identity import (
    Reviewed,
    describe,
    device,
    equipment,
    research_use,
)
from client.clinic.dicom_results.source_series import Source

_FROM_STUDY: Final = (
    "SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip


def make_document(
    source: Source, pdf: bytes, *, model: Mapping[str, Any], reviewed: Reviewed | None = None
) -> Dataset:
    """Return ``pdf`` as an object of ``source``'s study."""
    made = Dataset()
    for keyword in _FROM_STUDY:
        if keyword in source.first:
            setattr(made, keyword, source.first[keyword].value)
    said, maker, now = describe("document", reviewed), device(model), dt.datetime.now()
    made.SOPClassUID, made.SOPInstanceUID = EncapsulatedPDFStorage, said["sop_instance_uid"]
    made.SeriesInstanceUID, made.SeriesNumber = said["series_instance_uid"], said["series_number"]
    made.InstanceNumber, made.SeriesDescription = 1, said["series_description"]
    made.Modality, made.ConversionType = "DOC", "WSD"
    made.Manufacturer, made.SoftwareVersions = said["manufacturer"], maker["software_versions"]
    made.ManufacturerModelName = maker["manufacturer_model_name"]
    made.DeviceSerialNumber = maker["device_serial_number"]
    made.ContributingEquipmentSequence = equipment(model, reviewed)
    made.ContentDate = made.SeriesDate = now.strftime("%Y%m%d")
    made.ContentTime = made.SeriesTime = now.strftime("%H%M%S")
    made.AcquisitionDateTime = ""
    made.BurnedInAnnotation, made.VerificationFlag = (
        "YES",
        ("UNVERIFIED" if reviewed is None else "VERIFIED"),
    )
    made.DocumentTitle, made.ConceptNameCodeSequence = research_use(reviewed), []
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    made.EncapsulatedDocumentLength = len(pdf)
    made.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = hd.UID(made.SOPInstanceUID)
    return made
