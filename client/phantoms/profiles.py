"""What distinguishes one phantom hospital from another: its scanner and its patients.

A profile is public and frozen: it holds physics and case mix, never a random state. The named
profiles differ in tissue contrast, noise, resolution and tumour appearance, so that a network
trained on ``reference`` alone does worse at the others.

Out of scope: drawing patients and images from a profile (``cases``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

Kind = Literal["gbm", "solid", "lowgrade", "multifocal", "healthy"]
"""Ring-enhancing, solidly enhancing, little or no enhancement, several foci, no tumour."""

KINDS: Final[tuple[Kind, ...]] = ("gbm", "solid", "lowgrade", "multifocal", "healthy")


@dataclass(frozen=True)
class Timing:
    """A pulse sequence: spin echo without ``ti_ms``, inversion recovery with it."""

    tr_ms: float
    te_ms: float
    ti_ms: float | None = None


@dataclass(frozen=True)
class Profile:
    """One hospital. The slices of ``slice_mm`` are in the order of ``common.regions.MODALITIES``.

    ``snr`` is that of white matter at a 3.75 mm voxel edge; ``bias`` the standard deviation of the
    logarithm of the coil's field; ``uptake_mm`` the contrast agent in enhancing tumour in mmol/l;
    ``oedema_contrast`` scales the extra water of oedema and infiltrated tissue (1 is typical);
    ``mix`` gives a weight for each kind; ``lobes`` weights frontal, temporal, parietal, occipital;
    ``age`` runs from 0 (young) to 1 (atrophy, wide ventricles, white-matter lesions);
    ``follow_up`` is the probability that a patient was scanned twice.
    """

    name: str
    field_t: float
    t1: Timing
    t2: Timing
    flair: Timing
    slice_mm: tuple[float, float, float, float]
    snr: float
    bias: float
    intensity: float
    strip: Literal["clean", "loose", "tight"]
    mix: Mapping[Kind, float]
    tumour_ml: tuple[float, float]
    lobes: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.5)
    uptake_mm: float = 0.5
    oedema_contrast: float = 1.0
    age: float = 0.4
    follow_up: float = 0.1

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON values."""
        values = {k: v for k, v in self.__dict__.items() if k not in ("t1", "t2", "flair", "mix")}
        timings = {k: asdict(getattr(self, k)) for k in ("t1", "t2", "flair")}
        values |= {k: list(v) for k, v in values.items() if isinstance(v, tuple)}
        return {**values, **timings, "mix": dict(self.mix)}


_NAMED = (
    Profile(
        name="reference",
        field_t=3.0,
        t1=Timing(1900, 3, 900),
        t2=Timing(5000, 100),
        flair=Timing(9000, 120, 2450),
        slice_mm=(1, 1, 1, 1),
        snr=40,
        bias=0.10,
        intensity=800,
        strip="clean",
        mix={"gbm": 0.65, "solid": 0.15, "lowgrade": 0.1, "multifocal": 0.1},
        tumour_ml=(30, 140),
        age=0.35,
    ),
    Profile(
        name="3t-research",
        field_t=3.0,
        t1=Timing(2300, 3, 1000),
        t2=Timing(3200, 300),  # a long-echo volumetric T2: little contrast but water
        flair=Timing(5000, 260, 1700),
        slice_mm=(1, 1, 1, 1),
        snr=32,
        bias=0.18,
        intensity=1200,
        strip="clean",
        mix={"gbm": 0.7, "solid": 0.15, "lowgrade": 0.15},
        tumour_ml=(35, 150),
        uptake_mm=0.4,
        oedema_contrast=0.7,
        age=0.25,
        follow_up=0.25,
    ),
    Profile(
        name="1.5t-community",
        field_t=1.5,
        t1=Timing(550, 12),
        t2=Timing(4800, 90),
        flair=Timing(8500, 115, 2050),
        slice_mm=(5, 3, 5, 5),
        snr=18,
        bias=0.28,
        intensity=300,
        strip="clean",
        mix={"gbm": 0.55, "solid": 0.25, "multifocal": 0.2},
        tumour_ml=(20, 100),
        lobes=(0.6, 1.6, 1.0, 0.5),
        uptake_mm=0.3,
        oedema_contrast=0.85,
        age=0.7,
    ),
    Profile(
        name="3t-lowgrade",
        field_t=3.0,
        t1=Timing(650, 10),
        t2=Timing(6000, 110),
        flair=Timing(11000, 140, 2800),
        slice_mm=(1, 1, 3, 3),
        snr=30,
        bias=0.22,
        intensity=2500,
        strip="loose",
        mix={"gbm": 0.2, "solid": 0.1, "lowgrade": 0.7},
        tumour_ml=(20, 100),
        lobes=(1.8, 0.7, 0.5, 0.4),
        uptake_mm=0.35,
        oedema_contrast=0.8,
        age=0.1,
        follow_up=0.3,
    ),
    Profile(
        name="1.5t-screening",
        field_t=1.5,
        t1=Timing(480, 15),
        t2=Timing(3500, 80),
        flair=Timing(8000, 105, 1950),
        slice_mm=(6, 4, 6, 6),
        snr=14,
        bias=0.35,
        intensity=120,
        strip="tight",
        mix={"gbm": 0.4, "solid": 0.25, "multifocal": 0.2, "healthy": 0.15},
        tumour_ml=(15, 70),
        lobes=(0.7, 0.8, 1.3, 1.2),
        uptake_mm=0.28,
        oedema_contrast=0.9,
        age=0.8,
        follow_up=0.0,
    ),
)

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType({p.name: p for p in _NAMED})
