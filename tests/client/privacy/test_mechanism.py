import math

import pytest

from client.privacy.mechanism import MOST_STEPS, Cap, Mechanism, StepPrices, require_patients
from common.errors import PrivacyError

MECHANISM = Mechanism(1.0, 0.1)


@pytest.mark.parametrize(
    ("noise", "rate"),
    [(0, 0.1), (-1, 0.1), (math.nan, 0.1), (math.inf, 0.1), (1, 0), (1, -0.1), (1, 2)],
)
def test_impossible_mechanisms_are_refused(noise: float, rate: float) -> None:
    with pytest.raises(PrivacyError) as error:
        Mechanism(noise, rate)
    assert error.value.code == "privacy-parameters"


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(-1, 0.1), (math.nan, 0.1), (math.inf, 0.1), (1, 0), (1, 1), (1, math.nan)],
)
def test_impossible_caps_are_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(PrivacyError):
        Cap(epsilon, delta)


@pytest.mark.parametrize(
    "patients", [set(), {"patient-7"}, {"0" * 31}, {"A" * 32}, {"0" * 32 + "\n"}, {"0" * 32, ""}]
)
def test_patients_are_pseudonyms(patients: set[str]) -> None:
    require_patients(frozenset({"0123456789abcdef" * 2}))
    with pytest.raises(PrivacyError) as error:
        require_patients(frozenset(patients))
    assert error.value.code == "privacy-parameters"
    assert "patient-7" not in str(error.value)


def test_step_prices_fill_a_cap_to_its_last_step() -> None:
    prices = StepPrices()
    assert prices.epsilon([(MECHANISM, 2), (Mechanism(2.0, 0.1), 3)], 1e-3) == 3.5
    for cap, beside, most in (
        (10.0, [], 10),
        (9.5, [(Mechanism(2.0, 1.0), 3)], 8),
        (1.0, [(MECHANISM, 5)], 0),
        (1e9, [], MOST_STEPS),
    ):
        assert prices.most(MECHANISM, beside, Cap(cap, 1e-3)) == most
