"""One DICOM file becomes an instance: whose study, which series, where its slices lie.

Reads the header alone, and of it a fixed list of public tags: a patient's name, free-text fields
and private tags are never asked for. Values that break DICOM's rules count as not said, since
scanners break them daily; what cannot be parsed at all is one CaseError. Nothing is unpacked: a
deflated file is refused by its transfer syntax, wherever in its head that stands.

Sources: DICOM PS3.3 C.7.6.2 (image plane), C.8.3.1 (MR image), C.8.13 (enhanced MR).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import pydicom
import pydicom.filereader
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue

from client.imaging.case import Part
from client.imaging.dicom.series_facts import Facts
from client.imaging.limits import MOST_HEADER_BYTES, MOST_ITEMS
from common.errors import CaseError
from common.foreign_text import printable

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
for _name in ("pydicom", "highdicom"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

MR: Final = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED: Final = ("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")
_SECONDARY: Final = "1.2.840.10008.5.1.4.1.1.7"
_DIRECTORY: Final = "1.2.840.10008.1.3.10"
_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
_META_BYTES: Final = 2048
_MAGIC: Final = slice(128, 132)


class DeflatedError(ValueError):
    """A file that is packed as a whole: its header cannot be read without unpacking all of it."""


class _RefusingZlib:
    """Stands where pydicom has zlib, which would unpack a file without a limit."""

    MAX_WBITS: Final = zlib.MAX_WBITS

    @staticmethod
    def decompress(*_: object) -> bytes:
        raise DeflatedError("deflated")


pydicom.filereader.zlib = _RefusingZlib  # type: ignore[assignment,attr-defined]  # for all who read DICOM here

DAMAGED: Final = (
    ArithmeticError, AssertionError, AttributeError, BytesLengthException, EOFError,
    InvalidDicomError, LookupError, MemoryError, NotImplementedError, OSError, RecursionError,
    RuntimeError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
"""What pydicom and its decoders raise for files that are not what they say."""

_TAGS: Final = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID",
    "StudyDate", "StudyTime", "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime",
    "AcquisitionDateTime", "ContentTime", "Modality", "SeriesNumber", "SeriesDescription",
    "ProtocolName", "SequenceName", "PulseSequenceName", "ImageType", "ScanningSequence",
    "SequenceVariant", "MRAcquisitionType", "RepetitionTime", "EchoTime", "InversionTime",
    "FlipAngle", "EchoPulseSequence", "EchoPlanarPulseSequence", "ContrastBolusAgent",
    "ContrastBolusAgentSequence", "BodyPartExamined", "BurnedInAnnotation", "Rows", "Columns",
    "NumberOfFrames", "PixelSpacing", "SpacingBetweenSlices", "SliceThickness",
    "ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber", "ImagesInAcquisition",
    "NumberOfSeriesRelatedInstances", "TemporalPositionIdentifier", "DiffusionBValue",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Slice:
    """One frame: centre of its first voxel, the directions of its rows and columns (DICOM, LPS).

    What tells the volumes of one series apart is ``te`` in milliseconds, ``b_value`` in s/mm2 and
    ``temporal``, the number of the time point.
    """

    position: Triple | None
    orientation: tuple[float, ...] | None
    te: float | None
    b_value: float | None
    temporal: float | None


@dataclass(frozen=True, slots=True)
class Instance:
    """One DICOM file. ``study``, ``series`` and ``uid`` are UIDs; ``date`` is YYYYMMDD or ""."""

    part: Part
    uid: str
    study: str
    series: str
    patient: str
    date: str
    number: int | None
    promised: int | None
    enhanced: bool
    time_s: float | None
    slices: tuple[Slice, ...]
    facts: Facts


class LimitedStream:
    """A stream whose header is read within limits: of the length of a value, and of items.

    An item of a sequence takes 8 bytes in a file and a thousand in memory.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._items = 0
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, count: int = -1) -> bytes:
        """Return ``count`` bytes; raise ValueError where a limit is passed."""
        if count < 0:  # as only what unpacks all of a file asks
            raise DeflatedError("deflated")
        if count > MOST_HEADER_BYTES:
            raise ValueError("a value of its header is too long")
        data = self._stream.read(count)
        self._items += items(data)
        if self._items > MOST_ITEMS:
            raise ValueError("its header has too many items")
        return data


def items(data: bytes) -> int:
    """Return how many items of sequences begin in ``data``, at most; in either byte order."""
    return data.count(b"\xfe\xff\x00\xe0") + data.count(b"\xff\xfe\xe0\x00")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom: what it warns of, it quotes, and a header's values name the patient."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_dicom(start: bytes) -> bool:
    """Say whether a file that begins with ``start`` (132 bytes) is in DICOM's file format."""
    return start[_MAGIC] == b"DICM"


def read_header(part: Part, stream: BinaryIO) -> Instance | None:
    """Return what the file ``stream`` says; None when it is to hold no image, as a DICOMDIR.

    Its pixels are not read. Raises CaseError (``case-file``) when it cannot be parsed or names no
    study and series.
    """
    start = stream.read(_META_BYTES)
    if not start:
        raise damaged(part, "it is empty")
    try:
        if _DEFLATED in start:  # though what follows may make no sense
            raise DeflatedError("deflated")
        with quiet():
            return _read(part, stream)
    except DeflatedError:
        raise damaged(part, "its transfer syntax, deflated, is not supported") from None
    except DAMAGED as error:
        raise damaged(part, type(error).__name__) from error


def damaged(part: Part, why: str) -> CaseError:
    """Return the error for a file that is not what it should be."""
    where = f"A file in {part.path}" if part.member else f"{part.path}"
    return CaseError(
        f"{where} cannot be read as DICOM: it is truncated or damaged ({why}).",
        do="Export the study again from the archive, uncompressed (explicit VR, little endian).",
        code="case-file",
    )


def _read(part: Part, stream: BinaryIO) -> Instance | None:
    stream.seek(0)
    dataset = pydicom.dcmread(
        LimitedStream(stream),
        force=True,
        stop_before_pixels=True,
        specific_tags=list(_TAGS),
    )
    if dataset.file_meta.get("MediaStorageSOPClassUID") == _DIRECTORY:
        return None
    kind = _text(dataset, "SOPClassUID")
    if not kind:
        raise ValueError("no kind of object")
    if _text(dataset, "Rows"):
        return _instance(part, dataset, kind)
    if kind == MR or kind in ENHANCED:
        raise EOFError("no image in an image")
    return None  # a report, a presentation state, a spectrum


def _instance(part: Part, dataset: Dataset, kind: str) -> Instance:
    study, series = _text(dataset, "StudyInstanceUID"), _text(dataset, "SeriesInstanceUID")
    if not study or not series:
        raise ValueError("no study or series")
    enhanced = kind in ENHANCED
    slices = tuple(_frames(dataset)) if enhanced else (_slice(dataset),)
    return Instance(
        part=part,
        uid=_text(dataset, "SOPInstanceUID"),
        study=study,
        series=series,
        patient=_text(dataset, "PatientID"),
        date=_text(dataset, "StudyDate"),
        number=_whole(dataset, "InstanceNumber"),
        promised=_whole(dataset, "NumberOfSeriesRelatedInstances")
        or _whole(dataset, "ImagesInAcquisition"),
        enhanced=enhanced,
        time_s=_time_s(dataset),
        slices=slices,
        facts=_facts(dataset, kind),
    )


def _slice(dataset: Dataset) -> Slice:
    return Slice(
        position=_triple(dataset, "ImagePositionPatient"),
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        te=_number(dataset, "EchoTime"),
        b_value=_number(dataset, "DiffusionBValue"),
        temporal=_number(dataset, "TemporalPositionIdentifier"),
    )


def _frames(dataset: Dataset) -> Iterator[Slice]:
    shared = _items(dataset, "SharedFunctionalGroupsSequence")
    for frame in _items(dataset, "PerFrameFunctionalGroupsSequence"):
        groups = [frame, *shared]
        content = _group(groups, "FrameContentSequence")
        yield Slice(
            position=_triple(_group(groups, "PlanePositionSequence"), "ImagePositionPatient"),
            orientation=_numbers(
                _group(groups, "PlaneOrientationSequence"), "ImageOrientationPatient", 6
            ),
            te=_number(_group(groups, "MREchoSequence"), "EffectiveEchoTime"),
            b_value=_number(_group(groups, "MRDiffusionSequence"), "DiffusionBValue"),
            temporal=_number(content, "TemporalPositionIndex"),
        )


def _facts(dataset: Dataset, kind: str) -> Facts:
    enhanced = kind in ENHANCED
    groups = [
        *_items(dataset, "SharedFunctionalGroupsSequence")[:1],
        *_items(dataset, "PerFrameFunctionalGroupsSequence")[:1],
    ]
    timing = _group(groups, "MRTimingAndRelatedParametersSequence") if enhanced else dataset
    echo = _group(groups, "MREchoSequence") if enhanced else dataset
    plane = _group(groups, "PixelMeasuresSequence") if enhanced else dataset
    kinds = _group(groups, "MRImageFrameTypeSequence")
    across = _numbers(plane, "PixelSpacing", 2) or (0.0, 0.0)
    step = _number(plane, "SpacingBetweenSlices") or _number(plane, "SliceThickness") or 0.0
    return Facts(
        description=printable(_text(dataset, "SeriesDescription")),
        protocol=printable(_text(dataset, "ProtocolName")),
        sequence=printable(_text(dataset, "PulseSequenceName" if enhanced else "SequenceName")),
        number=_whole(dataset, "SeriesNumber"),
        modality=printable(_text(dataset, "Modality").upper()),
        image_type=_words(dataset, "ImageType") or _words(kinds, "FrameType"),
        scanning=_scanning(dataset, groups) if enhanced else _words(dataset, "ScanningSequence"),
        variant=_words(dataset, "SequenceVariant"),
        acquisition=_text(dataset, "MRAcquisitionType").upper(),
        tr=_number(timing, "RepetitionTime"),
        te=_number(echo, "EffectiveEchoTime" if enhanced else "EchoTime"),
        ti=_inversion(dataset, groups) if enhanced else _number(dataset, "InversionTime"),
        flip=_number(timing, "FlipAngle"),
        contrast=printable(_contrast(dataset)),
        body_part=printable(_text(dataset, "BodyPartExamined").upper()),
        burned_in=_text(dataset, "BurnedInAnnotation").upper() == "YES",
        secondary_capture=kind.startswith(_SECONDARY),
        shape=(_whole(dataset, "Rows") or 0, _whole(dataset, "Columns") or 0),
        spacing_mm=(across[1], across[0], abs(step)),
    )


def _scanning(dataset: Dataset, groups: Sequence[Dataset]) -> tuple[str, ...]:
    """Return classic MR's words for enhanced MR's pulse sequence."""
    echo = _text(dataset, "EchoPulseSequence").upper()
    classic = {"SPIN": ("SE",), "GRADIENT": ("GR",), "BOTH": ("SE", "GR")}.get(echo, ())
    inverted = _text(_group(groups, "MRModifierSequence"), "InversionRecovery").upper() == "YES"
    planar = _text(dataset, "EchoPlanarPulseSequence").upper() == "YES"
    return (*classic, *(("IR",) if inverted else ()), *(("EP",) if planar else ()))


def _inversion(dataset: Dataset, groups: Sequence[Dataset]) -> float | None:
    modifier = _group(groups, "MRModifierSequence")
    values = _numbers(modifier, "InversionTimes", 0)
    return values[0] if values else _number(dataset, "InversionTime")


def _contrast(dataset: Dataset) -> str:
    for item in _items(dataset, "ContrastBolusAgentSequence"):
        if meaning := _text(item, "CodeMeaning") or _text(item, "ContrastBolusAgent"):
            return meaning
    return _text(dataset, "ContrastBolusAgent")


def _time_s(dataset: Dataset) -> float | None:
    """Return when the acquisition began, in seconds since the beginning of DICOM's calendar."""
    moment = _text(dataset, "AcquisitionDateTime")
    if len(moment) < 14:
        for kind in ("Acquisition", "Series", "Study"):
            time = _text(dataset, f"{kind}Time")
            if len(time) >= 6:
                moment = (_text(dataset, f"{kind}Date") or _text(dataset, "StudyDate")) + time
                break
    try:
        began = dt.datetime.strptime(moment[:14], "%Y%m%d%H%M%S")
    except ValueError:
        return None
    return (began - dt.datetime(1900, 1, 1)).total_seconds()


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    found = dataset.get(keyword)
    return list(found) if isinstance(found, pydicom.Sequence) else []


def _group(groups: Sequence[Dataset], keyword: str) -> Dataset:
    """Return the first item of the functional group ``keyword``, empty when there is none."""
    return next((items[0] for one in groups if (items := _items(one, keyword))), Dataset())


def _text(dataset: Dataset, keyword: str) -> str:
    found = dataset.get(keyword)
    if found is None:
        return ""
    if isinstance(found, MultiValue):
        found = " ".join(map(str, found))
    return str(found).replace("\0", "").strip()


def _words(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    found: Any = dataset.get(keyword)
    if not found:
        return ()
    parts = found if isinstance(found, MultiValue) else str(found).split("\\")
    return tuple(printable(str(part).strip().upper()) for part in parts)


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return ``count`` finite numbers, or as many as there are for 0; None otherwise."""
    found: Any = dataset.get(keyword)
    if found is None or found == "":
        return None
    try:
        listed = found if isinstance(found, MultiValue | list | tuple) else [found]
        values = tuple(float(one) for one in listed)
    except (TypeError, ValueError):
        return None
    right = len(values) == count if count else bool(values)
    return values if right and all(map(math.isfinite, values)) else None


def _triple(dataset: Dataset, keyword: str) -> Triple | None:
    found = _numbers(dataset, keyword, 3)
    return (found[0], found[1], found[2]) if found else None


def _number(dataset: Dataset, keyword: str) -> float | None:
    found = _numbers(dataset, keyword, 1)
    return found[0] if found else None


def _whole(dataset: Dataset, keyword: str) -> int | None:
    found = _number(dataset, keyword)
    return int(found) if found is not None else None
