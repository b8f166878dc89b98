import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.privacy import accountant
from client.privacy.accountant import (
    PldAccountant,
    attack_epsilon,
    distribution_epsilon,
    epsilon,
    most_steps,
    renyi_epsilon,
)
from client.privacy.ledger import Ledger
from client.privacy.mechanism import Cap, Mechanism
from common.errors import PrivacyError

PUBLISHED = [
    # noise, steps, delta, Rényi, distributions; the sampling rate is 0.1
    (0.6, 200, 1e-3, 25.1, 21.74),
    (0.6, 5000, 1e-3, 249.2, 231.8),
    (0.8, 1000, 1e-3, 35.2, 31.82),
    (1.0, 200, 1e-3, 8.18, 7.10),
    (1.0, 1000, 1e-3, 21.9, 19.71),
    (1.5, 200, 1e-3, 4.05, 3.52),
    (1.5, 1000, 1e-5, 13.56, 12.57),
    (2.0, 200, 1e-5, 3.68, 3.36),
    (2.0, 1000, 1e-3, 6.87, 6.12),
    (2.0, 5000, 1e-5, 24.0, 22.51),
]

MECHANISMS = st.builds(
    Mechanism,
    st.floats(-0.6, 3.0).map(lambda power: 10**power),
    st.one_of(st.floats(-5, 0).map(lambda power: 10**power), st.just(1.0)),
)
HISTORIES = st.lists(st.tuples(MECHANISMS, st.integers(0, 3000)), min_size=1, max_size=3)
DELTAS = st.floats(-8, -0.1).map(lambda power: 10**power)


@pytest.mark.parametrize(("noise", "steps", "delta", "renyi", "tight"), PUBLISHED)
def test_known_values_come_out(
    noise: float, steps: int, delta: float, renyi: float, tight: float
) -> None:
    history = [(Mechanism(noise, 0.1), steps)]
    assert renyi_epsilon(history, delta) == pytest.approx(renyi, rel=5e-3)
    assert epsilon(history, delta) == pytest.approx(tight, rel=5e-3)
    assert distribution_epsilon(history, delta) == epsilon(history, delta)


@pytest.mark.parametrize(("noise", "rate"), [(0.6, 0.1), (1.0, 0.01), (2.0, 0.5), (5.0, 1.0)])
def test_the_library_s_own_accountant_agrees(noise: float, rate: float) -> None:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    event: Any = dp_accounting.GaussianDpEvent(noise)
    if rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(rate, event)
    own = PLDAccountant().compose(event, 100).compose(dp_accounting.GaussianDpEvent(8.0), 3)
    history = [(Mechanism(noise, rate), 100), (Mechanism(8.0, 1.0), 3)]
    assert epsilon(history, 1e-4) == pytest.approx(own.get_epsilon(1e-4), rel=1e-3)


@pytest.mark.parametrize("noise", [0.3, 1.0, 5.0, 30.0, 1000.0])
@pytest.mark.parametrize("steps", [1, 40, 5000])
@pytest.mark.parametrize("delta", [1e-8, 1e-5, 1e-3, 0.1])
def test_without_sampling_the_exact_value_is_bounded(
    noise: float, steps: int, delta: float
) -> None:
    """The plain Gaussian mechanism has a closed form: Balle & Wang 2018, arXiv:1805.06530."""
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, ndtr

    scale = math.sqrt(steps) / noise

    def too_little(guess: float) -> float:
        lost = math.exp(guess + log_ndtr(-scale / 2 - guess / scale))
        return float(ndtr(scale / 2 - guess / scale) - lost - delta)

    history = [(Mechanism(noise, 1.0), steps)]
    if renyi_epsilon(history, delta) > 500:
        assert epsilon(history, delta) == renyi_epsilon(history, delta)
        return
    exact = brentq(too_little, 0.0, 600.0) if too_little(0.0) > 0 else 0.0
    assert exact <= epsilon(history, delta) <= exact * 1.005 + 1e-4
    assert 0.97 * exact - 1e-3 <= attack_epsilon(history, delta) <= exact * (1 + 1e-9) + 1e-9


@settings(max_examples=30, deadline=None)
@given(HISTORIES, DELTAS)
def test_the_bounds_are_in_order(history: list[tuple[Mechanism, int]], delta: float) -> None:
    renyi = renyi_epsilon(history, delta)
    if renyi <= 500:
        tight = distribution_epsilon(history, delta)
        assert attack_epsilon(history, delta) <= min(tight, renyi) * (1 + 1e-6) + 1e-6
        # Infinite where the rounding of its masses shows: there Rényi answers.
        assert tight == math.inf or tight <= renyi * (1 + 1e-6) + 1e-6
    assert 0 <= epsilon(history, delta) <= renyi


@settings(max_examples=15, deadline=None)
@given(HISTORIES, HISTORIES, st.sampled_from([1e-6, 1e-4, 1e-2]))
def test_more_steps_never_cost_less(
    history: list[tuple[Mechanism, int]], more: list[tuple[Mechanism, int]], delta: float
) -> None:
    assert epsilon(history, delta) <= epsilon([*history, *more], delta) * 1.002 + 1e-3


@pytest.mark.parametrize("noise", [1e-6, 1e-3, 0.1, 0.3, 0.5, 1.0, 3.0, 100.0, 1e3, 1e4])
@pytest.mark.parametrize("rate", [1e-6, 0.1, 1.0])
@pytest.mark.parametrize("steps", [1, 10, 2**24])
def test_extreme_noise_has_a_sound_answer(
    noise: float, rate: float, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    history = [(Mechanism(noise, rate), steps)]
    with caplog.at_level(logging.WARNING):
        found = epsilon(history, 1e-3)
    assert not caplog.records
    assert attack_epsilon(history, 1e-3) <= found * (1 + 1e-6) + 1e-6
    assert not math.isnan(found)
    if noise <= 1e-3 and rate > 1e-3:
        assert found > 1e3
    if noise >= 1e3 and steps <= 10:
        assert found < 0.02


def test_equal_mechanisms_add_up() -> None:
    parts = [(Mechanism(1.0, 0.1), n) for n in (1, 70, 0, 129)]
    other = (Mechanism(2.0, 0.1), 5)
    assert epsilon([*parts, other], 1e-3) == epsilon([other, (Mechanism(1.0, 0.1), 200)], 1e-3)


def test_nothing_costs_nothing_and_epsilon_is_never_negative() -> None:
    for bound in (epsilon, renyi_epsilon, distribution_epsilon, attack_epsilon):
        assert bound([], 1e-3) == 0.0
        assert bound([(Mechanism(1.0, 0.1), 0)], 1e-3) == 0.0
        assert bound([(Mechanism(1e4, 1e-6), 1)], 0.09) == 0.0


def test_epsilon_rises_with_steps_and_falls_with_noise() -> None:
    values = [epsilon([(Mechanism(1.0, 0.1), steps)], 1e-3) for steps in range(1, 300, 13)]
    assert values == sorted(set(values))
    noises = (1e-6, 1e-3, 0.1, 0.5, 1.0, 3.0, 100.0, 1e4)
    spent = [epsilon([(Mechanism(noise, 0.1), 10)], 1e-3) for noise in noises]
    assert spent == sorted(spent, reverse=True)
    assert spent[0] > 1e9


def test_a_tiny_delta_is_left_to_the_renyi_bound() -> None:
    history = [(Mechanism(1.0, 0.1), 100)]
    assert epsilon(history, 1e-12) == renyi_epsilon(history, 1e-12) > epsilon(history, 1e-8)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_impossible_delta_is_refused(delta: float) -> None:
    for bound in (epsilon, renyi_epsilon, distribution_epsilon, attack_epsilon):
        with pytest.raises(PrivacyError) as error:
            bound([(Mechanism(1.0, 0.1), 1)], delta)
        assert error.value.code == "privacy-parameters"


def test_negative_counts_are_refused() -> None:
    with pytest.raises(PrivacyError):
        epsilon([(Mechanism(1.0, 0.1), 2), (Mechanism(1.0, 0.1), -1)], 1e-3)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("distribution_epsilon", 9.0),
        ("distribution_epsilon", 1.0),
        ("distribution_epsilon", math.nan),
        ("renyi_epsilon", 6.0),
        ("renyi_epsilon", 1.0),
        ("attack_epsilon", 7.2),
        ("attack_epsilon", math.nan),
    ],
)
def test_accountants_that_contradict_each_other_stop_everything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, answer: float
) -> None:
    """The true answers are 8.18, 7.10 and at least 5."""
    monkeypatch.setattr(accountant, name, lambda *_: answer)
    mechanism = Mechanism(1.0, 0.1)
    with pytest.raises(PrivacyError) as error:
        epsilon([(mechanism, 200)], 1e-3)
    assert error.value.code == "privacy-accountants"
    assert "200 of (1.0, 0.1)" in error.value.do
    assert "200" not in error.value.message  # which leaves, and the history is a patient's
    cached = PldAccountant(tmp_path / "answers.json")
    with pytest.raises(PrivacyError):
        cached.epsilon([(mechanism, 200)], 1e-3)
    assert not (tmp_path / "answers.json").exists()


BESIDE = [(Mechanism(5.0, 1.0), 10), (Mechanism(2.0, 0.2), 5)]


@pytest.mark.parametrize(
    ("mechanism", "beside", "cap"),
    [
        (Mechanism(1.0, 0.1), [], Cap(8.0, 1e-3)),
        (Mechanism(1.5, 0.1), BESIDE, Cap(8.0, 1e-3)),
        (Mechanism(2.0, 0.1), [], Cap(22.0, 1e-5)),
        (Mechanism(0.6, 0.1), [], Cap(3.0, 1e-3)),
        (Mechanism(5.0, 1.0), [], Cap(8.0, 1e-3)),
        (Mechanism(100.0, 0.1), BESIDE, Cap(3.0, 1e-3)),
        (Mechanism(0.3, 0.1), [], Cap(100.0, 1e-3)),
        (Mechanism(1.0, 0.1), [], Cap(1000.0, 1e-3)),
        # None fits.
        (Mechanism(0.6, 0.1), [], Cap(0.5, 1e-3)),
        (Mechanism(1.0, 0.1), [], Cap(0.0, 1e-3)),
        (Mechanism(1.0, 0.1), [(Mechanism(0.5, 1.0), 10)], Cap(3.0, 1e-3)),
        (Mechanism(1e-6, 1.0), [], Cap(100.0, 1e-3)),
    ],
)
def test_most_is_the_last_step_that_fits(
    monkeypatch: pytest.MonkeyPatch,
    mechanism: Mechanism,
    beside: list[tuple[Mechanism, int]],
    cap: Cap,
) -> None:
    asked = []

    def counted(*question: Any) -> float:
        asked.append(question)
        return distribution_epsilon(*question)

    monkeypatch.setattr(accountant, "distribution_epsilon", counted)
    most = most_steps(mechanism, beside, cap)
    assert len(asked) <= 10
    assert most == 0 or epsilon([*beside, (mechanism, most)], cap.delta) <= cap.epsilon
    assert epsilon([*beside, (mechanism, most + 1)], cap.delta) > cap.epsilon


def test_most_is_bounded() -> None:
    assert most_steps(Mechanism(1e4, 1e-3), [], Cap(1.0, 1e-3)) == 2**24


def test_a_budget_of_3_is_spent_to_its_last_step(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger")
    cap, loose = Cap(3.0, 1e-3), Cap(100.0, 1e-3)
    mechanism = Mechanism(1.5, 0.1)
    everyone = frozenset(f"{number:032x}" for number in range(3))

    def reserve(steps: int, caps: tuple[Cap, Cap]) -> None:
        # Each time as after a restart: only what is on the disk is known.
        own = PldAccountant(tmp_path / "answers.json")
        with Ledger(tmp_path / "ledger", accountant=own) as ledger:
            ledger.reserve(
                study="alpha",
                protocol="",
                round_number=1,
                purpose="training",
                patients=everyone,
                mechanism=mechanism,
                clipping_norm=1.0,
                steps=steps,
                study_cap=caps[0],
                patient_cap=caps[1],
            )

    last = most_steps(mechanism, [], cap)
    assert epsilon([(mechanism, last)], 1e-3) <= 3.0 < epsilon([(mechanism, last + 1)], 1e-3)
    assert 100 < last < 200
    reserve(last - 4, (cap, loose))
    for caps in ((cap, loose), (loose, cap), (cap, cap), (cap, loose)):
        reserve(1, caps)
    for caps in ((cap, loose), (loose, cap)):
        with pytest.raises(PrivacyError, match="does not allow 1 more steps") as error:
            reserve(1, caps)
        assert error.value.code == "privacy-cap"
    with Ledger(tmp_path / "ledger", accountant=PldAccountant()) as ledger:
        spent = ledger.spent(1e-3)
        assert (spent.steps, spent.unconfirmed) == (last, last)
        assert 2.97 < spent.epsilon <= 3.0


def test_a_known_answer_needs_no_library(tmp_path: Path) -> None:
    cache = tmp_path / "answers.json"
    mechanism, cap = Mechanism(1.0, 0.1), Cap(3.0, 1e-3)
    first = PldAccountant(cache)
    most = first.most(mechanism, BESIDE, cap)
    spent = first.epsilon([*BESIDE, (mechanism, most)], 1e-3)
    script = (
        "import sys; from pathlib import Path\n"
        "from client.privacy.accountant import PldAccountant\n"
        "from client.privacy.mechanism import Cap, Mechanism\n"
        "again = PldAccountant(Path(sys.argv[1]))\n"
        "beside = [(Mechanism(2.0, 0.2), 5), (Mechanism(5.0, 1.0), 4), (Mechanism(5.0, 1.0), 6)]\n"
        f"assert again.most(Mechanism(1.0, 0.1), beside, Cap(3.0, 1e-3)) == {most}\n"
        f"assert again.epsilon([*beside, (Mechanism(1.0, 0.1), {most})], 1e-3) == {spent!r}\n"
        "heavy = {'opacus', 'dp_accounting', 'torch', 'numpy', 'scipy'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(cache)], check=True)


def test_answers_are_kept_by_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(accountant, "most_steps", lambda *q: asked.append(q) or len(asked))
    monkeypatch.setattr(accountant, "epsilon", lambda *q: asked.append(q) or len(asked))
    own = PldAccountant(tmp_path / "answers.json")
    mechanism, other = Mechanism(1.0, 0.1), Mechanism(1.0, 0.2)
    questions = [
        lambda one: one.most(mechanism, [], Cap(3.0, 1e-3)),
        lambda one: one.most(other, [], Cap(3.0, 1e-3)),
        lambda one: one.most(mechanism, [(other, 1)], Cap(3.0, 1e-3)),
        lambda one: one.most(mechanism, [(other, 2)], Cap(3.0, 1e-3)),
        lambda one: one.most(mechanism, [], Cap(4.0, 1e-3)),
        lambda one: one.most(mechanism, [], Cap(3.0, 1e-4)),
        lambda one: one.epsilon([(mechanism, 1)], 1e-3),
        lambda one: one.epsilon([(mechanism, 1)], 1e-4),
        lambda one: one.epsilon([(mechanism, 2)], 1e-3),
    ]
    expected = list(range(1, len(questions) + 1))
    assert [question(own) for question in questions] == expected
    assert [question(own) for question in questions] == expected
    again = PldAccountant(tmp_path / "answers.json")
    assert [question(again) for question in questions] == expected
    assert len(asked) == len(questions)
    monkeypatch.setattr(accountant, "version", lambda name: f"{name} of another day")
    newer = PldAccountant(tmp_path / "answers.json")
    assert questions[0](newer) == len(questions) + 1
