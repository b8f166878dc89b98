"""DICOM studies as scanners write them: classic and enhanced MR, tiny, of invented patients."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SHAPE = (16, 14, 12)
"""Columns, rows, slices."""
PATIENT = "GF-4711"
NAME = "Müster^Erika"
DATE = "20240229"
CLASSIC = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED = "1.2.840.10008.5.1.4.1.1.4.1"
COMMON: dict[str, Any] = {
    "SpecificCharacterSet": "ISO_IR 192",
    "PatientName": NAME,
    "PatientBirthDate": "19600101",
    "PatientSex": "O",
    "StudyTime": "093000",
    "Modality": "MR",
    "Manufacturer": "Phantom",
    "BodyPartExamined": "BRAIN",
    "PatientPosition": "HFS",
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
    "ScanningSequence": "SE",
    "SequenceVariant": "SK",
    "ScanOptions": "",
    "MRAcquisitionType": "2D",
    "PositionReferenceIndicator": "",
    "StudyID": "1",
    "AccessionNumber": "ACC0001",
    "MagneticFieldStrength": 3,
}

Spoil = Callable[[int, Dataset], Dataset | None]
"""Changes the header of slice i before it is written, or returns None to leave it out."""


def oblique(spacing_mm: tuple[float, float, float] = (12.0, 11.0, 13.0)) -> np.ndarray:
    """Return an affine (column, row, slice -> RAS mm) of a head that lies askew."""
    from scipy.spatial.transform import Rotation

    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", [9, -4, 6], degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag([-1, -1, 1]) @ np.diag(spacing_mm)
    affine[:3, 3] = [90.0, 70.0, -60.0]
    return affine


def voxels(seed: int = 0) -> np.ndarray:
    """Return a brain-like blob (columns, rows, slices), 0 around it, with one marked voxel."""
    x, y, z = np.indices(SHAPE)
    blob = ((x - 8) / 6) ** 2 + ((y - 7) / 5) ** 2 + ((z - 6) / 5) ** 2 < 1
    noise = np.random.default_rng(seed).integers(-40, 40, SHAPE)
    data = ((300 + noise) * blob).astype(np.int16)
    data[10, 5, 8] = 1999
    return data


def tags(dataset: Dataset, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if value is None:
            if name in dataset:
                delattr(dataset, name)
        else:
            setattr(dataset, name, value)


def write_series(
    folder: Path,
    number: int,
    description: str = "",
    *,
    data: np.ndarray | None = None,
    affine: np.ndarray | None = None,
    study: str = "1.2.3.4",
    patient: str = PATIENT,
    enhanced: bool = False,
    syntax: str = ExplicitVRLittleEndian,
    spoil: Spoil = lambda _, dataset: dataset,
    **values: Any,
) -> list[Path]:
    """Write one series below ``folder`` and return its files; ``values`` are further tags."""
    data = voxels(number) if data is None else data
    affine = oblique() if affine is None else affine
    folder.mkdir(parents=True, exist_ok=True)
    make = _enhanced if enhanced else _classic
    paths = []
    for index, dataset in enumerate(make(number, description, data, affine, values)):
        dataset.StudyInstanceUID, dataset.PatientID = study, patient
        dataset.StudyDate = DATE
        tags(dataset, {k: v for k, v in values.items() if k in ("StudyDate", "PatientID")})
        spoilt = spoil(index, dataset)
        if spoilt is None:
            continue
        spoilt.file_meta = FileMetaDataset()
        spoilt.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if syntax != ExplicitVRLittleEndian:
            spoilt.compress(syntax)
        paths.append(folder / f"IM{number:03d}-{index:04d}.dcm")
        spoilt.save_as(paths[-1], enforce_file_format=True)
    return paths


SEQUENCES: dict[int, tuple[str, str, dict[str, Any]]] = {
    # series number: sequence, description, times
    2: ("t1n", "T1 SE tra nativ", {"RepetitionTime": 500, "EchoTime": 10}),
    3: ("t2w", "T2 TSE tra", {"RepetitionTime": 5000, "EchoTime": 100}),
    4: ("t2f", "FLAIR tra", {"RepetitionTime": 9000, "EchoTime": 90, "InversionTime": 2500}),
    5: ("t1c", "T1 SE tra KM", {"RepetitionTime": 500, "EchoTime": 10, "ContrastBolusAgent": "Gd"}),
}


def write_study(folder: Path, *, skip: tuple[int, ...] = (), seed: int = 0, **values: Any) -> Path:
    """Write a study of four stripped sequences on one grid, one folder each, and a localiser."""
    for number, (_, description, times) in SEQUENCES.items():
        if number not in skip:
            data = voxels(10 * seed + number)
            target = folder / f"{number}"
            write_series(target, number, description, **{"data": data, **times, **values})
    write_series(folder / "1", 1, "localizer", **values)
    return folder


def zipped(folder: Path, path: Path) -> Path:
    """Pack ``folder`` into the zip file ``path``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def _base(number: int, description: str, values: Mapping[str, Any]) -> Dataset:
    dataset = Dataset()
    hours, minutes = divmod(number, 60)
    tags(dataset, COMMON)
    dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesNumber = number
    dataset.SeriesDescription = dataset.ProtocolName = description
    dataset.AcquisitionTime = f"{10 + hours:02d}{minutes:02d}00"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    tags(dataset, values)
    return dataset


def _geometry(affine: np.ndarray) -> tuple[list[str], list[str]]:
    """Return ImageOrientationPatient and PixelSpacing of ``affine``, in DICOM's words."""
    lps = np.diag([-1, -1, 1]) @ affine[:3, :3]
    columns, rows = (np.linalg.norm(lps[:, axis]) for axis in (0, 1))
    turn = [*(lps[:, 0] / columns), *(lps[:, 1] / rows)]
    return [_ds(one) for one in turn], [_ds(rows), _ds(columns)]


def _position(affine: np.ndarray, index: int) -> list[str]:
    return [_ds(one) for one in (np.diag([-1, -1, 1, 1]) @ affine @ [0, 0, index, 1])[:3]]


def _ds(value: float) -> str:
    return str(pydicom.valuerep.format_number_as_ds(float(value)))


def _classic(
    number: int, description: str, data: np.ndarray, affine: np.ndarray, values: Mapping[str, Any]
) -> list[Dataset]:
    series, frame = generate_uid(), "1.2.3.9"
    turn, spacing = _geometry(affine)
    thickness = _ds(np.linalg.norm(affine[:3, 2]))
    found = []
    for index in range(data.shape[2]):
        dataset = _base(number, description, {})
        dataset.SOPClassUID = CLASSIC
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = series, frame
        dataset.InstanceNumber = index + 1
        dataset.ImagePositionPatient = _position(affine, index)
        dataset.ImageOrientationPatient, dataset.PixelSpacing = turn, spacing
        dataset.SliceThickness = dataset.SpacingBetweenSlices = thickness
        tags(dataset, values)
        pixels = np.ascontiguousarray(data[:, :, index].T)
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.PixelData = pixels.astype("<i2").tobytes()
        found.append(dataset)
    return found


def _item(**values: Any) -> Dataset:
    item = Dataset()
    tags(item, values)
    return item


def _enhanced(
    number: int, description: str, data: np.ndarray, affine: np.ndarray, values: Mapping[str, Any]
) -> list[Dataset]:
    """Return one multi-frame object; ``values`` in classic MR's words go where they belong."""
    moved = ("RepetitionTime", "FlipAngle", "EchoTime", "InversionTime", "ScanningSequence")
    rest = {k: v for k, v in values.items() if k not in (*moved, "ContrastBolusAgent")}
    dataset = _base(number, description, rest)
    dataset.SOPClassUID = ENHANCED
    dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = generate_uid(), "1.2.3.9"
    dataset.InstanceNumber, dataset.NumberOfFrames = 1, data.shape[2]
    for name in ("ScanningSequence", "SequenceVariant", "ScanOptions"):
        delattr(dataset, name)
    scanning = np.atleast_1d(values.get("ScanningSequence", "SE")).tolist()
    dataset.EchoPulseSequence = "GRADIENT" if "GR" in scanning else "SPIN"
    dataset.EchoPlanarPulseSequence = "YES" if "EP" in scanning else "NO"
    dataset.ContentDate, dataset.ContentTime = DATE, "100000"
    if "ContrastBolusAgent" in values:
        agent = _item(CodeValue="C-1", CodingSchemeDesignator="99X")
        agent.CodeMeaning = values["ContrastBolusAgent"]
        dataset.ContrastBolusAgentSequence = [agent]
    turn, spacing = _geometry(affine)
    thickness = _ds(np.linalg.norm(affine[:3, 2]))
    shared = Dataset()
    shared.PixelMeasuresSequence = [
        _item(PixelSpacing=spacing, SliceThickness=thickness, SpacingBetweenSlices=thickness)
    ]
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=turn)]
    timing = {k: values[k] for k in ("RepetitionTime", "FlipAngle") if k in values}
    shared.MRTimingAndRelatedParametersSequence = [_item(**timing)]
    if "EchoTime" in values:
        shared.MREchoSequence = [_item(EffectiveEchoTime=float(values["EchoTime"]))]
    inverted = values.get("InversionTime")
    modifier = _item(InversionRecovery="NO" if inverted is None else "YES")
    if inverted is not None:
        modifier.InversionTimes = [float(inverted)]
    shared.MRModifierSequence = [modifier]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dimension = _item(DimensionIndexPointer=0x00209057, FunctionalGroupPointer=0x00209111)
    dataset.DimensionOrganizationSequence = [_item(DimensionOrganizationUID="1.2.3.8")]
    dimension.DimensionOrganizationUID = "1.2.3.8"
    dataset.DimensionIndexSequence = [dimension]
    frames = []
    for index in range(data.shape[2]):
        frame = Dataset()
        content = _item(
            StackID="1", InStackPositionNumber=index + 1, DimensionIndexValues=[index + 1]
        )
        frame.FrameContentSequence = [content]
        frame.PlanePositionSequence = [_item(ImagePositionPatient=_position(affine, index))]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    pixels = np.ascontiguousarray(data.transpose(2, 1, 0)).astype("<i2")
    dataset.Rows, dataset.Columns = pixels.shape[1:]
    dataset.PixelData = pixels.tobytes()
    return [dataset]
