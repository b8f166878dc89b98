from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.imaging.missing_sequences import ABSENT, PARTIAL, blank, present
from client.training.crops import Patient, draw_crops, draw_patient
from common.errors import CaseError
from common.regions import labels_to_regions
from common.study.protocol import TrainingOptions


@dataclass(frozen=True)
class Prepared:
    image: NDArray[np.float32]
    labels: NDArray[np.uint8] | None


def phantom(seed: int, shape: tuple[int, int, int] = (16, 16, 16)) -> Prepared:
    """Return a ball of tumour that is bright in all channels, in noise."""
    rng = np.random.default_rng(seed)
    centre = [rng.integers(n // 3, 2 * n // 3 + 1) for n in shape]
    grids = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grids, centre, strict=True)))
    labels = np.select([distance < 2, distance < 3, distance < 4.5], [1, 3, 2]).astype(np.uint8)
    image = rng.normal(0, 0.3, (4, *shape)) + labels
    return Prepared(image.astype(np.float32), labels)


def cohort(count: int, *, scans: int = 1) -> list[Patient]:
    def loader(seed: int) -> Callable[[], Prepared]:
        return lambda: phantom(seed)

    return [[loader(10 * place + scan) for scan in range(scans)] for place in range(count)]


def options(**changes: object) -> TrainingOptions:
    wanted = {
        "local_steps": 2,
        "crop_size": (16, 16, 16),
        "crops_per_patient": 2,
        "learning_rate": 0.01,
        "patients_per_step": 2,
        **changes,
    }
    return TrainingOptions.model_validate(wanted)


@pytest.mark.parametrize("shape", [(16, 16, 16), (30, 20, 17), (7, 40, 16), (5, 6, 7)])
@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_crops_show_the_case(shape: tuple[int, int, int], probability: float) -> None:
    case = phantom(3, shape)
    wanted = options(crops_per_patient=5, augmentation="none", foreground_probability=probability)
    images, regions = draw_crops(case, wanted, np.random.default_rng(1))
    assert images.shape == (5, 4, 16, 16, 16)
    assert regions.shape == (5, 3, 16, 16, 16)
    assert images.dtype == torch.float32
    assert regions.dtype == torch.uint8
    assert case.labels is not None
    seen = {tuple(values) for values in case.image.reshape(4, -1).T}
    whole = labels_to_regions(case.labels)
    for image, region in zip(images.numpy(), regions.numpy(), strict=True):
        inside = {tuple(values) for values in image.reshape(4, -1).T if values.any()}
        assert inside <= seen
        assert len(inside) == np.prod([min(n, 16) for n in shape])
        assert region.sum() <= whole.sum()
        if probability == 1.0:
            assert region[0].any()


def test_image_and_regions_stay_aligned() -> None:
    labels = phantom(3, (24, 24, 24)).labels
    assert labels is not None
    case = Prepared(np.repeat(labels[None].astype(np.float32) * 10, 4, axis=0), labels)
    images, regions = draw_crops(case, options(), np.random.default_rng(2), count=8)
    assert np.array_equal(images.numpy()[:, 0] > 3, regions.numpy()[:, 0] > 0)
    assert not np.array_equal(images[0], images[1])


def test_augmentation_leaves_the_outside_alone() -> None:
    case = phantom(1)
    image = case.image.copy()
    image[:, :5] = 0
    crops, _ = draw_crops(
        Prepared(image, case.labels), options(augmentation="light"), np.random.default_rng(5)
    )
    for crop in crops.numpy():
        planes = (crop == 0).all(axis=(0, 2, 3))
        assert planes.sum() == 5
    assert np.array_equal(image[:, 5:], case.image[:, 5:])


def test_case_without_tumour_or_labels() -> None:
    empty = Prepared(phantom(1).image, np.zeros((16, 16, 16), np.uint8))
    _, regions = draw_crops(empty, options(foreground_probability=1.0), np.random.default_rng(0))
    assert not regions.any()
    with pytest.raises(CaseError) as error:
        draw_crops(Prepared(empty.image, None), options(), np.random.default_rng(0))
    assert error.value.code == "case-unlabelled"


def test_crops_come_from_all_scans_of_a_patient() -> None:
    wanted = options(crops_per_patient=8, augmentation="none")
    patient = cohort(1, scans=3)[0]
    crops, _ = draw_patient(patient, wanted, np.random.default_rng(0))
    sources = {float(load().image.sum()) for load in patient}
    found = {float(crop.sum()) for crop in crops.numpy()}
    assert crops.shape[0] == 8
    assert len(found) == 3
    assert sorted(found) == pytest.approx(sorted(sources), rel=1e-5)
    again, _ = draw_patient(patient, wanted, np.random.default_rng(0))
    assert torch.equal(crops, again)


def lacking(images: torch.Tensor) -> list[tuple[bool, ...]]:
    return [tuple(present(image.numpy()).tolist()) for image in images]


def test_without_dropout_every_sequence_is_there() -> None:
    images, _ = draw_crops(phantom(3), options(crops_per_patient=8), np.random.default_rng(1))
    assert set(lacking(images)) == {(True,) * 4}


def test_dropout_takes_sequences_from_as_many_crops_as_it_says() -> None:
    rng = np.random.default_rng(1)
    wanted = options(crops_per_patient=16, crop_size=(8, 8, 8), sequence_dropout=0.5)
    seen = [one for n in range(40) for one in lacking(draw_crops(phantom(n), wanted, rng)[0])]
    whole = seen.count((True,) * 4)
    assert 0.42 < whole / len(seen) < 0.58
    assert set(seen) == {(True,) * 4, *PARTIAL}


def test_what_a_case_lacks_stays_absent_under_augmentation() -> None:
    case = phantom(3)
    blank(case.image, (True, True, False, True))
    images, _ = draw_crops(case, options(crops_per_patient=4), np.random.default_rng(1))
    assert set(lacking(images)) == {(True, True, False, True)}
    assert set(torch.unique(images[:, 2]).tolist()) <= {ABSENT, 0.0}
    assert (images[:, 0] != torch.from_numpy(case.image[0])).any(), "the others are augmented"


def test_dropout_takes_more_from_a_case_that_lacks_some_but_never_the_last() -> None:
    wanted = options(crops_per_patient=16, crop_size=(8, 8, 8), sequence_dropout=1.0)
    for there, left in (
        ((True, True, False, False), {(False, True, False, False)}),
        ((False, True, False, True), {(False, True, False, False), (False, False, False, True)}),
        ((False, False, False, True), {(False, False, False, True)}),
    ):
        case = phantom(3)
        blank(case.image, there)
        seen = set(lacking(draw_crops(case, wanted, np.random.default_rng(1))[0]))
        assert seen - {(True,) * 4} == left, "a crop of air alone lacks nothing"
