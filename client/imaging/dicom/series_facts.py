"""The technical facts of a series, as far as they tell its sequence. None of them is a person's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """What a scanner wrote about how it acquired a series.

    Times ``tr``, ``te`` and ``ti`` in milliseconds, ``flip`` in degrees, ``spacing_mm`` along
    columns, rows and slices, ``started_s`` in seconds since the study's first midnight; None or
    empty where nothing is said. ``contrast`` is the contrast agent as it was typed.
    """

    description: str = ""
    protocol: str = ""
    sequence: str = ""
    number: int | None = None
    modality: str = "MR"
    image_type: tuple[str, ...] = ()
    scanning: tuple[str, ...] = ()
    variant: tuple[str, ...] = ()
    acquisition: str = ""
    tr: float | None = None
    te: float | None = None
    ti: float | None = None
    flip: float | None = None
    contrast: str = ""
    body_part: str = ""
    burned_in: bool = False
    secondary_capture: bool = False
    shape: tuple[int, int] = (0, 0)
    spacing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    slices: int = 0
    volumes: int = 1
    orientations: int = 1
    started_s: float | None = None

    @property
    def extent_mm(self) -> float:
        """The shortest side of what the series covers."""
        sides = (self.shape[1], self.shape[0], self.slices)
        return min(n * step for n, step in zip(sides, self.spacing_mm, strict=True))

    @property
    def anisotropy(self) -> float:
        """Longest over shortest side of a voxel; 1 is isotropic."""
        return max(self.spacing_mm) / min(self.spacing_mm) if all(self.spacing_mm) else float("inf")
