import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.training import (
    ExecutionOptions,
    Learner,
    Patient,
    choose_device,
    choose_execution,
    choose_precision,
    contributions,
    dice_bce,
    draw_crops,
    draw_patient,
    drawing,
    train,
)
from common.errors import CaseError
from common.networks import build, state_arrays, trainable_names
from common.protocol import NetworkOptions, TrainingOptions
from common.regions import labels_to_regions

torch.set_num_threads(1)
TINY = NetworkOptions(filters=8, blocks_down=(1, 1), blocks_up=(1,))
PLAIN = ExecutionOptions(prefetch=0)


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


def unreadable() -> Prepared:
    raise CaseError("The scan is gone.", code="case-file")


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


def test_loss_is_of_each_sample_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 3, 4, 5, 6, generator=draw, dtype=torch.float64)
    truth = (torch.rand(3, 3, 4, 5, 6, generator=draw) < 0.3).to(torch.uint8)
    together = dice_bce(logits, truth)
    alone = torch.cat([dice_bce(logits[i : i + 1], truth[i : i + 1]) for i in range(3)])
    assert together.shape == (3,)
    assert torch.allclose(together, alone, atol=1e-14)
    # By hand, for one sample.
    p, t = logits[1].sigmoid().numpy(), truth[1].numpy()
    expected = -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p))
    for region in range(3):
        top = 2 * (p[region] * t[region]).sum() + 1
        expected += (1 - top / ((p[region] ** 2).sum() + t[region].sum() + 1)) / 3
    assert float(together[1]) == pytest.approx(expected, abs=1e-12)


def test_loss_of_a_perfect_answer_is_nearly_zero() -> None:
    truth = (torch.rand(2, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    assert dice_bce((truth - 0.5) * 100, truth).max() < 1e-6
    assert dice_bce(torch.full_like(truth, -50.0), torch.zeros_like(truth)).max() < 1e-6


def test_loss_is_taken_in_full_precision() -> None:
    logits = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = dice_bce(logits.to(torch.bfloat16), torch.zeros(1, 3, 4, 4, 4))
    assert loss.dtype == torch.float32


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


def test_only_the_chosen_groups_are_trained() -> None:
    network = build(TINY, seed=0)
    before = state_arrays(network)
    wanted = options(trainable=("norms", "head"))
    result = train(network, cohort(2), wanted, seed=0, execution=PLAIN)
    after = state_arrays(network)
    names = trainable_names(network, ("norms", "head"))
    assert set(result.update) == set(names)
    for name, array in after.items():
        assert np.array_equal(array, before[name]) == (name not in names)
        if name in names:
            assert np.allclose(array - before[name], result.update[name], atol=1e-7)
            assert result.update[name].dtype == np.float32
            assert result.update[name].flags.c_contiguous


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_learns(optimizer: str) -> None:
    network = build(TINY, seed=0)
    wanted = options(
        local_steps=25,
        optimizer=optimizer,
        learning_rate=0.02 if optimizer == "adam" else 0.3,
        crops_per_patient=1,
    )
    crops = draw_patient(cohort(1)[0], options(augmentation="none"), np.random.default_rng(9))

    def loss() -> float:
        with torch.no_grad():
            return float(dice_bce(network(crops[0]), crops[1]).mean())

    before = loss()
    heard: list[tuple[int, int]] = []
    result = train(
        network,
        cohort(3),
        wanted,
        seed=1,
        execution=PLAIN,
        progress=lambda done, total: heard.append((done, total)),
    )
    assert loss() < 0.6 * before
    assert heard == [(step, 25) for step in range(1, 26)]
    assert (result.steps, result.unusable) == (25, 0)
    assert result.seconds > 0


def updates(execution: ExecutionOptions, *, seed: int = 3) -> NDArray[np.float32]:
    network = build(TINY, seed=0)
    result = train(network, cohort(3), options(optimizer="sgd"), seed=seed, execution=execution)
    return np.concatenate([array.ravel() for array in result.update.values()])


def test_seed_decides_everything() -> None:
    first = updates(PLAIN)
    assert np.array_equal(first, updates(PLAIN))
    assert not np.array_equal(first, updates(PLAIN, seed=4))


@pytest.mark.parametrize(
    ("execution", "tolerance"),
    [
        (ExecutionOptions(prefetch=2), 0.0),
        (ExecutionOptions(channels_last=False, prefetch=0), 1e-3),
        (ExecutionOptions(precision="bfloat16", prefetch=1), 0.2),
    ],
)
def test_execution_changes_rounding_only(execution: ExecutionOptions, tolerance: float) -> None:
    expected, found = updates(PLAIN), updates(execution)
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


def test_weights_stay_float32_under_autocast() -> None:
    network = build(TINY, seed=0)
    learner = Learner(network, options(), ExecutionOptions(precision="bfloat16"))
    gradient = learner.gradient(draw_patient(cohort(1)[0], options(), np.random.default_rng(0)))
    assert gradient.dtype == torch.float64
    assert gradient.shape == (learner.size,)
    assert all(value.dtype == torch.float32 for value in network.parameters())


def test_gradient_of_a_patient_is_the_mean_over_crops() -> None:
    network = build(TINY, seed=0).double()
    crops = draw_patient(cohort(1)[0], options(), np.random.default_rng(0))
    learner = Learner(network, options(), PLAIN)
    parts = [learner.gradient((crops[0][i : i + 1], crops[1][i : i + 1])) for i in range(2)]
    assert torch.allclose(learner.gradient(crops), (parts[0] + parts[1]) / 2, atol=1e-12)


def test_unreadable_patients_count_as_zero(caplog: pytest.LogCaptureFixture) -> None:
    network = build(TINY, seed=0)
    patients = [*cohort(1), [unreadable], [lambda: Prepared(phantom(1).image * np.nan, None)]]
    broken = Prepared(np.full((4, 16, 16, 16), np.inf, np.float32), phantom(1).labels)
    patients.append([lambda: broken])
    with caplog.at_level(logging.WARNING):
        result = train(network, patients, options(patients_per_step=4), seed=0, execution=PLAIN)
    assert result.unusable == 6
    assert "The scan is gone." in caplog.text
    assert "not finite" in caplog.text
    assert all(np.isfinite(array).all() for array in result.update.values())


def test_contributions_keep_their_order() -> None:
    network = build(TINY, seed=0)
    learner = Learner(network, options(), PLAIN)
    patients = [*cohort(3), [unreadable], *cohort(2)]

    def drawn(prefetch: int) -> list[torch.Tensor | None]:
        draws = [
            drawing(patient, options(), np.random.default_rng(place))
            for place, patient in enumerate(patients)
        ]
        return list(contributions(learner, draws, prefetch=prefetch))

    plain = drawn(0)
    assert [gradient is None for gradient in plain] == [False, False, False, True, False, False]
    for ahead in (1, 3, 20):
        for one, other in zip(plain, drawn(ahead), strict=True):
            assert (one is None and other is None) or torch.equal(one, other)  # type: ignore[arg-type]


def test_without_patients_nothing_is_trained() -> None:
    with pytest.raises(CaseError) as error:
        train(build(TINY, seed=0), [], options(), seed=0, execution=PLAIN)
    assert error.value.code == "case-none"


def test_choices_fit_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert choose_precision(cpu) == "float32"
    assert choose_execution("cpu") == ExecutionOptions("cpu", "float32", True)
    assert choose_execution("mps") == ExecutionOptions("mps", "float32", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert choose_device() == torch.device("cuda")
    assert choose_execution() == ExecutionOptions("cuda", "bfloat16", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device() == cpu
