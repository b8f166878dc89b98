"""One phantom patient: from (seed, site, number) to four images and a label map.

Everything is a function of its arguments: each part of a patient (body, tumour, course, scan)
draws from its own stream, so that no case depends on which others were made before it. The
profile's name is part of the streams: two hospitals never share a patient.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.phantoms.anatomy import grow_anatomy, load_template
from client.phantoms.profiles import KINDS, Kind, Profile
from client.phantoms.random_fields import Grid
from client.phantoms.scanner import mix_tissue, scan, strip_skull
from client.phantoms.tumour import grow_tumour, plan_tumour
from common.errors import CaseError

SIZES = (24, 240)
"""Smallest and largest matrix; 240 is the 1 mm grid of BraTS, 64 has voxels of 3.75 mm."""

_GOLDEN = (np.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class PhantomCase:
    """One scan session in LPS orientation.

    ``images`` maps each modality to int16 (X, Y, Z), zero outside the brain mask; ``labels`` is
    uint8 of the same shape with the values of ``common.regions.LABELS``.
    """

    images: Mapping[str, NDArray[np.int16]]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    kind: Kind


def make_case(
    profile: Profile, *, size: int, seed: int, number: int, site: int = 0, session: int = 0
) -> PhantomCase:
    """Return patient ``number`` of a site at time point ``session``.

    ``size`` is the number of voxels along x and y of the 240 x 240 x 155 mm field. Sessions of a
    patient share the body and the tumour's place and shape; its volume and the scan differ.
    Raises CaseError for a size out of ``SIZES``, StateError when the template is not installed.
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise CaseError(
            f"A phantom of size {size} cannot be made.",
            do=f"Choose a size from {SIZES[0]} to {SIZES[1]}.",
            code="phantom-size",
        )
    patient = Patient(profile, seed, site, number)
    grid = Grid(size)
    template = load_template(grid.spacing_mm)
    kind = patient.kind()
    body = patient.stream("body")
    age = float(np.clip(body.normal(profile.age, 0.15), 0, 1))
    plan = plan_tumour(profile, kind, template, patient.stream("plan"))
    anatomy = grow_anatomy(template, grid, body, age=age, push=plan.push if plan else None)
    labels = np.zeros(grid.shape, np.uint8)
    growths = {}
    if plan is not None:
        growth = 1.0 if session == 0 else patient.stream("course", session).uniform(0.6, 1.5)
        tumour = grow_tumour(plan, anatomy, grid, patient.stream("growth"), growth=growth)
        labels, growths = tumour.labels, tumour.tissue
    tissue = mix_tissue(anatomy, growths, grid, patient.stream("vessels"))
    scanner = patient.stream("scan", session)
    brain = strip_skull(anatomy, profile, grid, scanner)
    images = scan(tissue, brain, profile, grid, scanner)
    return PhantomCase(
        images={name: np.ascontiguousarray(image[::-1, ::-1]) for name, image in images.items()},
        labels=np.ascontiguousarray(np.where(brain, labels, 0).astype(np.uint8)[::-1, ::-1]),
        affine=grid.affine(),
        kind=kind,
    )


def session_count(profile: Profile, *, seed: int, number: int, site: int = 0) -> int:
    """Return how many times the patient was scanned: 1 or 2."""
    stream = Patient(profile, seed, site, number).stream("visits")
    return 2 if stream.random() < profile.follow_up else 1


@dataclass(frozen=True)
class Patient:
    """Where the random numbers of one patient come from."""

    profile: Profile
    seed: int
    site: int
    number: int

    def stream(self, purpose: str, session: int = 0) -> np.random.Generator:
        """Return the random numbers for one purpose, independent of all others."""
        return np.random.default_rng([*self._site_key(purpose), self.number, session])

    def kind(self) -> Kind:
        """Return the kind of tumour; successive numbers spread evenly over the case mix."""
        start = np.random.default_rng(self._site_key("kind")).random()
        weights = np.array([self.profile.mix.get(kind, 0.0) for kind in KINDS])
        turn = (start + self.number * _GOLDEN) % 1.0
        return KINDS[int(np.searchsorted(np.cumsum(weights / weights.sum()), turn, side="right"))]

    def _site_key(self, purpose: str) -> list[int]:
        words = (self.profile.name, purpose)
        return [self.seed, self.site, *(zlib.crc32(word.encode()) for word in words)]
