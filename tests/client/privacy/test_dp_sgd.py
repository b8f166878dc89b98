"""The private training step keeps to its definition; ``test_conformance`` compares networks."""

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.networks.registry import build, state_arrays
from client.privacy import dp_sgd
from client.privacy.clipping import clip, clipper
from client.privacy.dp_sgd import (
    CountingCharge,
    LedgerCharge,
    clipped_sum,
    refuse_batch_statistics,
    train_privately,
)
from client.privacy.ledger import Ledger
from client.privacy.mechanism import Cap, History, Mechanism
from client.privacy.secure_noise import MOST_CONTRIBUTIONS, grid
from client.site.execution import ExecutionOptions
from client.training.crops import Patient, draw_patient
from client.training.loop import Learner, TrainingResult, train
from client.training.losses import dice_bce
from common.errors import CaseError, PrivacyError
from common.messages.low_rank import Subspace
from common.study.protocol import NetworkOptions, PrivacyOptions, TrainingOptions

torch.set_num_threads(1)
TINY = NetworkOptions(size="tiny")
PLAIN = ExecutionOptions(prefetch=0)
OPTIONS = TrainingOptions(
    local_steps=3,
    crop_size=(16, 16, 16),
    crops_per_patient=2,
    optimizer="sgd",
    momentum=0.0,
    learning_rate=1.0,
)


@dataclass(frozen=True)
class Prepared:
    image: NDArray[np.float32]
    labels: NDArray[np.uint8] | None


def phantom(seed: int, *, scale: float = 1.0) -> Prepared:
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 4, (4, 4, 4)), np.ones((4, 4, 4))).astype(np.uint8)
    image = scale * (rng.normal(0, 0.5, (4, 16, 16, 16)) + labels)
    return Prepared(image.astype(np.float32), labels)


def patient(case: Prepared) -> Patient:
    return [lambda: case]


def cohort(count: int) -> list[Patient]:
    return [patient(phantom(seed, scale=1.0 + seed)) for seed in range(count)]


def unreadable() -> Prepared:
    raise CaseError("The scan is gone.", code="case-file")


def seeded(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def privacy(**changes: object) -> PrivacyOptions:
    wanted = {
        "noise_multiplier": 1.0,
        "clipping_norm": 0.5,
        "sampling_rate": 0.5,
        "nominal_patients": 4,
        **changes,
    }
    return PrivacyOptions.model_validate(wanted)


def flat(update: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    return np.concatenate([array.ravel() for array in update.values()]).astype(np.float64)


def gradients(learner: Learner, patients: list[Patient]) -> list[torch.Tensor]:
    return [
        learner.gradient(draw_patient(one, OPTIONS, np.random.default_rng(place)))
        for place, one in enumerate(patients)
    ]


def test_clipped_sum_is_that_of_a_loop_over_patients() -> None:
    network = build(TINY, seed=0).double()
    learner = Learner(network, OPTIONS, PLAIN)
    patients = cohort(4)
    found = [clip(gradient, 0.5) for gradient in gradients(learner, patients)]

    reference = build(TINY, seed=0).double()
    expected = np.zeros(learner.size)
    norms = []
    for place, one in enumerate(patients):
        images, regions = draw_patient(one, OPTIONS, np.random.default_rng(place))
        total = sum(
            dice_bce(reference(images[k : k + 1].double()), regions[k : k + 1])[0] for k in range(2)
        )
        reference.zero_grad()
        (total / 2).backward()  # type: ignore[union-attr]
        parts = [p.grad.numpy().ravel() for p in reference.parameters() if p.grad is not None]
        vector = np.concatenate(parts)
        norms.append(float(np.sqrt((vector**2).sum())))
        expected += vector * min(1.0, 0.5 / norms[-1])
    assert max(norms) > 0.5
    assert np.abs(sum(found).numpy() - expected).max() < 1e-10  # type: ignore[union-attr]
    on_grid, missing = clipped_sum(gradients(learner, patients), learner.zero(), clipping_norm=0.5)
    assert missing == 0
    assert np.abs(on_grid.numpy() - expected).max() <= 4 * grid(0.5)


def run(
    patients: list[Patient],
    wanted: PrivacyOptions,
    *,
    entropy: Callable[[int], bytes] | None = None,
    charge: CountingCharge | None = None,
    steps: int = 3,
) -> NDArray[np.float64]:
    result = train_privately(
        build(TINY, seed=0),
        patients,
        OPTIONS.model_copy(update={"local_steps": steps}),
        wanted,
        charge or CountingCharge(),
        execution=PLAIN,
        entropy=entropy,
    )
    assert result.steps == steps
    return flat(result.update)


def test_steps_that_cannot_be_exact_are_refused() -> None:
    charge = CountingCharge()
    many: list[Patient] = [[unreadable]] * (MOST_CONTRIBUTIONS + 1)
    for patients, changes in (
        (many, {}),
        ([], {"clipping_norm": 1e-101}),
        ([], {"clipping_norm": 1e101}),
    ):
        with pytest.raises(PrivacyError) as error:
            run(patients, privacy(**changes), charge=charge)
        assert error.value.code == "privacy-exact"
    assert not charge.reserved


def test_empty_draws_add_noise_and_are_charged() -> None:
    charge = CountingCharge()
    wanted = privacy(sampling_rate=1e-9, nominal_patients=10**9)
    update = run(cohort(2), wanted, charge=charge, steps=4)
    assert len(charge.reserved) == charge.confirmed == 4
    # Four steps at learning rate 1, each divided by 1e-9 * 10**9.
    expected = 1.0 * 0.5 * math.sqrt(4)
    assert update.std() == pytest.approx(expected, rel=6 / math.sqrt(2 * update.size))


def test_no_patients_are_an_empty_draw() -> None:
    charge = CountingCharge()
    assert run([], privacy(), charge=charge).any()
    assert charge.confirmed == 3


def test_sum_is_divided_by_the_public_constant() -> None:
    quiet = privacy(noise_multiplier=1e-12, sampling_rate=1.0, nominal_patients=4)
    few = run(cohort(2), quiet, entropy=seeded(0), steps=1)
    larger = quiet.model_copy(update={"nominal_patients": 8})
    more = run(cohort(2), larger, entropy=seeded(0), steps=1)
    assert np.allclose(few, 2 * more, atol=1e-6)


def test_what_is_charged_is_what_is_used() -> None:
    charge = CountingCharge()
    run(cohort(1), privacy(noise_multiplier=3.0, clipping_norm=0.7), charge=charge)
    assert charge.reserved == [(Mechanism(3.0, 0.5), 0.7)] * 3


def test_without_noise_and_clipping_it_is_the_ordinary_loop() -> None:
    patients = cohort(3)
    # The volume is the crop and nothing is augmented: both loops see the same.
    options = OPTIONS.model_copy(
        update={"patients_per_step": 3, "augmentation": "none", "learning_rate": 0.1}
    )
    ordinary = train(build(TINY, seed=0), patients, options, seed=0, execution=PLAIN)
    private = train_privately(
        build(TINY, seed=0),
        patients,
        options,
        privacy(noise_multiplier=1e-12, clipping_norm=1e3, sampling_rate=1.0, nominal_patients=3),
        CountingCharge(),
        execution=PLAIN,
    )
    expected = flat(ordinary.update)
    difference = np.linalg.norm(flat(private.update) - expected)
    assert difference < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("error", [CaseError, OSError, MemoryError, ValueError, RuntimeError])
def test_broken_patients_are_zero_and_the_step_goes_on(error: type[Exception]) -> None:
    def unreadable() -> Prepared:
        raise error("The scan is gone.")

    good = cohort(2)
    wrong = np.full((4, 16, 16, 16), np.nan, np.float32)
    broken = [*good, patient(Prepared(wrong, phantom(0).labels)), [unreadable]]
    quiet = privacy(noise_multiplier=1e-12, sampling_rate=1.0)
    options = OPTIONS.model_copy(update={"augmentation": "none"})

    def result(patients: list[Patient], charge: CountingCharge):  # type: ignore[no-untyped-def]
        return train_privately(
            build(TINY, seed=0), patients, options, quiet, charge, execution=PLAIN
        )

    charge = CountingCharge()
    with_broken, without = result(broken, charge), result(good, CountingCharge())
    assert np.allclose(flat(with_broken.update), flat(without.update), atol=1e-6)
    assert (with_broken.unusable, without.unusable) == (6, 0)
    assert charge.confirmed == 3


def test_budget_stops_before_the_step() -> None:
    network = build(TINY, seed=0)
    touched: list[int] = []
    case = phantom(0)

    def load() -> Prepared:
        touched.append(1)
        return case

    charge = CountingCharge(most=2)
    with pytest.raises(PrivacyError) as error:
        train_privately(
            network, [[load]], OPTIONS, privacy(sampling_rate=1.0), charge, execution=PLAIN
        )
    assert error.value.code == "privacy-cap"
    assert (len(touched), charge.confirmed) == (2, 2)


def test_failing_step_stays_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one of a patient's data, which is a zero: one of the step itself."""
    charge = CountingCharge()

    def fail(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(dp_sgd, "noise", fail)
    with pytest.raises(RuntimeError):
        train_privately(
            build(TINY, seed=0),
            [],
            OPTIONS,
            privacy(sampling_rate=1.0),
            charge,
            execution=PLAIN,
        )
    assert (len(charge.reserved), charge.confirmed) == (1, 0)


class Steps:
    """An accountant to whom every step costs an epsilon of one."""

    def epsilon(self, history: History, delta: float) -> float:  # noqa: ARG002
        return float(sum(steps for _, steps in history))

    def most(self, mechanism: Mechanism, beside: History, cap: Cap) -> int:  # noqa: ARG002
        return max(0, int(cap.epsilon - self.epsilon(beside, cap.delta)))


def test_ledger_is_charged_step_by_step(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger")
    everybody = frozenset({"0" * 32, "f" * 32})
    with Ledger(tmp_path / "ledger", accountant=Steps()) as ledger:
        charge = LedgerCharge(
            ledger,
            study="alpha",
            protocol="0" * 64,
            round_number=2,
            patients=everybody,
            study_cap=Cap(5.0, 1e-3),
            patient_cap=Cap(100.0, 1e-3),
        )
        for expected in (contextlib.nullcontext(), pytest.raises(PrivacyError)):
            with expected:
                train_privately(
                    build(TINY, seed=0), [], OPTIONS, privacy(), charge, execution=PLAIN
                )
        facts = ledger.facts(study="alpha")
        assert [(fact.steps, fact.round, fact.state) for fact in facts] == [(1, 2, "confirmed")] * 5
        assert {(fact.mechanism, fact.clipping_norm, fact.purpose) for fact in facts} == {
            (Mechanism(1.0, 0.5), 0.5, "training")
        }
        assert ledger.patients(study="alpha") == everybody


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.BatchNorm3d(4),
        torch.nn.BatchNorm3d(4, track_running_stats=False),
        torch.nn.SyncBatchNorm(4),
        torch.nn.InstanceNorm3d(4, track_running_stats=True),
    ],
)
def test_batch_statistics_are_refused(layer: torch.nn.Module) -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(4, 3, 1), layer)
    charge = CountingCharge()
    with pytest.raises(PrivacyError) as error:
        train_privately(network, [], OPTIONS, privacy(), charge, execution=PLAIN)
    assert error.value.code == "privacy-batch-statistics"
    assert not charge.reserved
    refuse_batch_statistics(torch.nn.InstanceNorm3d(4))


def test_protocol_without_privacy_is_refused() -> None:
    with pytest.raises(PrivacyError) as error:
        run([], privacy(mode="none"))
    assert error.value.code == "privacy-mode"


def test_frozen_weights_get_no_noise() -> None:
    network = build(TINY, seed=0)
    before = state_arrays(network)
    options = OPTIONS.model_copy(update={"trainable": ("head",)})
    result = train_privately(
        network, cohort(1), options, privacy(), CountingCharge(), execution=PLAIN
    )
    after = state_arrays(network)
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    assert changed == set(result.update)
    assert all(name.startswith("body.conv_final.") for name in changed)


def test_same_entropy_gives_the_same_update() -> None:
    patients = cohort(2)
    first = run(patients, privacy(), entropy=seeded(7))
    assert np.array_equal(first, run(patients, privacy(), entropy=seeded(7)))
    assert not np.array_equal(first, run(patients, privacy(), entropy=seeded(8)))
    assert not np.array_equal(first, run(patients, privacy()))


def test_only_noise_of_the_operating_system_is_safe(caplog: pytest.LogCaptureFixture) -> None:
    def result(entropy: Callable[[int], bytes] | None) -> TrainingResult:
        return train_privately(
            build(TINY, seed=0),
            [],
            OPTIONS,
            privacy(),
            CountingCharge(),
            execution=PLAIN,
            entropy=entropy,
        )

    with caplog.at_level(logging.WARNING):
        assert result(None).safe
        assert not caplog.records
        assert not result(seeded(0)).safe
        assert "must not leave" in caplog.text
    # Nor is an update without privacy.
    assert not train(build(TINY, seed=0), cohort(1), OPTIONS, seed=0, execution=PLAIN).safe


def test_factors_of_low_rank_are_clipped_and_noised() -> None:
    options = OPTIONS.model_copy(update={"trainable": ("low_rank",), "rank": 4, "local_steps": 1})
    constant = 4.0  # sampling rate times nominal patients

    def result(wanted: PrivacyOptions, patients: list[Patient]) -> NDArray[np.float64]:
        update = train_privately(
            build(TINY, seed=0),
            patients,
            options,
            wanted,
            CountingCharge(),
            execution=PLAIN,
            subspace=Subspace(0, 1),
        ).update
        assert all(array.shape[1:] == (4,) for array in update.values())
        return flat(update)

    quiet = privacy(noise_multiplier=1e-12, clipping_norm=1e-3, sampling_rate=1.0)
    moved = result(quiet, cohort(1)) * constant
    assert np.linalg.norm(moved) == pytest.approx(1e-3, rel=1e-5)
    noised = result(privacy(sampling_rate=1.0), []) * constant
    assert noised.std() == pytest.approx(0.5, rel=6 / math.sqrt(2 * noised.size))


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
def test_gradients_are_clipped_as_the_protocol_says(clipping: str) -> None:
    options = OPTIONS.model_copy(
        update={"augmentation": "none", "optimizer": "sgd", "momentum": 0.0, "local_steps": 1}
    )
    quiet = privacy(
        noise_multiplier=1e-12, clipping_norm=0.05, sampling_rate=1.0, clipping=clipping
    )
    patients = cohort(2)
    result = train_privately(
        build(TINY, seed=0), patients, options, quiet, CountingCharge(), execution=PLAIN
    )
    learner = Learner(build(TINY, seed=0), options, PLAIN)
    clip_one = clipper(quiet.clipping, 0.05, learner.sizes)
    total = sum(
        clip_one(learner.gradient(draw_patient(one, options, np.random.default_rng(0))))
        for one in patients
    )
    expected = -options.learning_rate * total.numpy() / quiet.nominal_patients
    assert np.allclose(flat(result.update), expected, rtol=1e-3, atol=1e-7)
