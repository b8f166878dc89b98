import math
import subprocess
import sys
from pathlib import Path

import pytest

from client.accountant import epsilon
from common.errors import PrivacyError
from common.privacy import Cap, Ledger, Mechanism

CASES = [
    (0.6, 0.1, 200, 1e-3),
    (1.0, 0.01, 1000, 1e-3),
    (1.0, 0.1, 200, 1e-3),
    (1.5, 0.1, 1000, 1e-5),
    (2.0, 0.5, 50, 1e-3),
    (1.0, 1.0, 1, 1e-3),
    (5.0, 1.0, 50, 1e-3),
]


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), CASES)
def test_bound_lies_above_the_tight_one_and_near(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    events = pytest.importorskip("dp_accounting")
    pld = pytest.importorskip("dp_accounting.pld")
    event = events.GaussianDpEvent(noise)
    if rate < 1:
        event = events.PoissonSampledDpEvent(rate, event)
    tight = pld.PLDAccountant().compose(event, steps).get_epsilon(delta)
    assert tight <= epsilon([(Mechanism(noise, rate), steps)], delta) <= 1.25 * tight


def test_mixed_history_lies_above_the_tight_bound_and_near() -> None:
    events = pytest.importorskip("dp_accounting")
    pld = pytest.importorskip("dp_accounting.pld")
    accountant = pld.PLDAccountant()
    history = [(Mechanism(1.0, 0.1), 100), (Mechanism(2.0, 0.3), 50)]
    for mechanism, steps in history:
        event = events.GaussianDpEvent(mechanism.noise_multiplier)
        accountant.compose(events.PoissonSampledDpEvent(mechanism.sampling_rate, event), steps)
    tight = accountant.get_epsilon(1e-3)
    assert tight <= epsilon(history, 1e-3) <= 1.25 * tight


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), CASES)
def test_opacus_agrees(noise: float, rate: float, steps: int, delta: float) -> None:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    expected = accountant.get_epsilon(delta)
    assert epsilon([(Mechanism(noise, rate), steps)], delta) == pytest.approx(expected, rel=1e-6)


def test_equal_mechanisms_add_up() -> None:
    parts = [(Mechanism(1.0, 0.1), n) for n in (1, 70, 0, 129)]
    assert epsilon(parts, 1e-3) == pytest.approx(epsilon([(Mechanism(1.0, 0.1), 200)], 1e-3))


def test_nothing_costs_nothing_and_epsilon_is_never_negative() -> None:
    assert epsilon([], 1e-3) == 0.0
    assert epsilon([(Mechanism(1.0, 0.1), 0)], 1e-3) == 0.0
    assert epsilon([(Mechanism(1e4, 1e-6), 1)], 0.09) == 0.0


def test_epsilon_rises_with_steps_and_falls_with_noise() -> None:
    values = [epsilon([(Mechanism(1.0, 0.1), steps)], 1e-3) for steps in range(1, 300, 13)]
    assert values == sorted(values)
    noises = (1e-6, 1e-3, 0.1, 0.5, 1.0, 3.0, 100.0, 1e4)
    spent = [epsilon([(Mechanism(noise, 0.1), 10)], 1e-3) for noise in noises]
    assert spent == sorted(spent, reverse=True)
    assert spent[0] > 1e9


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_impossible_delta_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyError):
        epsilon([(Mechanism(1.0, 0.1), 1)], delta)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(PrivacyError):
        epsilon([(Mechanism(1.0, 0.1), -1)], 1e-3)


def test_ledger_spends_the_budget_to_its_last_step(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger")
    study, site = Cap(3.0, 1e-3), Cap(4.0, 1e-4)
    mechanism = Mechanism(1.0, 0.1)
    with Ledger(tmp_path / "ledger", accountant=epsilon) as ledger:

        def reserve(name: str, steps: int, kind: Mechanism) -> None:
            ledger.reserve(
                study=name,
                protocol="",
                round_number=1,
                mechanism=kind,
                clipping_norm=1.0,
                steps=steps,
                study_cap=study,
                site_cap=site,
            )

        reserve("before", 5, Mechanism(2.0, 0.2))
        left = ledger.steps_left(study="alpha", mechanism=mechanism, study_cap=study, site_cap=site)
        reserve("alpha", left, mechanism)
        with pytest.raises(PrivacyError):
            reserve("alpha", 1, mechanism)
        assert ledger.spent(1e-3, study="alpha").epsilon <= 3.0
        assert ledger.spent(1e-4).epsilon <= 4.0
        more = [(Mechanism(2.0, 0.2), 5), (mechanism, left + 1)]
        assert epsilon(more, 1e-4) > 4.0 or epsilon(more[1:], 1e-3) > 3.0


def test_opacus_is_imported_only_when_asked() -> None:
    script = "import sys, client.accountant; sys.exit('opacus' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
