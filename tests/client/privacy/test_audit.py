"""The audit passes on the code as it is, and fails on that code with a fault planted in it."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.privacy import audit, clipping, dp_sgd
from client.privacy.accountant import epsilon
from client.privacy.audit import audit_privacy, check
from client.privacy.mechanism import Mechanism
from client.privacy.secure_noise import RandomBytes
from client.training.crops import Crops
from client.training.loop import Learner
from common.errors import PrivacyError
from common.study.protocol import PrivacyOptions, TrainingOptions

torch.set_num_threads(1)
CANARIES = 12_288

Draws = Iterable[Callable[[], Crops | None]]
real_contributions = dp_sgd.contributions
real_noise = dp_sgd.noise


def halved_noise(
    entropy: RandomBytes, count: int, *, noise_multiplier: float, clipping_norm: float
) -> torch.Tensor:
    return real_noise(
        entropy, count, noise_multiplier=noise_multiplier / 2, clipping_norm=clipping_norm
    )


def clipped_per_crop(
    learner: Learner, draws: Draws, *, prefetch: int
) -> Iterator[torch.Tensor | None]:
    """Each crop is clipped on its own, so that a patient of K crops weighs up to K norms."""
    for draw in draws:
        crops = draw()
        assert crops is not None
        images, regions = crops
        for place in range(len(images)):
            yield learner.gradient((images[place : place + 1], regions[place : place + 1]))


def drawn_twice(learner: Learner, draws: Draws, *, prefetch: int) -> Iterator[torch.Tensor | None]:
    twice = [draw for draw in draws for _ in range(2)]
    return real_contributions(learner, twice, prefetch=prefetch)


def drawn_always(entropy: RandomBytes, count: int) -> NDArray[np.float64]:
    return np.zeros(count)


def undercharged(noise_multiplier: float, sampling_rate: float) -> Mechanism:
    return Mechanism(2 * noise_multiplier, sampling_rate)


def a_tenth_less_noise(
    entropy: RandomBytes, count: int, *, noise_multiplier: float, clipping_norm: float
) -> torch.Tensor:
    return real_noise(
        entropy, count, noise_multiplier=0.9 * noise_multiplier, clipping_norm=clipping_norm
    )


def half_counted_twice(
    learner: Learner, draws: Draws, *, prefetch: int
) -> Iterator[torch.Tensor | None]:
    """One patient in two counts twice."""
    some = [draw for number, draw in enumerate(draws) for _ in range(1 + number % 2)]
    return real_contributions(learner, some, prefetch=prefetch)


SMALL = {
    "a tenth less noise": ("noise", a_tenth_less_noise, "noise"),
    "a patient in two counts twice": ("contributions", half_counted_twice, "share"),
}

FAULTS = {
    "noise halved": ("noise", halved_noise, "noise and clipping"),
    "clip per crop": ("contributions", clipped_per_crop, "noise and clipping"),
    "patient twice in a batch": ("contributions", drawn_twice, "noise and clipping"),
    "everybody in every batch": ("uniforms", drawn_always, "sampling"),
    "charged for twice the noise": ("Mechanism", undercharged, "noise and clipping"),
}


def seeded(seed: int) -> RandomBytes:
    return np.random.default_rng(seed).bytes


def test_the_honest_code_passes() -> None:
    told: list[tuple[str, int, int]] = []
    result = audit_privacy(
        canaries=CANARIES, entropy=seeded(1), progress=lambda *what: told.append(what)
    )
    check(result)
    noise, sampling = result.trials
    assert 0 < noise.lower_bound < 0.8 * noise.upper_bound
    assert sampling.lower_bound < 0.8 * sampling.upper_bound
    for trial in result.trials:
        for one in (trial.noise, trial.share):
            assert abs(one.value - one.expected) < 4 * one.error
    assert noise.noise.error < 0.03
    assert sum(1 - trial.confidence for trial in result.trials) <= 1 - result.confidence + 1e-9
    for trial in result.trials:
        mechanism = Mechanism(trial.noise_multiplier, trial.sampling_rate)
        assert trial.upper_bound == epsilon([(mechanism, trial.steps)], trial.delta)
    assert {name for name, _, _ in told} == {"noise and clipping", "sampling"}
    assert all(0 < done <= total for _, done, total in told)


@pytest.mark.parametrize("fault", SMALL)
def test_a_fault_that_is_too_small_for_the_bound_shows_in_an_estimate(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "LEAST_CANARIES", 4096)
    name, planted, wrong = SMALL[fault]
    monkeypatch.setattr(dp_sgd, name, planted)
    result = audit_privacy(canaries=4096, entropy=seeded(3))
    trial = result.trials[0]
    assert trial.lower_bound <= trial.upper_bound
    assert (trial.noise.below, trial.share.above) == (wrong == "noise", wrong == "share")
    assert not result.passed
    with pytest.raises(PrivacyError, match="expected"):
        check(result)


def test_the_estimates_are_as_exact_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many honest audits each lies within its error as often as a normal deviate does."""
    rng = np.random.default_rng(7)
    members = np.arange(2000) % 2 == 0
    far = []
    for _ in range(400):
        scores = rng.normal(0.0, 2.0 * 3.0, 2000) + np.where(members, 3.0, 0.0)
        for one in audit._estimates(
            scores, members, scale=1 / 3.0, steps=1, charged=Mechanism(2.0, 1.0)
        ):
            far.append((one.value - one.expected) / one.error)
    assert 0.9 < np.std(far) < 1.1
    assert abs(np.mean(far)) < 0.15


def test_a_seed_repeats_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "LEAST_CANARIES", 1024)
    first, second, other = (
        audit_privacy(canaries=1024, entropy=seeded(seed)).trials for seed in (4, 4, 5)
    )
    assert first == second != other


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, planted, where = FAULTS[fault]
    monkeypatch.setattr(dp_sgd, name, planted)
    result = audit_privacy(canaries=CANARIES, entropy=seeded(2))
    assert not result.passed
    assert where in [trial.name for trial in result.trials if not trial.passed]
    with pytest.raises(PrivacyError, match="less privacy than the ledger says") as caught:
        check(result)
    assert caught.value.code == "privacy-audit"
    assert "Stop all training" in caught.value.do


def test_the_study_gives_norm_and_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "LEAST_CANARIES", 512)
    seen: list[tuple[float, int]] = []

    def noted(gradient: torch.Tensor, clipping_norm: float, **ways: float) -> torch.Tensor:
        found = real_clip(gradient, clipping_norm, **ways)
        seen.append((float(torch.linalg.vector_norm(found)), int((found != 0).sum())))
        return found

    real_clip = clipping.clip
    monkeypatch.setattr(clipping, "clip", noted)
    crops: list[int] = []
    real_gradient = Learner.gradient

    def counted(self: Learner, drawn: Crops) -> torch.Tensor:
        crops.append(len(drawn[0]))
        return real_gradient(self, drawn)

    monkeypatch.setattr(Learner, "gradient", counted)
    result = audit_privacy(
        privacy=PrivacyOptions(clipping_norm=0.003, noise_multiplier=9.0, nominal_patients=5),
        training=TrainingOptions(
            local_steps=7, crops_per_patient=3, learning_rate=1e-5, optimizer="adam"
        ),
        canaries=512,
    )
    assert [trial.clipping_norm for trial in result.trials] == [0.003, 0.003]
    assert (result.crops_per_patient, set(crops)) == (3, {3})
    # Every canary comes to the clip too long, leaves it at full length, and along one weight.
    assert seen
    assert all(norm == pytest.approx(0.003, rel=1e-9) and one == 1 for norm, one in seen)


def test_without_noise_every_guess_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "LEAST_CANARIES", 1024)
    monkeypatch.setattr(dp_sgd, "noise", lambda _, count, **__: torch.zeros(count).double())
    noise, _ = audit_privacy(canaries=1024, entropy=seeded(5)).trials
    assert noise.correct == noise.guesses == 2 * round(0.025 * 1024)
    assert noise.lower_bound > 0


@pytest.mark.parametrize("canaries", [0, 8_191, 131_073])
def test_too_few_or_too_many_canaries_are_refused(canaries: int) -> None:
    with pytest.raises(PrivacyError, match="canaries") as caught:
        audit_privacy(canaries=canaries)
    assert caught.value.code == "privacy-audit"


def test_what_cannot_be_audited_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "LEAST_CANARIES", 64)
    with pytest.raises(PrivacyError) as caught:
        audit_privacy(privacy=PrivacyOptions(mode="none"), canaries=64)
    assert caught.value.code == "privacy-mode"
    with pytest.raises(PrivacyError, match="not finite"):
        audit_privacy(privacy=PrivacyOptions(clipping_norm=1e39), canaries=64)
