"""What a site adds to its steps, against loops written out and the papers' algorithms."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.networks.registry import build, state_arrays, trainable_names
from client.privacy.dp_sgd import CountingCharge, train_privately
from client.site.execution import ExecutionOptions
from client.training.crops import Patient, draw_patient
from client.training.drift_correction import Terms, correction, next_control
from client.training.loop import Learner, train
from client.training.losses import LOSSES, dice_bce
from common.messages.low_rank import Subspace, basis
from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from common.study.protocol import NetworkOptions, PrivacyOptions, TrainingOptions
from server.aggregation import RULES
from server.aggregation.scaffold import control
from tests.client.training.test_loop import Prepared, cohort, options, phantom

torch.set_num_threads(1)
TINY = NetworkOptions(size="tiny")
PLAIN = ExecutionOptions(prefetch=0)
PRIVACY = PrivacyOptions(sampling_rate=1.0, nominal_patients=2, clipping_norm=0.5)


def seeded() -> Callable[[int], bytes]:
    count = itertools.count()
    return lambda size: hashlib.shake_256(str(next(count)).encode()).digest(size)


def trained(wanted: TrainingOptions, *, private: bool = False, **values: Any) -> Any:
    network = build(TINY, seed=0)
    common = {"execution": PLAIN, "subspace": Subspace(5, 2), **values}
    if private:
        result = train_privately(
            network, cohort(2), wanted, PRIVACY, CountingCharge(), entropy=seeded(), **common
        )
    else:
        result = train(network, cohort(2), wanted, seed=3, **common)
    return result, state_arrays(network)


def vector(arrays: Arrays) -> NDArray[np.float64]:
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)]).astype(np.float64)


def distance(one: Arrays, other: Arrays) -> float:
    return float(np.linalg.norm(vector(one) - vector(other)))


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("trainable", [("all",), ("norms", "low_rank")])
def test_without_terms_nothing_changes_by_a_bit(private: bool, trainable: Any) -> None:
    wanted = options(trainable=trainable, rank=3)
    first, _ = trained(wanted, private=private)
    zero = {name: np.zeros_like(value) for name, value in first.update.items()}
    for same in (
        {"terms": Terms()},
        {"terms": Terms(centre=state_arrays(build(TINY, seed=9)))},  # no pull, mu is 0
        {"terms": Terms(correction=zero)},
        {"before_step": lambda: None},
    ):
        again, _ = trained(wanted, private=private, **same)
        assert {n: v.tobytes() for n, v in again.update.items()} == {
            n: v.tobytes() for n, v in first.update.items()
        }
    assert first.local == {}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fedprox_is_the_loop_written_out(optimizer: str) -> None:
    """The gradient of loss + mu / 2 |w - w0|^2, by autograd, in float64."""
    wanted = options(optimizer=optimizer, proximal_mu=0.7, momentum=0.5, learning_rate=0.05)
    crops = [draw_patient(cohort(1)[0], wanted, np.random.default_rng(k)) for k in range(4)]
    learner = Learner(network := build(TINY, seed=0).double(), wanted, PLAIN)
    for drawn in crops:
        learner.step(learner.gradient(drawn))

    reference = build(TINY, seed=0).double()
    start = {name: value.detach().clone() for name, value in reference.named_parameters()}
    values = list(reference.parameters())
    stepper = (
        torch.optim.Adam(values, 0.05)
        if optimizer == "adam"
        else torch.optim.SGD(values, 0.05, momentum=0.5)
    )
    for images, regions in crops:
        away = sum(((v - start[n]) ** 2).sum() for n, v in reference.named_parameters())
        loss = dice_bce(reference(images.double()), regions).mean() + 0.35 * away
        stepper.zero_grad()
        loss.backward()
        stepper.step()
    for name, value in reference.named_parameters():
        assert torch.allclose(network.get_parameter(name), value, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("trainable", [("all",), ("norms", "low_rank")])
def test_the_pull_holds_the_update_back(private: bool, trainable: Any) -> None:
    lengths = []
    for mu in (0.0, 5.0):
        wanted = options(
            optimizer="sgd",
            momentum=0.0,
            learning_rate=0.05,
            trainable=trainable,
            proximal_mu=mu,
            local_steps=6,
        )
        result, _ = trained(wanted, private=private)
        lengths.append(float(np.linalg.norm(vector(result.update))))
    assert lengths[1] < 0.9 * lengths[0]


def test_the_pull_of_a_private_step_comes_after_clip_and_noise() -> None:
    """With the same draws and noise, the second step differs by r mu (w1 - w0) and nothing else."""
    base = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0, "trainable": ("head",)}
    nobody: list[Patient] = []

    def updates(mu: float, steps: int) -> Arrays:
        return train_privately(
            build(TINY, seed=0),
            nobody,
            options(**base, proximal_mu=mu, local_steps=steps),
            PRIVACY,
            CountingCharge(),
            execution=PLAIN,
            entropy=seeded(),
        ).update

    first, plain, pulled = updates(0.0, 1), updates(0.0, 2), updates(2.0, 2)
    assert np.linalg.norm(vector(first)) > 1  # noise alone: clipped, the pull would be far shorter
    for name, value in pulled.items():
        assert np.allclose(plain[name] - 2.0 * first[name], value, atol=1e-6)


def test_the_pull_of_factors() -> None:
    """To the start it is mu B; to other weights it is autograd's gradient by B of the term."""
    wanted = options(trainable=("low_rank",), rank=3, proximal_mu=2.0, optimizer="sgd", momentum=0)
    far = state_arrays(build(TINY, seed=9))
    for centre in (None, far):
        network = build(TINY, seed=0).double()
        before = {name: value.detach().clone() for name, value in network.named_parameters()}
        learner = Learner(
            network, wanted, PLAIN, subspace=Subspace(5, 2), terms=Terms(centre=centre)
        )
        start = {name: value.detach().clone() for name, value in learner._leading.items()}
        kick = torch.from_numpy(np.random.default_rng(1).normal(size=learner.size))
        learner.step(kick)
        for name, values in learner._leading.items():
            factor = values.detach().clone().requires_grad_()
            known = basis(name, seed=5, round_number=2, rank=3, columns=before[name][0].numel())
            if centre is None:
                term = 1.0 * (factor - start[name]).square().sum()
            else:
                change = (factor @ torch.from_numpy(known)).reshape(before[name].shape)
                target = torch.from_numpy(far[name]).double()
                term = 1.0 * (before[name] + change - target).square().sum()
            (expected,) = torch.autograd.grad(term, factor)
            found = learner._drift.added(name)
            assert found is not None
            assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("devices", [1, 2])
def test_local_layers_are_trained_and_are_not_in_the_update(private: bool, devices: int) -> None:
    wanted = options(local=("norms",), proximal_mu=3.0, optimizer="sgd", local_steps=3)
    execution = ExecutionOptions(("cpu",) * devices, prefetch=0)
    before = state_arrays(network := build(TINY, seed=0))
    own = set(trainable_names(network, ("norms",)))
    result, after = trained(wanted, private=private, execution=execution)
    assert set(result.update) == set(before) - own
    assert set(result.local) == own
    for name, value in result.local.items():
        assert np.array_equal(value, after[name])
        assert not np.array_equal(value, before[name])
    # Nothing pulls them: there is no global value to come back to.
    freely, _ = trained(
        options(local=("norms",), proximal_mu=0.0, optimizer="sgd", local_steps=1),
        private=private,
        execution=execution,
    )
    pulled, _ = trained(
        options(local=("norms",), proximal_mu=3.0, optimizer="sgd", local_steps=1),
        private=private,
        execution=execution,
    )
    assert all(np.array_equal(freely.local[n], v) for n, v in pulled.local.items())


def squares(logits: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """A loss of which a 1x1x1 convolution makes a quadratic with a curvature of each site's own."""
    return (logits - 3.0 * regions.to(logits.dtype)).square().flatten(1).mean(1) / 2


def convolution() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv3d(4, 3, 1))


def opposite_sites() -> list[Patient]:
    """Two hospitals of one patient each: what is bright in one is dark in the other."""

    def loader(seed: int, sign: float, scale: float) -> Callable[[], Prepared]:
        case = phantom(seed, (8, 8, 8))
        return lambda: Prepared((sign * scale * case.image).astype(np.float32), case.labels)

    return [[loader(1, 1.0, 1.0)], [loader(2, -1.0, 2.0)]]


SITES = ("north", "south")
RATE = 0.08
WHOLE = {
    "crop_size": (8, 8, 8),
    "augmentation": "none",
    "crops_per_patient": 1,
    "optimizer": "sgd",
    "momentum": 0.0,
    "learning_rate": RATE,
    "local_steps": 10,
}


def gradient(weights: Sequence[torch.Tensor], site: Patient) -> list[torch.Tensor]:
    images, regions = draw_patient(site, options(**WHOLE), np.random.default_rng(0))
    leaves = [value.detach().clone().requires_grad_() for value in weights]
    logits = torch.nn.functional.conv3d(images.double(), leaves[0], leaves[1])
    return list(torch.autograd.grad(squares(logits, regions).mean(), leaves))


def paper(rounds: int, *, scaffold: bool) -> list[list[torch.Tensor]]:
    """Algorithm 1 of Karimireddy et al. 2020, option II, all sites in every round, in float64."""
    network, sites = convolution().double(), opposite_sites()
    x = [value.detach().clone() for value in network.parameters()]
    c = [torch.zeros_like(value) for value in x]
    own = [[torch.zeros_like(value) for value in x] for _ in sites]
    rate, steps, seen = RATE, 10, [x]
    for _ in range(rounds):
        moved, changed = [], []
        for place, site in enumerate(sites):
            y = [value.clone() for value in x]
            for _ in range(steps):
                parts = gradient(y, site)
                y = [
                    a - rate * (g + (m - n if scaffold else 0))
                    for a, g, m, n in zip(y, parts, c, own[place], strict=True)
                ]
            after = [
                n - m + (a - b) / (steps * rate)
                for n, m, a, b in zip(own[place], c, x, y, strict=True)
            ]
            moved.append([b - a for a, b in zip(x, y, strict=True)])
            changed.append([b - a for a, b in zip(own[place], after, strict=True)])
            own[place] = after
        x = [a + sum(d) / len(sites) for a, *d in zip(x, *moved, strict=True)]
        c = [a + sum(d) / len(sites) for a, *d in zip(c, *changed, strict=True)]
        seen.append(x)
    return seen


def federated(rounds: int, *, scaffold: bool) -> list[Arrays]:
    """The same by the code of sites and coordinator, in float32 as messages are."""
    name = "scaffold" if scaffold else "fedavg"
    rules = AggregationOptions.model_validate({"rule": name, "quorum": 2})
    wanted, weights = options(**WHOLE), state_arrays(convolution())
    state: Arrays = {}
    own: dict[str, Arrays] = {site: {} for site in SITES}
    seen = [weights]
    for _ in range(rounds):
        rule = RULES[name](rules, state)
        c = control(state, learning_rate=wanted.learning_rate) if scaffold else {}
        for site, patient in zip(SITES, opposite_sites(), strict=True):
            network = convolution()
            network.load_state_dict({n: torch.from_numpy(v) for n, v in weights.items()})
            terms = Terms(correction=correction(c, own[site])) if scaffold else Terms()
            result = train(network, [patient], wanted, seed=0, execution=PLAIN, terms=terms)
            rule.fold(site, result.update, weight=1.0, steps=wanted.local_steps)
            own[site] = next_control(
                own[site],
                c,
                result.update,
                steps=wanted.local_steps,
                learning_rate=wanted.learning_rate,
            )
        weights = {name: value + rule.result()[name] for name, value in weights.items()}
        state = rule.state()
        seen.append(weights)
    return seen


def test_scaffold_is_the_papers_and_ends_where_fedavg_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LOSSES, "dice_bce", squares)
    rounds = 30
    ends = {}
    for scaffold in (False, True):
        expected, found = paper(rounds, scaffold=scaffold), federated(rounds, scaffold=scaffold)
        for x, weights in zip(expected, found, strict=True):
            for value, name in zip(x, ("0.weight", "0.bias"), strict=True):
                assert np.allclose(weights[name], value.numpy(), atol=2e-5)
        total = [gradient(expected[-1], site) for site in opposite_sites()]
        ends[scaffold] = float(
            torch.cat([(a + b).flatten() / 2 for a, b in zip(*total, strict=True)]).norm()
        )
    # FedAvg stops where the drifts of the sites cancel, not their gradients.
    assert ends[True] < 0.05 * ends[False]


def test_the_mean_of_the_sites_variates_is_the_coordinators() -> None:
    """Also when sites are missing, and when what was sent is not what was trained."""
    rng = np.random.default_rng(0)
    rules = AggregationOptions(rule="scaffold", quorum=1, weights={"a": 2.0, "b": 1.0, "c": 3.0})
    state: Arrays = {}
    own: dict[str, Arrays] = {}
    for number in range(12):
        c = control(state, learning_rate=0.1)
        rule = RULES["scaffold"](rules, state)
        for site in [s for s in "abc" if rng.random() < 0.6] or ["a"]:
            sent = {"w": rng.normal(size=(3,)).astype(np.float32)}
            rule.fold(site, sent, weight=rules.weights[site], steps=5)
            own[site] = next_control(own.get(site, {}), c, sent, steps=5, learning_rate=0.1)
        state = rule.state()
        total = sum(rules.weights[site] for site in own)
        mean = sum(rules.weights[site] * own[site]["w"].astype(np.float64) for site in own) / total
        assert np.allclose(control(state, learning_rate=0.1)["w"], mean, atol=1e-5), number
