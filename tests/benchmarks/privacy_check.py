"""How long a hospital waits for its ledger and its accountant before each private step.

The ledger holds 5,000 facts of one step each, half of them of another study on half of the
patients. Each opening is a process of its own: the first has no cache of the accountant's answers,
the second is what a restart sees.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from client.privacy.accountant import PldAccountant
from client.privacy.ledger import Ledger
from client.privacy.mechanism import Cap, History, Mechanism
from tests import children
from tests.benchmarks.result import Measuring, Result

FACTS: Final = 5_000
PATIENTS: Final = 200
REPETITIONS: Final = 50
MOST_MS: Final = 50.0
DELTA: Final = 1e-3
CAP: Final = Cap(60.0, DELTA)
STUDIES: Final = {"alpha": Mechanism(2.0, 0.1), "beta": Mechanism(1.5, 0.05)}

LEDGER: Final = "ledger"
CACHE: Final = "answers"
OPENING: Final = "open the ledger"
"""Once for each process: all facts are checked. Nothing is promised of it."""

PROMISED: Final = ("after a restart", "repeated")


def measure(folder: Path) -> Measuring:
    """Return the milliseconds of opening, charging and asking."""
    yield f"filling a ledger with {FACTS} facts"
    began = time.perf_counter()
    _fill(folder)
    filled_ms = (time.perf_counter() - began) * 1e3 / FACTS
    yield "opening, charging and asking, in a first process"
    first = _process(folder)
    yield from _said(first)
    yield "the same after a restart"
    restarted = _process(folder)
    yield from _said(restarted)
    figures = {
        # Before each step the site charges it; the questions are those of a budget's display.
        what: {
            "first": first["once"][what],
            "after a restart": restarted["once"][what],
            "repeated": statistics.median(restarted["repeated"][what]),
            "most": max(restarted["repeated"][what]),
        }
        for what in first["once"]
    }
    slow = [
        f"{what} {when}: {found[when]:.0f} ms"
        for what, found in figures.items()
        for when in PROMISED
        if what != OPENING and found[when] >= MOST_MS
    ]
    return Result(
        title=f"The ledger and the accountant at {FACTS} steps of {len(STUDIES)} studies",
        columns=["", "first ms", "after a restart ms", "repeated ms", "longest repeated ms"],
        rows=[[what, *found.values()] for what, found in figures.items()],
        promise=f"a charge and an answer take less than {MOST_MS:g} ms, after a restart too"
        f"{''.join('; ' + what for what in slow)}",
        holds=not slow,
        facts={"ms": figures, "charging_ms": filled_ms, "first": first, "restarted": restarted},
    )


def _said(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for what, ms in found["once"].items():
        repeated = statistics.median(found["repeated"][what])
        yield f"{what}: once {ms:.0f} ms, repeated {repeated:.1f} ms"


def _fill(folder: Path) -> None:
    Ledger.create(folder / LEDGER)
    with Ledger(folder / LEDGER, accountant=_Generous()) as ledger:
        for number in range(FACTS):
            _charge(ledger, list(STUDIES)[number % len(STUDIES)])


class _Generous:
    """Fills the ledger without a look at epsilon: no answer is known before the measurement."""

    def epsilon(self, history: History, delta: float) -> float:
        raise NotImplementedError("nobody asks for it while the ledger is filled")

    def most(self, mechanism: Mechanism, beside: History, cap: Cap) -> int:
        del mechanism, beside, cap
        return FACTS


def _charge(ledger: Ledger, study: str) -> None:
    patients = [f"{number:032x}" for number in range(PATIENTS)]
    number = ledger.reserve(
        study=study,
        protocol="0" * 64,
        round_number=1,
        purpose="training",
        patients=frozenset(patients if study == "alpha" else patients[::2]),
        mechanism=STUDIES[study],
        clipping_norm=1.0,
        steps=1,
        study_cap=CAP,
        patient_cap=CAP,
    )
    ledger.confirm(number)


def _process(folder: Path) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", __name__, str(folder)]
    done = children.run(command, capture_output=True, text=True, check=True)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def main(folder: Path) -> None:
    """Open the ledger as a worker does when it starts, and print what took how long."""
    once: dict[str, float] = {}
    began = time.perf_counter()
    accountant = PldAccountant(folder / CACHE)
    ledger = Ledger(folder / LEDGER, accountant=accountant)
    once[OPENING] = (time.perf_counter() - began) * 1e3

    half = [(mechanism, FACTS // 2) for mechanism in STUDIES.values()]
    tasks: dict[str, Callable[[], object]] = {
        "charge a step (reserve and confirm)": lambda: _charge(ledger, "alpha"),
        "accountant: epsilon": lambda: accountant.epsilon(half, DELTA),
        "accountant: steps that fit": lambda: accountant.most(STUDIES["alpha"], half[1:], CAP),
    }
    repeated: dict[str, list[float]] = {OPENING: [_opening(folder) for _ in range(5)]}
    for what, task in tasks.items():
        once[what] = _ms(task)
    for what, task in tasks.items():
        repeated[what] = [_ms(task) for _ in range(REPETITIONS)]
    sys.stdout.write(json.dumps({"once": once, "repeated": repeated}))


def _opening(folder: Path) -> float:
    return _ms(lambda: Ledger(folder / LEDGER, accountant=PldAccountant(folder / CACHE)).close())


def _ms(task: Callable[[], object]) -> float:
    began = time.perf_counter()
    task()
    return (time.perf_counter() - began) * 1e3


if __name__ == "__main__":
    main(Path(sys.argv[1]))
