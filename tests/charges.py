"""Reservations in a privacy ledger, for the tests that need some."""

from typing import Any

from client.privacy.ledger import Ledger
from client.privacy.mechanism import Cap, Mechanism

MECHANISM = Mechanism(1.0, 0.1)
OTHER = Mechanism(2.0, 0.1)
CAP = Cap(10.0, 1e-3)
PEOPLE = [f"{number:032x}" for number in range(5)]
PATIENTS = frozenset(PEOPLE[:3])


def wanted(**changes: Any) -> dict[str, Any]:
    return {
        "study": "alpha",
        "mechanism": MECHANISM,
        "patients": PATIENTS,
        "study_cap": CAP,
        "patient_cap": Cap(1000.0, 1e-3),
        **changes,
    }


def reserve(ledger: Ledger, steps: int = 1, **changes: Any) -> int:
    rest = {"protocol": "0" * 64, "round_number": 1, "purpose": "training", "clipping_norm": 1.0}
    return ledger.reserve(**{"steps": steps, **rest, **wanted(), **changes})
