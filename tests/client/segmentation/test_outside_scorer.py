"""The challenges' own package gives the same scores. It is AGPL: a program apart, never imported.

``GLIOFED_BRATS_PYTHON`` names a Python that has ``brats-evaluation`` 0.0.10. Its global scores are
ours, but always in voxels, and its global surface Dice has a tolerance of half a voxel. Its lesions
are another definition, of 2026: it neither dilates nor counts false ones in its means; where every
lesion is found as one part and none is false, the two agree. It takes the voxel's sides in reverse
order, so that here the first is as long as the last.
"""

import json
import os
import subprocess
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from client.segmentation.scores import Scores, score_labels
from client.segmentation.surface_distance import WORST_MM, Spacing, compare_surfaces
from common.regions import LABELS, REGIONS, labels_to_regions
from tests.programs import named

SHAPE = (56, 48, 40)
VOXELS = (1.0, 1.0, 1.0)
Labels = np.ndarray


def tumour(seed: int, *, lesions: int, size: float = 7.0, core: bool = True) -> Labels:
    """Return lesions with bumpy borders, far apart, each with its core and enhancing rim."""
    rng = np.random.default_rng(seed)
    bumps = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2.0)
    bumps *= 2.0 / np.abs(bumps).max()
    labels = np.zeros(SHAPE, np.uint8)
    for centre in [(14, 14, 12), (42, 34, 28)][:lesions]:
        distance = np.sqrt(sum((np.indices(SHAPE)[a] - centre[a]) ** 2 for a in range(3))) + bumps
        labels[distance < size] = LABELS["ED"]
        if core:
            labels[distance < size - 2] = LABELS["ET"]
            labels[distance < size - 4] = LABELS["NCR"]
    return labels


def shifted(labels: Labels, *by: int) -> Labels:
    return np.roll(labels, by, (0, 1, 2))


def with_speck(labels: Labels) -> Labels:
    changed = labels.copy()
    changed[50:54, 4:8, 4:8] = LABELS["ET"]
    return changed


CASES: dict[str, tuple[Labels, Labels, Spacing]] = {
    "the same": (tumour(1, lesions=2), tumour(1, lesions=2), VOXELS),
    "another border": (tumour(1, lesions=2), tumour(2, lesions=2), VOXELS),
    "moved": (shifted(tumour(3, lesions=1), 2, 1, 0), tumour(3, lesions=1), VOXELS),
    "other voxels": (shifted(tumour(4, lesions=2), 0, 1, 1), tumour(5, lesions=2), (2.0, 1.5, 2.0)),
    "too large": (tumour(6, lesions=1, size=7.7), tumour(6, lesions=1), VOXELS),
    "false and missed": (with_speck(tumour(7, lesions=1)), tumour(8, lesions=2), VOXELS),
    "missed core": (tumour(9, lesions=1, core=False), tumour(9, lesions=1), VOXELS),
    "false core": (tumour(9, lesions=1), tumour(9, lesions=1, core=False), VOXELS),
    "nothing found": (np.zeros(SHAPE, np.uint8), tumour(9, lesions=1), VOXELS),
}
ONE_TO_ONE = ("the same", "another border", "moved", "other voxels", "too large")


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the challenges' package says of each case."""
    python = named("GLIOFED_BRATS_PYTHON", "brats-evaluation")
    root = tmp_path_factory.mktemp("brats")
    for number, (predicted, truth, spacing) in enumerate(CASES.values()):
        for folder, labels in (("predicted", predicted), ("truth", truth)):
            path = root / folder / f"case-{number:05d}-000.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(labels, np.diag([*spacing, 1.0])), path)
    command = [python, "-m", "brats_evaluation.evaluation", "--config", "gli"]
    command += ["--ref_path", str(root / "truth"), "--pred_path", str(root / "predicted")]
    command += ["--summary_json", str(root / "scores.json")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=root, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((root / "scores.json").read_text())
    assert not found["missings"]
    names = list(CASES)
    return {names[int(one["subject_name"].split("-")[1])]: one for one in found["metrics"]}


def ours(name: str) -> dict[str, Scores]:
    predicted, truth, spacing = CASES[name]
    return score_labels(predicted, truth, spacing_mm=spacing)


@pytest.mark.parametrize("name", CASES)
def test_global_scores_are_the_challenges(outside: dict[str, Any], name: str) -> None:
    predicted, truth, _ = CASES[name]
    masks = zip(labels_to_regions(predicted), labels_to_regions(truth), strict=True)
    halves = [compare_surfaces(p, t, spacing_mm=VOXELS, tolerance_mm=0.5).dice for p, t in masks]
    scores = score_labels(predicted, truth, spacing_mm=VOXELS)
    for region, exact in zip(REGIONS, halves, strict=True):
        score, theirs = scores[region], outside[name][region.lower()]
        assert score.dice == pytest.approx(theirs["global_bin_dsc"], abs=1e-9), region
        assert exact == pytest.approx(theirs["global_bin_nsd"], abs=1e-9), region
        if np.isinf(theirs["global_bin_hd95"]):
            assert score.hd95_mm == WORST_MM
        else:
            assert score.hd95_mm == pytest.approx(theirs["global_bin_hd95"], abs=1e-6), region


@pytest.mark.parametrize("name", ONE_TO_ONE)
def test_scores_by_lesion_are_the_challenges_where_every_lesion_is_found_as_one_part(
    outside: dict[str, Any], name: str
) -> None:
    for region, score in ours(name).items():
        theirs = outside[name][region.lower()]
        assert (theirs["tp"], theirs["fp"], theirs["fn"]) == (score.lesions_found, 0, 0)
        assert score.lesion_dice == pytest.approx(theirs["sq_dsc"], abs=1e-9), region
        assert score.lesion_hd95_mm == pytest.approx(theirs["sq_hd95"], abs=1e-6), region
        if score.lesions_found == 1:
            assert score.surface_dice == pytest.approx(theirs["sq_nsd"], abs=1e-9), region


def test_found_missed_and_false_lesions_are_counted_alike(outside: dict[str, Any]) -> None:
    for region, score in ours("false and missed").items():
        theirs = outside["false and missed"][region.lower()]
        counts = (score.lesions_found, score.lesions_false, score.lesions_missed)
        assert (theirs["tp"], theirs["fp"], theirs["fn"]) == counts
        assert counts[2] == 1
        assert counts[1] == 1, region
