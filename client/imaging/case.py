"""A case: the sequences of one patient at one time point, and perhaps a tumour mask.

A case says where things lie; it holds no voxel. Invariant: the keys of ``images`` are of
``common.regions.MODALITIES``, in that order, t1c or t2f among them; what is not there is missing.
``patient`` and ``session`` come from file names, the hospital's manifest or DICOM's PatientID and
StudyDate; they never leave the hospital.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from client.imaging.missing_sequences import NEEDED
from common.regions import MODALITIES


@dataclass(frozen=True, order=True)
class Part:
    """One file of a DICOM series: ``path`` itself, or ``member`` of the zip file there."""

    path: Path
    member: str = ""


@dataclass(frozen=True)
class Image:
    """One sequence: a 3-D file, channel ``index`` of a 4-D file, or a DICOM series.

    A series has ``parts``, its files, and ``series``, its number at the scanner; ``path`` is then
    the folder or zip file that holds it.
    """

    path: Path
    index: int | None = None
    parts: tuple[Part, ...] = ()
    series: str = ""

    @property
    def title(self) -> str:
        """What messages inside the hospital call it."""
        return f"Series {self.series} in {self.path}" if self.parts else str(self.path)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files on the disk that hold it, each once."""
        return tuple(dict.fromkeys(part.path for part in self.parts)) or (self.path,)


@dataclass(frozen=True)
class Case:
    """One scan session of one patient.

    ``label_map`` is the coding of the mask's values (``client.imaging.label_codings``);
    ``label_settled`` is false where nothing said that it is the right one.
    """

    patient: str
    session: str
    images: Mapping[str, Image] = field(hash=False)
    label: Path | None
    label_map: Mapping[int, int] = field(hash=False)
    label_settled: bool = True
    notes: tuple[str, ...] = ()
    """What a person should know about how the sequences were chosen."""
    reviewed: bool = False
    """The mask is a model's that a person accepted or corrected (``client.cohort.reviewed_cases``).
    """

    @property
    def name(self) -> str:
        """Patient and session in one word, for messages inside the hospital."""
        return f"{self.patient}-{self.session}" if self.session else self.patient

    @property
    def missing(self) -> tuple[str, ...]:
        """The sequences that the case lacks."""
        return tuple(name for name in MODALITIES if name not in self.images)

    @property
    def reference(self) -> str:
        """The sequence that the others are laid over: t1c if it is there, else t2f."""
        return next(name for name in NEEDED if name in self.images)
