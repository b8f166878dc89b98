"""Images from tissue: signal equations, then what a scanner adds.

Signals follow the spin-echo and inversion-recovery equations (e.g. Haacke et al., Magnetic
Resonance Imaging, 1999); contrast agent shortens T1 by its relaxivity. Slices, coil bias and
Rician noise (Gudbjartsson and Patz 1995) follow, in units of the white matter's signal.

Out of scope: k-space, motion between sequences, distortion.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.phantoms.anatomy import Anatomy
from client.phantoms.profiles import Profile, Timing
from client.phantoms.random_fields import Array, Grid, ramp, smooth_field
from common.regions import MODALITIES

_RELAXIVITY = 4.5  # of gadolinium chelates, per second and mmol/l
_AT_1_5_T: Final = {  # proton density, T1 in ms, T2 in ms
    "csf": (1.00, 4200.0, 1500.0),
    "gm": (0.83, 950.0, 96.0),
    "wm": (0.71, 620.0, 76.0),
    "wmh": (0.80, 900.0, 116.0),
    "ed": (0.86, 1350.0, 150.0),
    "net": (0.86, 1450.0, 155.0),
    "et": (0.85, 1250.0, 122.0),
    "ncr": (0.95, 2500.0, 330.0),
    "vessel": (0.25, 1300.0, 40.0),
    "soft": (0.50, 1000.0, 45.0),
    "bone": (0.08, 600.0, 30.0),
    "fat": (0.95, 290.0, 105.0),
}
_TEXTURE: Final = {"gm": 0.03, "wm": 0.03, "ed": 0.08, "net": 0.1, "ncr": 0.12, "et": 0.2}


def tissue_signals(profile: Profile, modality: str, timing: Timing) -> dict[str, float]:
    """Return each tissue's signal in a sequence, relative to white matter."""
    signals = {}
    for name, (density, t1_ms, t2_ms) in _AT_1_5_T.items():
        if name in ("ed", "wmh"):
            _, wm_t1_ms, wm_t2_ms = _AT_1_5_T["wm"]
            t1_ms = wm_t1_ms + profile.oedema_contrast * (t1_ms - wm_t1_ms)
            t2_ms = wm_t2_ms + profile.oedema_contrast * (t2_ms - wm_t2_ms)
        if profile.field_t == 3.0 and name != "csf":
            t1_ms, t2_ms = t1_ms * 1.3, t2_ms * 0.93
        if modality == "t1c" and name in ("et", "vessel"):
            agent_mm = profile.uptake_mm * (1.0 if name == "et" else 1.5)
            t1_ms = 1000 / (1000 / t1_ms + _RELAXIVITY * agent_mm)
            density = 0.85
        recovery = 1 - np.exp(-timing.tr_ms / t1_ms)
        if timing.ti_ms is not None:
            recovery = abs(1 - 2 * np.exp(-timing.ti_ms / t1_ms) + np.exp(-timing.tr_ms / t1_ms))
        signals[name] = float(density * recovery * np.exp(-timing.te_ms / t2_ms))
    return {name: value / signals["wm"] for name, value in signals.items()}


def mix_tissue(
    anatomy: Anatomy, tumour: dict[str, Array], grid: Grid, rng: np.random.Generator
) -> dict[str, Array]:
    """Return all tissue fractions: the brain's, the tumour's, vessels and what lies outside."""
    tissue = dict(anatomy.tissue)
    spacing = grid.spacing_mm
    depth = anatomy.depth_mm
    outside = ramp(-depth - 2, 2.0)
    tissue["soft"] = outside
    tissue["csf"] = np.maximum(tissue["csf"], (1 - outside) * (depth < 0))
    # Vessels and dura enhance as well: they are what a network must not call tumour.
    first, second = (smooth_field(grid.shape, spacing, 24.0, rng) for _ in range(2))
    vessel = np.exp(-(first**2 + second**2) / np.float32(2 * 0.06**2))
    vessel = vessel * np.clip(1.4 * tissue["csf"] + 0.2 * tissue["gm"], 0, 1)
    dura = np.exp(-((depth + 1) ** 2) / 3)
    dura = dura * np.clip(0.2 + 0.4 * smooth_field(grid.shape, spacing, 25.0, rng), 0, 0.8)
    tissue["vessel"] = np.maximum(vessel, dura)

    occupied = sum(tumour.values(), np.zeros(grid.shape, np.float32))
    free = 1 - np.minimum(occupied, 1)
    healthy = {k: v for k, v in tissue.items() if k != "vessel"}
    total = sum(healthy.values(), np.full(grid.shape, 1e-6, np.float32))
    room = np.maximum(free - tissue["vessel"] * free, 0)
    mixed = {name: values / total * room for name, values in healthy.items()}
    return {**mixed, "vessel": tissue["vessel"] * free, **tumour}


def scan(
    tissue: dict[str, Array],
    brain: NDArray[np.bool_],
    profile: Profile,
    grid: Grid,
    rng: np.random.Generator,
) -> dict[str, NDArray[np.int16]]:
    """Return the four images, int16, zero outside ``brain``."""
    timings = {"t1n": profile.t1, "t1c": profile.t1, "t2w": profile.t2, "t2f": profile.flair}
    textures = {
        name: 1 + np.float32(amount) * smooth_field(grid.shape, grid.spacing_mm, 6.0, rng)
        for name, amount in _TEXTURE.items()
        if name in tissue
    }
    jitter = {name: rng.uniform(0.95, 1.05, 3) for name in ("t1", "t2w", "t2f")}
    images = {}
    for modality, slice_mm in zip(MODALITIES, profile.slice_mm, strict=True):
        timing = timings[modality]
        tr, te, ti = jitter["t1" if modality.startswith("t1") else modality]
        timing = Timing(
            timing.tr_ms * tr,
            timing.te_ms * te,
            None if timing.ti_ms is None else timing.ti_ms * ti,
        )
        signals = tissue_signals(profile, modality, timing)
        ideal = np.zeros(grid.shape, np.float32)
        for name, fraction in tissue.items():
            ideal += fraction * np.float32(signals[name]) * textures.get(name, np.float32(1))
        image = _acquire(ideal, profile, grid, slice_mm, rng)
        gain = profile.intensity * rng.uniform(0.8, 1.25)
        counts = np.clip(np.rint(image * np.float32(gain)), 1, np.iinfo(np.int16).max)
        images[modality] = np.where(brain, counts, 0).astype(np.int16)
    return images


def _acquire(
    ideal: Array, profile: Profile, grid: Grid, slice_mm: float, rng: np.random.Generator
) -> Array:
    """Return the magnitude image: thick slices, bias field and noise, back on the grid."""
    step = grid.spacing_mm
    blur = (0.45 / step, 0.45 / step, slice_mm / 2.355 / step)
    image = ndimage.gaussian_filter(ideal, blur)
    depth = image.shape[2]
    slices = min(depth, max(4, round(depth * step / slice_mm)))
    image = _resample_slices(image, slices)
    bias = smooth_field(image.shape, (step, step, step * depth / slices), 110.0, rng)
    image = image * np.exp(np.float32(profile.bias) * bias)
    # Finer voxels hold less signal; the square root keeps fine grids usable, as averaging would.
    sigma = np.float32(np.sqrt(3.75 / step) / profile.snr * rng.uniform(0.85, 1.15))
    real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * sigma
    magnitude: Array = np.sqrt((image + real) ** 2 + imaginary**2)
    return _resample_slices(magnitude, depth)


def _resample_slices(image: Array, count: int) -> Array:
    """Interpolate linearly along the last axis to ``count`` slices over the same extent."""
    have = image.shape[2]
    if have == count:
        return image
    position = np.clip((np.arange(count) + 0.5) * have / count - 0.5, 0, have - 1)
    below = np.minimum(position.astype(int), have - 2)
    weight = (position - below).astype(np.float32)
    result: Array = image[..., below] * (1 - weight) + image[..., below + 1] * weight
    return result


def strip_skull(
    anatomy: Anatomy, profile: Profile, grid: Grid, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return the brain mask of the hospital's tool: exact, too generous or too tight."""
    margin, wobble = {
        "clean": (0.0, 0.5),
        "loose": (rng.uniform(2.0, 4.0), 1.5),
        "tight": (rng.uniform(-2.5, -0.5), 1.0),
    }[profile.strip]
    jitter = smooth_field(grid.shape, grid.spacing_mm, 30.0, rng) * np.float32(wobble)
    mask = ndimage.binary_fill_holes(anatomy.depth_mm + jitter > -margin)
    parts, _ = ndimage.label(mask)
    largest: NDArray[np.bool_] = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return largest
