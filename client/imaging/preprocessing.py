"""From a case's files to the network's input, the same for training and for the clinic.

Read, check that the files fit together, turn to RAS, find the brain, crop to it, resample to the
study's spacing, clip and z-score each sequence inside the brain. ``digest`` ties a model to these
steps. Invariants: the crop and the intensities depend on the images alone, never on the mask of
the tumour; what ``prepare`` returns is finite and 0 outside the brain.

A sequence that is missing is ``absence.ABSENT`` in the brain, 0 outside, and ``history`` names it;
brain and crop come from those that are there.

With ``input = "brats"`` input is co-registered and skull-stripped, and a head that is plainly not
stripped is refused. With ``"raw"`` each sequence may lie on its own grid in a whole head:
``client.imaging.raw_preprocessing`` corrects, registers and finds the brain, and the grid of the
contrast-enhanced T1 (without one, of the FLAIR) takes the place of the common one. Out of scope:
atlases, denoising.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray
from scipy import ndimage

from client.imaging import grid, label_codings, raw_preprocessing
from client.imaging.case import Case
from client.imaging.image_reading import read_image
from client.imaging.missing_sequences import ABSENT
from client.imaging.nifti import Volume, read_volume
from common.errors import CaseError
from common.regions import MODALITIES, labels_to_regions, regions_to_labels
from common.study.protocol import (
    PREPROCESSING_ALGORITHMS,
    PreprocessingOptions,
    preprocessing_digest,
)

_MOST_NONZERO: Final = 0.75  # a stripped brain fills about a fifth of its field
_BACKGROUND_SHARE: Final = 0.95
_BACKGROUND_SPREAD: Final = 1e-3
_WIDEST_BRAIN_MM: Final = 500.0
_SAME_GRID: Final = "Register the sequences and the mask to one grid first."


def digest(options: PreprocessingOptions) -> str:
    """Return the SHA-256 (hex) that names this preprocessing with these options."""
    return preprocessing_digest(options)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case as the network sees it.

    ``image`` (4, X, Y, Z) in the order of MODALITIES, RAS+, z-scored in the brain, 0 outside, and
    ``absence.ABSENT`` in the brain where a sequence is missing;
    ``labels`` (X, Y, Z) with the values of ``common.regions.LABELS``, None without a mask;
    ``affine`` (4, 4) of that grid in mm; ``native_shape`` and ``native_affine`` the input's grid,
    of raw input that of its reference (``Case.reference``); ``history`` one record for each step.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    native_shape: tuple[int, int, int]
    native_affine: NDArray[np.float64]
    history: tuple[dict[str, Any], ...]

    @property
    def input_sha256(self) -> str:
        """SHA-256 (hex) of what the network reads and of where it lies; the mask is no part of it.

        Of one case it is the same in training and in the clinic, or one of them is at fault.
        """
        sha256 = hashlib.sha256(repr(self.image.shape).encode())
        sha256.update(np.ascontiguousarray(self.image, "<f4").data)
        sha256.update(np.ascontiguousarray(self.affine, "<f8").data)
        return sha256.hexdigest()

    @property
    def missing(self) -> tuple[str, ...]:
        """The sequences that the case lacks, as ``history`` says."""
        records = (one for one in self.history if one["step"] == "missing")
        return tuple(str(name) for one in records for name in one["sequences"])


def prepare(
    case: Case, options: PreprocessingOptions, *, read: Mapping[str, Volume] | None = None
) -> Prepared:
    """Read ``case`` and make it the network's input.

    ``read`` holds its sequences where they were read before, as a service is given them.

    Raises CaseError: what ``read_volume`` raises, or code ``case-grid`` (files on different
    grids), ``case-label`` (a mask value that means nothing), ``case-not-stripped``,
    ``case-spacing`` (a brain wider than half a metre), ``case-contrast`` (a sequence that is flat
    inside the brain); of raw input also what ``raw.align`` raises.
    """
    volumes = read or {name: read_image(image) for name, image in case.images.items()}
    titles = {name: image.title for name, image in case.images.items()}
    if options.input == "raw":
        aligned = raw_preprocessing.align(volumes, titles, case.name)
    else:
        aligned = _as_it_is(volumes, case)
    first, native = titles[aligned.name], volumes[aligned.name]
    affine = aligned.reference.affine
    brain = aligned.brain

    spacing = grid.spacing_of(affine)
    x, y, z = (int(n) for n in np.ceil(options.margin_mm / spacing - 1e-6))
    box = grid.bounding_box(brain, (x, y, z))
    width_mm = max((side.stop - side.start) * step for side, step in zip(box, spacing, strict=True))
    if width_mm > _WIDEST_BRAIN_MM:
        raise CaseError(
            f"The brain of {case.name} would be {width_mm:.0f} mm wide.",
            do=f"The voxel size in {first} must be wrong; correct its header.",
            code="case-spacing",
        )
    brain = np.ascontiguousarray(brain[box])
    resampling = grid.Resampling(brain.shape, grid.crop_affine(affine, box), options.spacing_mm)
    inside = resampling.mask(brain)
    if not inside.any():
        raise CaseError(
            f"{case.name} shows no brain: its {np.count_nonzero(brain)} voxels that are not 0 "
            f"vanish at {options.spacing_mm:g} mm.",
            do="Check the files in a viewer and export them again.",
            code="case-empty",
        )

    prepared = np.zeros((len(MODALITIES), *inside.shape), np.float32)
    for channel, name in enumerate(MODALITIES):
        if name not in case.images:
            prepared[channel][inside] = ABSENT
            continue
        resampled, seen = _sampled(aligned, name, box, resampling)
        seen &= inside
        prepared[channel][seen] = _z_score(resampled[seen], options.clip_percentiles, titles[name])
    labels = None
    if case.label is not None:
        drawn_on = _drawn_on(case, volumes, aligned)
        values = _labels(case, volumes[drawn_on], titles[drawn_on])
        turned = grid.to_canonical(values, volumes[drawn_on].affine)
        if drawn_on in aligned.moved:
            volume = aligned.volumes[drawn_on]
            back = raw_preprocessing.through(volume, aligned.motions[drawn_on], resampling.affine)
            labels = _by_region(
                turned,
                lambda region: (
                    grid.sample(
                        region.astype(np.float32), back, resampling.shape, smooth=False, outside=0.0
                    )
                    >= 0.5
                ),
            )
        else:
            labels = _resample_labels(np.ascontiguousarray(turned[box]), resampling)
    nx, ny, nz = native.data.shape
    return Prepared(
        image=prepared,
        labels=labels,
        affine=resampling.affine,
        native_shape=(nx, ny, nz),
        native_affine=native.affine,
        history=(
            {
                "step": "algorithm",
                "name": PREPROCESSING_ALGORITHMS[options.input],
                "digest": digest(options),
            },
            *(
                [{"step": "missing", "sequences": list(case.missing), "value": ABSENT}]
                if case.missing
                else []
            ),
            *aligned.history,
            {
                "step": "crop",
                "start": [int(side.start) for side in box],
                "stop": [int(side.stop) for side in box],
                "margin_mm": options.margin_mm,
            },
            {
                "step": "resample",
                "from_mm": [round(float(n), 6) for n in spacing],
                "to_mm": options.spacing_mm,
                "interpolated": resampling.changes,
            },
            {"step": "z-score", "clip_percentiles": list(options.clip_percentiles)},
        ),
    )


def to_native(probabilities: NDArray[np.float32], prepared: Prepared) -> NDArray[np.float32]:
    """Map ``probabilities`` (C, X, Y, Z) on the prepared grid to (C, *native_shape).

    Exact when spacings agree, else linear; 0 outside the prepared grid. Raises ValueError when
    the shape is not the prepared image's.
    """
    if probabilities.shape[1:] != prepared.image.shape[1:]:
        raise ValueError(f"shape {probabilities.shape} does not fit {prepared.image.shape}")
    native = prepared.native_affine
    target = grid.canonical_affine(native, prepared.native_shape)
    shape = grid.to_canonical(np.broadcast_to(False, prepared.native_shape), native).shape
    to_prepared = np.linalg.inv(prepared.affine) @ target
    scale, offset = np.diag(to_prepared)[:3], to_prepared[:3, 3]
    # Native voxels whose centre lies within the prepared voxels' full width.
    sides = np.array(prepared.image.shape[1:])
    start = np.maximum(0, np.ceil((-0.5 - offset) / scale - 1e-4)).astype(int)
    stop = np.minimum(shape, np.floor((sides - 0.5 - offset) / scale + 1e-4) + 1).astype(int)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    moved = scale * start + offset
    exact = np.abs(scale - 1).max() < 1e-6 and np.abs(moved).max() < 1e-3

    result = np.zeros((len(probabilities), *prepared.native_shape), np.float32)
    for channel, values in enumerate(probabilities):
        turned = np.zeros(shape, np.float32)
        if exact:
            turned[x, y, z] = values
        else:
            turned[x, y, z] = grid.linear(
                np.asarray(values, np.float32),
                scale=scale,
                offset=moved,
                shape=tuple(int(n) for n in stop - start),
            )
        result[channel] = grid.from_canonical(turned, native)
    return result


def _as_it_is(volumes: Mapping[str, Volume], case: Case) -> raw_preprocessing.Aligned:
    """Return co-registered, stripped sequences as what they are: already aligned."""
    first, *others = names = [name for name in MODALITIES if name in volumes]
    native = volumes[first]
    for name in others:
        _check_grid(volumes[name], case.images[name].title, native, case.images[first].title)
    affine = grid.canonical_affine(native.affine, native.data.shape)
    images, backgrounds = {}, {}
    for name in names:
        data, background = stripped_background(volumes[name].data)
        images[name] = Volume(grid.to_canonical(data, native.affine), affine)
        if background is not None:
            backgrounds[name] = background
    return raw_preprocessing.Aligned(
        name=first,
        volumes=images,
        motions={},
        brain=_brain([image.data for image in images.values()], case),
        history=(
            {"step": "reorient", "from": "".join(aff2axcodes(native.affine)), "to": "RAS"},
            *([_background_warning(backgrounds)] if backgrounds else []),
            {"step": "brain", "rule": "nonzero in any sequence, largest part, holes filled"},
        ),
    )


def stripped_background(data: NDArray[np.float32]) -> tuple[NDArray[np.float32], float | None]:
    """Return ``data`` with a background of 0, and the value that it had; None where it was 0.

    Programs leave -0.9 around a brain that they scored, or 1e-4 of ringing. That is background
    where nearly all the field's outermost voxels have one value, to a thousandth of the range; the
    values then count from it. Air around a head that was not stripped is noisier by far.
    """
    faces = np.concatenate(
        [np.take(data, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    )
    if np.count_nonzero(faces) < _BACKGROUND_SHARE * faces.size:
        return data, None
    value = float(np.median(faces))
    range_ = float(np.percentile(data, 99.9)) - value
    near = _BACKGROUND_SPREAD * range_
    if not range_ > 0 or np.mean(np.abs(faces - value) <= near) < _BACKGROUND_SHARE:
        return data, None
    counted = data - np.float32(value)
    counted[np.abs(counted) <= near] = 0
    return counted, value


def _background_warning(backgrounds: Mapping[str, float]) -> dict[str, Any]:
    said = ", ".join(f"{value:.3g} in {name}" for name, value in backgrounds.items())
    return {
        "step": "quality",
        "warnings": [
            f"The background is not 0 but {said}; it was taken as background, to "
            f"{_BACKGROUND_SPREAD:g} of the range."
        ],
    }


def _sampled(
    aligned: raw_preprocessing.Aligned, name: str, box: grid.Box, resampling: grid.Resampling
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return a sequence on the network's grid, and where it was seen there."""
    volume = aligned.volumes[name]
    if name not in aligned.moved:
        resampled = resampling.image(np.ascontiguousarray(volume.data[box]))
        return resampled, np.ones(resampling.shape, bool)
    to_volume = raw_preprocessing.through(volume, aligned.motions[name], resampling.affine)
    resampled = grid.sample(volume.data, to_volume, resampling.shape, smooth=True)
    return resampled, grid.within(to_volume, volume.data.shape, resampling.shape)


def _drawn_on(case: Case, volumes: Mapping[str, Volume], aligned: raw_preprocessing.Aligned) -> str:
    """Return the sequence whose grid the mask lies on; the reference where it is on none."""
    if case.label is None or not aligned.moved:
        return aligned.name
    mask = read_volume(case.label, empty_ok=True)
    for name in (aligned.name, *aligned.moved):
        if _grid_fault(_turned(mask, volumes[name]), volumes[name]) is None:
            return name
    return aligned.name


def _check_grid(volume: Volume, title: str, reference: Volume, other: str) -> None:
    fault = _grid_fault(volume, reference)
    if fault is None:
        return
    raise CaseError(
        f"{title} and {other} are on different grids: {fault}.",
        do=_SAME_GRID,
        code="case-grid",
    )


def _grid_fault(volume: Volume, reference: Volume) -> str | None:
    if volume.data.shape != reference.data.shape:
        return f"{volume.data.shape} voxels against {reference.data.shape}"
    apart_mm = grid.apart_mm(volume.affine, reference.affine, volume.data.shape)
    if apart_mm > grid.SAME_VOXELS * min(reference.spacing_mm):
        return f"their corners lie up to {apart_mm:.3g} mm apart"
    return None


def _check_mask_grid(mask: Volume, path: Path, reference: Volume, other: str) -> None:
    """Raise CaseError (``case-grid``) unless a mask lies on the grid of the image ``other``."""
    if (
        mask.data.shape == reference.data.shape
        and _grid_fault(mask, reference) is not None
        and grid.is_default(mask.affine, reference.affine)
    ):
        raise CaseError(
            f"{path} has lost its place in space: its header holds what a program writes that "
            f"knows no better. It has as many voxels as {other}, each way.",
            do="If it was drawn on that image, copy the image's header onto it, for instance with "
            f"FSL's `fslcpgeom {other} {path}`, and look at both in a viewer.",
            code="case-grid",
        )
    _check_grid(mask, str(path), reference, other)


def _brain(images: list[NDArray[np.float32]], case: Case) -> NDArray[np.bool_]:
    """Return the largest 6-connected part of what any sequence shows, with its holes filled."""
    nonzero = images[0] != 0
    for image in images[1:]:
        nonzero |= image != 0
    share = np.count_nonzero(nonzero) / nonzero.size
    if share > _MOST_NONZERO:
        raise CaseError(
            f"{case.name} is not skull-stripped: {share:.0%} of its field is not 0.",
            do="This study takes stripped input: extract the brain and set all else to 0. gliofed "
            'does that itself in a study whose protocol has preprocessing.input = "raw".',
            code="case-not-stripped",
        )
    box = grid.bounding_box(nonzero, (0, 0, 0))
    parts, count = ndimage.label(nonzero[box])
    if count > 1:
        parts = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    # A hole is background that does not reach the border of the box, padded so that it is one.
    background, _ = ndimage.label(np.pad(parts == 0, 1, constant_values=True))
    brain = np.zeros(nonzero.shape, bool)
    brain[box] = (background != background[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return brain


def _z_score(
    values: NDArray[np.float32], percentiles: tuple[float, float], title: str
) -> NDArray[np.float32]:
    low, high = np.percentile(values, percentiles)
    clipped = np.clip(values, low, high)
    mean, deviation = clipped.mean(dtype=np.float64), clipped.std(dtype=np.float64)
    if not deviation > 1e-6 * max(1e-6, abs(mean)):
        raise CaseError(
            f"{title} is flat: inside the brain nearly all voxels have the value {mean:.4g}.",
            do="Check that the file is the sequence that its name says.",
            code="case-contrast",
        )
    scored: NDArray[np.float32] = ((clipped - mean) / deviation).astype(np.float32)
    return scored


def _labels(case: Case, reference: Volume, other: str) -> NDArray[np.uint8]:
    """Read the tumour mask of a case that has one, into the values of LABELS; raise CaseError."""
    path = case.label or Path()
    mask = read_volume(path, empty_ok=True)
    volume = _turned(mask, reference)
    _check_mask_grid(volume, path, reference, other)
    return label_codings.decode(volume.data, case.label_map, path, settled=case.label_settled)


def _turned(mask: Volume, reference: Volume) -> Volume:
    """Flip and permute a mask's axes to those of ``reference`` where it lies on the same voxels.

    A mask that was drawn on a converter's NIfTI lies on the scanner's voxels in another order.
    """
    here = grid.canonical_affine(mask.affine, mask.data.shape)
    there = grid.canonical_affine(reference.affine, reference.data.shape)
    turned = grid.to_canonical(mask.data, mask.affine)
    apart_mm = grid.apart_mm(here, there, turned.shape)
    if apart_mm > grid.SAME_VOXELS * min(reference.spacing_mm):
        return mask
    data = grid.from_canonical(turned, reference.affine)
    return Volume(data, reference.affine)


def _resample_labels(labels: NDArray[np.uint8], resampling: grid.Resampling) -> NDArray[np.uint8]:
    """Resample region by region: whole tumour, core and enhancing part each keep their border."""
    return _by_region(labels, resampling.mask) if resampling.changes else labels


def _by_region(
    labels: NDArray[np.uint8], resample: Callable[[NDArray[np.bool_]], NDArray[np.bool_]]
) -> NDArray[np.uint8]:
    return regions_to_labels(np.stack([resample(region) for region in labels_to_regions(labels)]))
