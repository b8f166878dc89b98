"""Histograms of a cohort under differential privacy, in the bins of
``common.study.cohort_histograms``.

Each patient gives one vector of all histograms, divided by the root of their number, so that its L2
norm is at most 1: a patient's entries in one histogram are not negative and add up to 1 at most.
The sum with Gaussian noise of ``noise_multiplier`` is released, multiplied by that root again.
Adjacency: add or remove one patient.

Out of scope: the ledger, which the caller charges with ``Mechanism(noise_multiplier, 1.0)`` first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.imaging.grid import spacing_of
from client.imaging.missing_sequences import present
from client.imaging.preprocessing import Prepared
from client.privacy.dp_sgd import clipped_sum
from client.privacy.secure_noise import RandomBytes, SystemRandom, noise
from common.regions import MODALITIES, REGIONS, labels_to_regions
from common.study.cohort_histograms import Histogram, StatisticsOptions

SENSITIVITY: Final = 1.0
"""Most that one patient moves the sum, in the L2 norm."""

_DIGITS: Final = 3
"""To which mm and mL are rounded before they are counted: 1 mm is 1 mm whatever float it is."""


def patient_vector(
    scans: Sequence[Prepared], histograms: Mapping[str, Histogram]
) -> NDArray[np.float64]:
    """Return what the patient adds to each bin of each histogram: the mean over the scans.

    Without a scan it is 0, as for a patient whose files cannot be read.
    """
    total = np.zeros(sum(one.bins for one in histograms.values()))
    for scan in scans:
        total += np.concatenate([_scan(scan, name, one) for name, one in histograms.items()])
    result: NDArray[np.float64] = total / max(1, len(scans))
    return result


def noised_statistics(
    patients: Iterable[NDArray[np.float64]],
    options: StatisticsOptions,
    *,
    entropy: RandomBytes | None = None,
) -> dict[str, list[float]]:
    """Return the noised sums over the patients' vectors, by histogram; no patient is a result too.

    ``entropy`` is the operating system's if it is None, as it must be outside tests.
    """
    histograms = options.histograms
    bins = sum(one.bins for one in histograms.values())
    scale = math.sqrt(len(histograms))
    total, _ = clipped_sum(
        (torch.from_numpy(vector / scale) for vector in patients),
        torch.zeros(bins).double(),
        clipping_norm=SENSITIVITY,
    )
    total += noise(
        entropy or SystemRandom(),
        bins,
        noise_multiplier=options.noise_multiplier,
        clipping_norm=SENSITIVITY,
    )
    counts = np.round(total.numpy() * scale, 2)
    ends = np.cumsum([one.bins for one in histograms.values()])
    parts = np.split(counts, ends[:-1])
    return {name: part.tolist() for name, part in zip(histograms, parts, strict=True)}


def _scan(scan: Prepared, name: str, histogram: Histogram) -> NDArray[np.float64]:
    """Return the shares of one scan in the bins; they add up to 1, or are 0 if it has no value."""
    values = _values(scan, name, histogram)
    place = np.searchsorted(histogram.edges, values, side="left")
    counts = np.bincount(place, minlength=histogram.bins)
    shares: NDArray[np.float64] = counts / max(1, len(values))
    return shares


def _values(scan: Prepared, name: str, histogram: Histogram) -> NDArray[np.float64]:
    """Return what is counted of a scan: one number, or one for each voxel of the brain."""
    what = name.partition("_")[2]
    if histogram.topic == "intensities":
        channel = MODALITIES.index(what)
        if not present(scan.image)[channel]:  # what stands for it is no intensity
            return np.zeros(0)
        inside = (scan.image != 0).any(axis=0)
        return np.asarray(scan.image[channel][inside], np.float64)
    if histogram.topic == "spacing":
        spacing = spacing_of(scan.native_affine)
        value = spacing.min() if what == "finest" else spacing.max()
        return np.array([round(float(value), _DIGITS)])
    if scan.labels is None:
        return np.zeros(0)
    masks = dict(zip(REGIONS, labels_to_regions(scan.labels), strict=True))
    voxel_ml = abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000
    return np.array([round(float(masks[what.upper()].sum()) * voxel_ml, _DIGITS)])
