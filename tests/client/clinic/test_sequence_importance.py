"""What a model looks at is what an explanation says it depends on."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.clinic.result_verification import Given, verify
from client.clinic.segment import segment
from client.clinic.sequence_importance import explanation
from client.imaging.missing_sequences import ABSENT
from client.site.execution import ExecutionOptions
from common.regions import MODALITIES, regions_to_labels
from tests.consortia import World

SHAPE = (6, 5, 4)


def scene(missing: tuple[str, ...] = ()) -> np.ndarray:
    """Return an image that is bright in one half in t1c alone, with two voxels of background."""
    image = np.full((4, *SHAPE), -0.5, np.float32)
    image[MODALITIES.index("t1c"), :3] = 2.0
    for name in missing:
        image[MODALITIES.index(name)] = ABSENT
    image[:, 0, 0, :2] = 0
    return image


def by_contrast(image: np.ndarray) -> np.ndarray:
    """Predict all regions where t1c is bright."""
    return np.stack([image[MODALITIES.index("t1c")] > 1] * 3).astype(np.float32)


@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("missing", [(), ("t2w",)])
def test_only_the_sequence_that_was_used_matters(dropout: bool, missing: tuple[str, ...]) -> None:
    image = scene(missing)
    seen: list[np.ndarray] = []

    def predict(hidden: np.ndarray) -> np.ndarray:
        seen.append(hidden)
        return by_contrast(hidden)

    whole = by_contrast(image)
    found = explanation(
        image,
        whole,
        regions_to_labels(whole > 0.5),
        predict=predict,
        to_grid=lambda values: values,
        segmented=lambda values: regions_to_labels(values > 0.5),
        dropout=dropout,
        voxel_ml=0.001,
    )
    names = [name for name in MODALITIES if name not in missing]
    assert list(found.told.without) == names
    assert len(seen) == len(names)
    for name, regions in found.told.without.items():
        used = name == "t1c"
        assert {one.dice for one in regions.values()} == {0.0 if used else 1.0}
        volume = np.count_nonzero(whole[0]) / 1000
        assert regions["ET"].volume_ml == pytest.approx(0 if used else volume)
        changed = found.changed[..., names.index(name)]
        assert np.array_equal(changed, whole[0] if used else np.zeros(SHAPE))
    value = ABSENT if dropout else 0.0
    assert found.told.hidden_as == ("absent" if dropout else "mean")
    for name, hidden in zip(names, seen, strict=True):
        inside = (image != 0).any(axis=0)
        assert (hidden[MODALITIES.index(name)][inside] == value).all()
        assert not hidden[:, ~inside].any()


def test_a_result_with_an_explanation(world: World, cohort: Path, tmp_path: Path) -> None:
    case = min(path for path in cohort.iterdir() if path.is_dir())
    out = tmp_path / "out"
    result = segment(
        case, out, world.model(), execution=ExecutionOptions(prefetch=0), trusted=True, explain=True
    )
    assert list(result["explanation"]["without"]) == list(MODALITIES)
    mask, changed = (nib.load(out / f"{one}.nii.gz") for one in ("segmentation", "explanation"))
    assert changed.shape == (*mask.shape, 4)
    assert np.array_equal(changed.affine, mask.affine)
    assert 0 < np.asarray(changed.dataobj).max() <= 100
    assert result["stages"]["explain"]["wall_s"] > 0
    assert "explanation.nii.gz" in result["outputs"]
    html = (out / "report.html").read_text()
    assert "What each sequence mattered to the model" in html
    checks = verify(out, Given())
    assert not [one for one in checks if one.verdict == "broken"]
