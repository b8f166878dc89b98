import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.networks.registry import build, state_arrays, trainable_names
from client.site.execution import ExecutionOptions, Precision
from client.training.crops import Patient, draw_patient
from client.training.loop import Learner, contributions, drawing, train
from client.training.losses import LOSSES, dice_bce
from client.training.lr_schedule import Place, learning_rate
from common.errors import CaseError, ProtocolError
from common.messages.low_rank import Subspace, basis, expand
from common.study.protocol import NetworkOptions, TrainingOptions
from common.study.trained_parameters import update_shapes

torch.set_num_threads(1)
TINY = NetworkOptions(size="tiny")
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


@pytest.mark.parametrize(
    ("crops", "side", "precision", "seen"),
    [(1, 16, "float32", 2), (2, 16, "float32", 2), (1, 49, "float32", 1), (1, 16, "bfloat16", 1)],
)
def test_a_lone_small_crop_is_computed_twice(
    crops: int, side: int, precision: Precision, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(4, 3, 3, padding=1)  # smooth: rounding stays rounding
    batches: list[int] = []
    network.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
    images = torch.randn(crops, 4, side, side, side)
    regions = (images[:, :3] > 1).to(torch.uint8)
    wanted = options(trainable=("all",), crop_size=(side,) * 3, crops_per_patient=crops)
    learner = Learner(network, wanted, ExecutionOptions(precision=precision, prefetch=0))
    found = learner.gradient((images, regions))
    assert batches == [seen]
    monkeypatch.setattr("client.training.loop.slow_alone", lambda _: False)
    torch.testing.assert_close(learner.gradient((images, regions)), found, rtol=1e-4, atol=1e-6)
    assert batches == [seen, crops]


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
        (ExecutionOptions(("cpu", "cpu"), prefetch=0), 1e-3),
        (ExecutionOptions(("cpu", "cpu"), precision="bfloat16", prefetch=1), 0.2),
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


LOW_RANK = {"trainable": ("low_rank", "norms"), "rank": 3}


def whole(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def test_gradient_of_a_factor_is_that_of_the_change_that_it_makes() -> None:
    """W = W0 + B A is written out, and autograd differentiates by B."""
    network = build(TINY, seed=0).double()
    crops = draw_patient(cohort(1)[0], options(), np.random.default_rng(0))
    learner = Learner(network, options(**LOW_RANK), PLAIN, subspace=Subspace(5, 2))

    reference = build(TINY, seed=0).double()
    start = whole(reference)
    shapes = update_shapes(
        {n: tuple(p.shape) for n, p in start.items()}, "segresnet", options(**LOW_RANK)
    )
    leading, changed = {}, dict(start)
    for name, weight in start.items():
        if name not in shapes:
            continue
        leading[name] = torch.zeros(shapes[name], dtype=torch.float64, requires_grad=True)
        change = leading[name]
        if change.shape != weight.shape:
            known = basis(name, seed=5, round_number=2, rank=3, columns=math.prod(weight.shape[1:]))
            change = (change @ torch.from_numpy(known)).reshape(weight.shape)
        changed[name] = weight + change
    logits = torch.func.functional_call(reference, changed, (crops[0].double(),))
    parts = torch.autograd.grad(dice_bce(logits, crops[1]).mean(), list(leading.values()))
    expected = torch.cat([part.reshape(-1) for part in parts])
    assert sum(shape[1:] == (3,) for shape in shapes.values()) >= 8
    assert torch.allclose(learner.gradient(crops), expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_low_rank_training_sends_factors_that_expand_to_the_change(optimizer: str) -> None:
    network = build(TINY, seed=0)
    before = state_arrays(network)
    shapes = {name: array.shape for name, array in before.items()}
    wanted = options(**LOW_RANK, optimizer=optimizer, local_steps=4)
    result = train(network, cohort(2), wanted, seed=0, execution=PLAIN, subspace=Subspace(5, 2))
    assert {name: array.shape for name, array in result.update.items()} == update_shapes(
        shapes, "segresnet", wanted
    )
    change = expand(result.update, shapes, seed=5, round_number=2, rank=3)
    for name, array in state_arrays(network).items():
        moved = array - before[name]
        assert np.allclose(moved, change.get(name, 0 * moved), atol=1e-6)
        assert moved.any() == (name in change)
    again = build(TINY, seed=0)
    other = train(again, cohort(2), wanted, seed=0, execution=PLAIN, subspace=Subspace(5, 3))
    assert any(not np.array_equal(other.update[n], result.update[n]) for n in result.update)


def test_low_rank_learns() -> None:
    network = build(TINY, seed=0)
    images, regions = draw_patient(
        cohort(1)[0], options(augmentation="none"), np.random.default_rng(9)
    )
    with torch.no_grad():
        before = float(dice_bce(network(images), regions).mean())
    wanted = options(trainable=("low_rank", "head"), local_steps=25, learning_rate=0.05)
    train(network, cohort(3), wanted, seed=1, execution=PLAIN, subspace=Subspace(0, 1))
    with torch.no_grad():
        assert float(dice_bce(network(images), regions).mean()) < 0.7 * before


def test_low_rank_needs_its_subspace() -> None:
    with pytest.raises(ProtocolError) as error:
        train(build(TINY, seed=0), cohort(1), options(**LOW_RANK), seed=0, execution=PLAIN)
    assert error.value.code == "model-subspace"


@pytest.mark.parametrize("trainable", [("all",), ("head",), ("low_rank", "norms")])
@pytest.mark.parametrize(("crops", "devices"), [(2, 2), (3, 2), (2, 3), (5, 4), (1, 2)])
def test_devices_that_share_crops_stay_in_step(
    trainable: tuple[str, ...], crops: int, devices: int
) -> None:
    wanted = options(crops_per_patient=crops, trainable=trainable, rank=3, optimizer="sgd")
    one, several = (
        Learner(
            build(TINY, seed=0).double(),
            wanted,
            ExecutionOptions(("cpu",) * count, prefetch=0),
            subspace=Subspace(1, 1),
        )
        for count in (1, devices)
    )
    for step in range(4):
        drawn = draw_patient(cohort(2)[step % 2], wanted, np.random.default_rng(step))
        gradient, shared = one.gradient(drawn), several.gradient(drawn)
        assert (shared - gradient).abs().max() < 1e-12
        one.step(gradient)
        several.step(shared)
    replicas = several._replicas
    assert len(replicas) == min(devices, crops)
    for replica in replicas[1:]:
        assert replica.network is not replicas[0].network
        for name, value in replica.network.named_parameters():
            assert torch.equal(value, replicas[0].network.get_parameter(name))
    for name, array in several.update().items():
        assert array.any()
        assert np.allclose(array, one.update()[name], atol=1e-7)


def test_a_failing_device_is_heard() -> None:
    learner = Learner(build(TINY, seed=0), options(), ExecutionOptions(("cpu", "cpu")))
    crops = draw_patient(cohort(1)[0], options(), np.random.default_rng(0))
    learner._replicas[1].network.register_forward_pre_hook(_fail)
    with pytest.raises(RuntimeError, match="no memory"):
        learner.gradient(crops)


def _fail(*_: object) -> None:
    raise RuntimeError("no memory")


@pytest.mark.parametrize("loss", ["dice_bce", "dice_focal"])
def test_coarser_levels_are_trained_where_the_protocol_says_so(loss: str) -> None:
    deep = NetworkOptions(name="dynunet", size="tiny", deep_supervision=True)
    wanted = options(loss=loss, augmentation="none")
    images, regions = draw_patient(cohort(1)[0], wanted, np.random.default_rng(0))
    reference = build(deep, seed=0).double()
    total = torch.zeros((), dtype=torch.float64)
    for image, truth in zip(images.double(), regions, strict=True):
        fine, coarse = reference.supervised(image[None])
        halved = torch.nn.functional.avg_pool3d(truth[None].double(), 2)
        total += (2 * LOSSES[loss](fine, truth[None]) + LOSSES[loss](coarse, halved))[0] / 3
    parts = torch.autograd.grad(total / 2, list(reference.parameters()))
    learner = Learner(build(deep, seed=0).double(), wanted, PLAIN)
    expected = torch.cat([part.flatten() for part in parts])
    assert torch.allclose(learner.gradient((images, regions)), expected, atol=1e-12)


def test_the_learning_rate_follows_the_study() -> None:
    wanted = options(
        optimizer="sgd", momentum=0.0, schedule="cosine", warmup_steps=1, learning_rate=0.1
    )
    moved = []
    for number in (1, 2, 3):
        network = build(TINY, seed=0)
        learner = Learner(network, wanted, PLAIN, place=Place.of_round(number, 3, wanted))
        for _ in range(2):
            before = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
            learner.step(torch.ones(learner.size, dtype=torch.float64))
            after = torch.cat([p.detach().flatten() for p in network.parameters()])
            moved.append(float((before - after).mean()))
    assert moved == pytest.approx([learning_rate(wanted, step, 6) for step in range(6)], rel=1e-3)
    assert moved[0] == pytest.approx(0.1, rel=1e-3)
    assert moved[-1] < 0.02
