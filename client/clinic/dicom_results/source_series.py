"""The series that a result is drawn on: its headers, and where each of its frames lies in it.

Invariant: ``Source.slices[n]`` is the slice of the volume that frame n shows, n counting as
highdicom does: instances in the order of ``datasets``, or the frames of the one enhanced object.
That is checked against each frame's own position, not inferred from an order: a mask cannot land on
the wrong slice or be flipped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.imaging.case import Image
from client.imaging.dicom.files_and_zips import contents
from client.imaging.dicom.headers import ENHANCED
from common.errors import CaseError

_RAS_TO_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_VOXEL: Final = 0.05  # of a voxel; positions are written rounded
_EMPTY_IF_ABSENT: Final = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "AccessionNumber", "StudyID", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip

_FORMS: Final = {
    "PatientSex": re.compile(r"[MFO]"),
    "PatientBirthDate": re.compile(r"[0-9]{8}"),
    "StudyDate": re.compile(r"[0-9]{8}"),
    "StudyTime": re.compile(r"[0-9]{2}([0-9]{2}([0-9]{2}(\.[0-9]{1,6})?)?)?"),
}
"""What must have this form in a new object; scanners and anonymisers write other things."""


@dataclass(frozen=True, eq=False)
class Source:
    """Headers without pixels, and the slice that each frame shows."""

    datasets: tuple[Dataset, ...]
    slices: tuple[int, ...]

    @property
    def first(self) -> Dataset:
        return self.datasets[0]

    def frames(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Return ``volume`` (column, row, slice) as (frame, row, column)."""
        return np.ascontiguousarray(volume.transpose(2, 1, 0)[list(self.slices)])


def read_source(image: Image, affine: NDArray[np.float64], shape: tuple[int, ...]) -> Source:
    """Read the headers of the DICOM series ``image``, whose voxels lie on ``affine`` (RAS, mm).

    Raises CaseError (``case-file``, ``case-zip``), or ``case-changed`` where the series does not
    lie on that grid of ``shape`` (columns, rows, slices).
    """
    datasets = [
        _completed(pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=True))
        for _, data in contents(image.parts)
    ]
    to_index = np.linalg.inv(_RAS_TO_LPS @ affine)
    slices = []
    for position, turn in _planes(datasets):
        index = to_index @ [*position, 1.0]
        across, down = (to_index[:3, :3] @ np.array(side) for side in (turn[:3], turn[3:]))
        flat = abs(across[1:]).max() < abs(across[0]) * _SAME_VOXEL
        flat &= abs(down[[0, 2]]).max() < abs(down[1]) * _SAME_VOXEL
        ahead = across[0] > 0 and down[1] > 0
        number = round(float(index[2]))
        if not (flat and ahead) or abs(index[:3] - [0, 0, number]).max() > _SAME_VOXEL:
            raise _changed(image)
        slices.append(number)
    size = (int(datasets[0].Columns), int(datasets[0].Rows))
    if size != shape[:2] or sorted(slices) != list(range(shape[2])):
        raise _changed(image)
    return Source(tuple(datasets), tuple(slices))


def _planes(datasets: Sequence[Dataset]) -> Iterator[tuple[list[float], list[float]]]:
    """Yield position and orientation of each frame."""
    if datasets[0].SOPClassUID not in ENHANCED:
        for one in datasets:
            yield list(one.ImagePositionPatient), list(one.ImageOrientationPatient)
        return
    for frame in datasets[0].PerFrameFunctionalGroupsSequence:
        groups = (frame, *datasets[0].SharedFunctionalGroupsSequence)
        place = next(one.PlanePositionSequence for one in groups if "PlanePositionSequence" in one)
        turn = next(
            one.PlaneOrientationSequence for one in groups if "PlaneOrientationSequence" in one
        )
        yield list(place[0].ImagePositionPatient), list(turn[0].ImageOrientationPatient)


def _completed(dataset: Dataset) -> Dataset:
    """Leave out private tags; make empty what the standard asks for and is absent or broken."""
    dataset.remove_private_tags()
    for keyword in _EMPTY_IF_ABSENT:
        form = _FORMS.get(keyword)
        if keyword not in dataset or (form and not form.fullmatch(str(dataset[keyword].value))):
            setattr(dataset, keyword, "")
    if "FrameOfReferenceUID" not in dataset:  # as the series was read: it has one of its own
        dataset.FrameOfReferenceUID = dataset.SeriesInstanceUID
    return dataset


def _changed(image: Image) -> CaseError:
    return CaseError(
        f"{image.title} does not lie on the grid that was segmented.",
        do="Segment the case again; if that does not help, its slices are not even.",
        code="case-changed",
    )
