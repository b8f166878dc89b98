import contextlib
import math
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.privacy.accountant import PldAccountant
from client.privacy.ledger import Ledger
from client.privacy.mechanism import UNPROTECTED, Cap, Fact, History, Mechanism, StepPrices
from client.privacy.patient_exposure import cohort_digest
from common.errors import PrivacyError, StateError
from tests import children
from tests.charges import CAP, MECHANISM, OTHER, PATIENTS, PEOPLE, reserve, wanted


class Priced(StepPrices):
    """One answer to each question."""

    def __init__(self, answer: float) -> None:
        self.answer = answer

    def epsilon(self, *_: object) -> float:
        return self.answer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Ledger.create(tmp_path / "ledger")
    return tmp_path / "ledger"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path, accountant=StepPrices(), code_version="1.2.3") as opened:
        yield opened


def test_facts_are_kept_over_restarts(path: Path, ledger: Ledger) -> None:
    first = reserve(ledger, 2)
    few = frozenset(PEOPLE[:1])
    second = reserve(
        ledger,
        3,
        study="beta",
        mechanism=OTHER,
        clipping_norm=0.5,
        purpose="metrics",
        patients=few,
        round_number=7,
    )
    ledger.confirm(first)
    with Ledger(path, accountant=StepPrices()) as again:
        facts = again.facts()
        assert facts[1] == Fact(
            id=second,
            time=facts[1].time,
            study="beta",
            protocol="0" * 64,
            round=7,
            purpose="metrics",
            cohort=cohort_digest(few),
            mechanism=OTHER,
            clipping_norm=0.5,
            delta=CAP.delta,
            steps=3,
            code_version="1.2.3",
            state="reserved",
        )
        assert (facts[0].id, facts[0].state, facts[0].steps) == (first, "confirmed", 2)
        assert again.facts(study="beta") == facts[1:]
        assert again.facts(patient=PEOPLE[0]) == facts
        assert again.facts(patient=PEOPLE[1]) == facts[:1]
        assert again.facts(study="beta", patient=PEOPLE[1]) == ()
        assert again.spent(1e-3).epsilon == 2 + 3 / 2
        assert again.spent(1e-3).unconfirmed == 3
        assert again.spent(1e-3, study="alpha").steps == 2
        assert again.spent(1e-3, study="gamma").epsilon == 0
        assert again.worst_patient(1e-3) == PEOPLE[0]
        assert again.worst_patient(1e-3, study="gamma") is None
        assert again.patients() == PATIENTS
        assert again.patients(study="beta") == few


def test_study_cap_refuses_and_writes_nothing(ledger: Ledger) -> None:
    for _ in range(10):
        reserve(ledger)
    with pytest.raises(PrivacyError, match="does not allow 1 more steps") as error:
        reserve(ledger)
    assert error.value.code == "privacy-cap"
    assert ledger.spent(1e-3).steps == 10
    reserve(ledger, study="beta")


def test_patient_cap_counts_every_study(ledger: Ledger) -> None:
    cap = {"patient_cap": Cap(7.0, 1e-3)}
    reserve(ledger, 4, **cap)
    reserve(ledger, 5, study="beta", mechanism=OTHER, **cap)
    with pytest.raises(PrivacyError, match="7 of a patient over all studies") as error:
        reserve(ledger, 1, study="gamma", **cap)
    assert not any(one in str(error.value) for one in PEOPLE)
    reserve(ledger, 1, study="gamma", mechanism=OTHER, **cap)


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ([], [10, 10, 10]),
        ([("alpha", [0, 1], 4)], [6, 6, 10]),
        # 2 joined later, 0 left before that: nobody pays for the other's steps.
        ([("alpha", [0, 1], 4), ("alpha", [1, 2], 5)], [6, 1, 5]),
        # 0 is in two studies, and only the patient's cap of 12 knows.
        ([("alpha", [0, 1], 4), ("beta", [0, 2], 7)], [1, 6, 5]),
        ([("beta", [0], 10), ("gamma", [0], 2), ("gamma", [1], 2)], [0, 10, 10]),
        # Left and came back.
        ([("alpha", [0, 1], 2), ("alpha", [1], 2), ("alpha", [0, 1], 2)], [6, 4, 10]),
    ],
)
def test_each_patient_is_charged_its_own_facts(
    ledger: Ledger, taken: list[tuple[str, list[int], int]], left: list[int]
) -> None:
    caps = {"patient_cap": Cap(12.0, 1e-3)}
    for study, people, steps in taken:
        reserve(ledger, steps, study=study, patients=frozenset(PEOPLE[i] for i in people), **caps)
    room = ledger.room(**wanted(**caps))
    assert [room[one] for one in PEOPLE[:3]] == left
    assert ledger.steps_left(**wanted(**caps)) == min(left)
    for one, expected in zip(PEOPLE[:3], left, strict=True):
        alone = wanted(patients=frozenset({one}), **caps)
        assert ledger.steps_left(**alone) == expected
    with pytest.raises(PrivacyError):
        reserve(ledger, min(left) + 1, **caps)
    if min(left):
        reserve(ledger, min(left), **caps)


def test_unconfirmed_steps_stay_spent(path: Path, ledger: Ledger) -> None:
    reserve(ledger, 10)
    with Ledger(path, accountant=StepPrices()) as again, pytest.raises(PrivacyError):
        reserve(again)


@pytest.mark.parametrize("answer", [math.nan, math.inf])
def test_accountant_without_an_answer_stops_everything(path: Path, answer: float) -> None:
    with Ledger(path, accountant=StepPrices()) as before:
        reserve(before)
    with Ledger(path, accountant=Priced(answer)) as ledger:
        with pytest.raises(PrivacyError):
            reserve(ledger)
        assert ledger.spent(1e-3).epsilon == math.inf


RESERVATIONS = st.lists(
    st.tuples(
        st.sampled_from(["a1", "b1"]),
        st.frozensets(st.sampled_from(PEOPLE), min_size=1),
        st.sampled_from([MECHANISM, OTHER, Mechanism(0.5, 0.2)]),
        st.integers(1, 6),
    ),
    max_size=10,
)


@settings(max_examples=25, deadline=None)
@given(RESERVATIONS, st.data())
def test_reservations_pass_exactly_while_they_fit(
    tmp_path_factory: pytest.TempPathFactory,
    taken: list[tuple[str, frozenset[str], Mechanism, int]],
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger"
    Ledger.create(path)
    caps = {"study_cap": CAP, "patient_cap": Cap(13.0, 1e-3)}
    kept: list[tuple[str, frozenset[str], Mechanism, int]] = []

    def cost(one: str, study: str | None) -> float:
        return sum(
            steps / mechanism.noise_multiplier
            for name, cohort, mechanism, steps in kept
            if one in cohort and study in {None, name}
        )

    ledger = Ledger(path, accountant=StepPrices())
    for study, cohort, mechanism, steps in taken:
        if data.draw(st.booleans(), label="reopened"):
            ledger.close()
            ledger = Ledger(path, accountant=StepPrices())
        asked = {"study": study, "mechanism": mechanism, "patients": cohort, **caps}
        room = {
            one: int(min(10 - cost(one, study), 13 - cost(one, None)) * mechanism.noise_multiplier)
            for one in cohort
        }
        assert ledger.room(**asked) == room
        assert ledger.steps_left(**asked) == min(room.values())
        if steps <= min(room.values()):
            reserve(ledger, steps, **asked)
            kept.append((study, cohort, mechanism, steps))
        else:
            with pytest.raises(PrivacyError):
                reserve(ledger, steps, **asked)
    facts = ledger.facts()
    assert [(f.study, f.cohort, f.mechanism, f.steps) for f in facts] == [
        (study, cohort_digest(cohort), mechanism, steps) for study, cohort, mechanism, steps in kept
    ]
    for study in (None, "a1", "b1"):
        costs = {one: cost(one, study) for one in PEOPLE}
        for one in PEOPLE:
            own = [(f.mechanism, f.steps) for f in ledger.facts(study=study, patient=one)]
            assert StepPrices().epsilon(own, 1e-3) == costs[one] <= (10 if study else 13)
        assert ledger.spent(1e-3, study=study).epsilon == max(costs.values())
        worst = ledger.worst_patient(1e-3, study=study)
        assert costs[worst] == max(costs.values()) if worst else not any(costs.values())
    ledger.close()


@settings(max_examples=10, deadline=None)
@given(RESERVATIONS, st.randoms(use_true_random=False))
def test_order_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    taken: list[tuple[str, frozenset[str], Mechanism, int]],
    random: Any,
) -> None:
    seen = []
    large = {"study_cap": Cap(500.0, 1e-3), "patients": frozenset(PEOPLE)}
    for _ in range(2):
        path = tmp_path_factory.mktemp("ledger") / "ledger"
        Ledger.create(path)
        with Ledger(path, accountant=StepPrices()) as ledger:
            for study, cohort, mechanism, steps in taken:
                what = {"study": study, "patients": cohort, "mechanism": mechanism}
                reserve(ledger, steps, **{**large, **what})
            seen.append((ledger.room(**wanted(study="a1", **large)), ledger.spent(1e-3)))
        random.shuffle(taken)
    assert seen[0] == seen[1]


def test_accountant_is_asked_once_for_a_run_of_steps(path: Path) -> None:
    asked = []

    class Counting(StepPrices):
        def most(self, mechanism: Mechanism, beside: History, cap: Cap) -> int:
            asked.append((mechanism, tuple(beside), cap))
            return super().most(mechanism, beside, cap)

    with Ledger(path, accountant=Counting()) as ledger:
        reserve(ledger, study="beta", mechanism=OTHER, patients=frozenset(PEOPLE[2:]))
        reserve(ledger)
        first = len(asked)
        for _ in range(5):
            reserve(ledger)
            ledger.room(**wanted())
        # One more: ``room`` asks for the patients whose history is contained in another's, too.
        assert len(asked) == len(set(asked)) <= first + 1
        reserve(ledger, study="beta")
        assert len(asked) > first + 1


def test_steps_left_is_bounded(path: Path) -> None:
    with Ledger(path, accountant=Priced(0.0)) as ledger:
        assert ledger.steps_left(**wanted()) == 2**24
        assert set(ledger.room(**wanted()).values()) == {2**24}


def test_threads_never_pass_the_cap(ledger: Ledger) -> None:
    barrier = threading.Barrier(4)

    def spend(number: int) -> int:
        barrier.wait()
        taken = 0
        with contextlib.suppress(PrivacyError):
            while True:
                # The first patient is in all of these cohorts.
                cohort = frozenset({PEOPLE[0], PEOPLE[number]})
                reserve(ledger, study_cap=Cap(30.0, 1e-3), patients=cohort)
                taken += 1
        return taken

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(spend, range(4))) == 30
    assert ledger.spent(1e-3).steps == 30
    assert ledger.worst_patient(1e-3) == PEOPLE[0]


SPEND = (
    "import os, sys\nfrom pathlib import Path\n"
    "from common.errors import PrivacyError\n"
    "from client.privacy.ledger import Ledger\n"
    "from client.privacy.mechanism import Cap, Mechanism, StepPrices\n"
    "ledger = Ledger(Path(sys.argv[1]), accountant=StepPrices())\n"
    "def reserve(steps):\n"
    "    return ledger.reserve(study='alpha', protocol='', round_number=1, purpose='training',\n"
    "        patients=frozenset(sys.argv[2:]), mechanism=Mechanism(1.0, 0.1), clipping_norm=1.0,\n"
    "        steps=steps, study_cap=Cap(40, 1e-3), patient_cap=Cap(100, 1e-3))\n"
)


def test_processes_never_pass_the_cap(path: Path, ledger: Ledger) -> None:
    script = SPEND + (
        "taken = 0\n"
        "try:\n"
        "    while True:\n"
        "        ledger.confirm(reserve(1))\n"
        "        taken += 1\n"
        "except PrivacyError:\n"
        "    print(taken)\n"
    )
    running = [
        children.start(
            [sys.executable, "-c", script, str(path), PEOPLE[0], PEOPLE[number]],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    taken = [int(process.communicate(timeout=60)[0]) for process in running]
    assert sum(taken) == 40
    spend = ledger.spent(1e-3)
    assert (spend.steps, spend.unconfirmed) == (40, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"steps": -5},
        {"steps": 1.5},
        {"steps": math.nan},
        {"steps": True},
        {"clipping_norm": 0.0},
        {"clipping_norm": -1.0},
        {"clipping_norm": math.nan},
        {"clipping_norm": math.inf},
        {"patients": frozenset()},
        {"patients": PATIENTS | {"Jane Doe"}},
        {"patients": frozenset({"F" * 32})},
        {"purpose": "curiosity"},
    ],
)
def test_impossible_reservations_are_refused(ledger: Ledger, changes: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError) as error:
        reserve(ledger, **changes)
    assert error.value.code == "privacy-parameters"
    assert "Jane" not in str(error.value)
    assert ledger.facts() == ()


@pytest.mark.parametrize(
    "ask",
    [
        lambda ledger: ledger.spent(0.0),
        lambda ledger: ledger.worst_patient(1.0),
        lambda ledger: ledger.facts(patient="Jane Doe"),
        lambda ledger: ledger.room(**wanted(patients=frozenset())),
        lambda ledger: ledger.steps_left(**wanted(patients=frozenset({"Jane Doe"}))),
    ],
)
def test_impossible_questions_are_refused(ledger: Ledger, ask: Callable[[Ledger], object]) -> None:
    reserve(ledger)
    with pytest.raises(PrivacyError) as error:
        ask(ledger)
    assert error.value.code == "privacy-parameters"


def test_facts_are_confirmed_once(ledger: Ledger) -> None:
    number = reserve(ledger)
    ledger.confirm(number)
    for wrong in (number, 99):
        with pytest.raises(StateError) as error:
            ledger.confirm(wrong)
        assert error.value.code == "ledger-confirm"


def test_head_stands_for_all_facts(path: Path, ledger: Ledger) -> None:
    heads = [ledger.head]
    for _ in range(3):
        reserve(ledger)
        heads.append(ledger.head)
    assert [number for number, _ in heads] == [0, 1, 2, 3]
    with Ledger(path, accountant=StepPrices()) as again:
        assert again.head == heads[-1]
        assert all(again.holds(*head) for head in heads)
        for number, digest in [(4, heads[3][1]), (2, heads[3][1]), (0, heads[1][1]), (1, "")]:
            assert not again.holds(number, digest)


SCANS = [f"{n:032x}" for n in range(100, 110)]


def test_pseudonyms_that_share_a_scan_are_one_patient(ledger: Ledger) -> None:
    old, new, other = PEOPLE[:3]
    ledger.know({old: {SCANS[0], SCANS[1]}, other: {SCANS[2]}})
    reserve(ledger, 4, patients=frozenset({old, other}))
    assert ledger.names(new) == (new,)
    ledger.know({new: {SCANS[1], SCANS[3]}})
    assert ledger.names(new) == ledger.names(old) == (old, new)
    assert (ledger.owner(SCANS[3]), ledger.owner(SCANS[9])) == (new, None)
    reserve(ledger, 5, patients=frozenset({new}))
    room = ledger.room(**wanted(patients=frozenset({old, new, other})))
    assert room == {old: 1, new: 1, other: 6}
    assert len(ledger.facts(patient=new)) == len(ledger.facts(patient=old)) == 2
    assert ledger.spent(1e-3).steps == 9
    # A third name joins two who were known apart: all that was spent adds up.
    ledger.know({PEOPLE[0]: {SCANS[2]}})
    assert ledger.names(other) == (old, other, new)
    with pytest.raises(PrivacyError):
        reserve(ledger, 2, patients=frozenset({other}))


def test_scans_are_kept_and_written_once(ledger: Ledger, path: Path) -> None:
    for _ in range(2):
        ledger.know({PEOPLE[0]: {SCANS[0]}, PEOPLE[1]: {SCANS[1]}})
    ledger.know({PEOPLE[1]: set()})
    ledger.know({})
    with Ledger(path, accountant=StepPrices()) as again:
        again.know({PEOPLE[2]: {SCANS[0]}})
        assert again.names(PEOPLE[2]) == (PEOPLE[0], PEOPLE[2])
    assert ledger.names(PEOPLE[0]) == (PEOPLE[0], PEOPLE[2])
    with contextlib.closing(sqlite3.connect(path)) as look:
        assert look.execute("SELECT count(*) FROM scans").fetchone() == (3,)


@pytest.mark.parametrize("scans", [{"Anna": {SCANS[0]}}, {PEOPLE[0]: {"Anna"}}])
def test_what_is_no_pseudonym_and_no_digest_is_refused(
    ledger: Ledger, scans: dict[str, set[str]]
) -> None:
    with pytest.raises(PrivacyError) as caught:
        ledger.know(scans)
    assert "Anna" not in str(caught.value)
    assert ledger.names(PEOPLE[0]) == (PEOPLE[0],)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE scans SET patient = '{other}' WHERE id = 1",
        "DELETE FROM scans WHERE id = 1",
        "DELETE FROM scans WHERE id = 2",
    ],
)
def test_changed_scans_are_refused(ledger: Ledger, path: Path, damage: str) -> None:
    ledger.know({PEOPLE[0]: {SCANS[0], SCANS[1]}})
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as foreign:
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            foreign.execute(damage.format(other=PEOPLE[1]))
        foreign.execute("DROP TRIGGER scans_stay")
        foreign.execute("DROP TRIGGER scans_keep")
        foreign.execute(damage.format(other=PEOPLE[1]))
    with pytest.raises(StateError) as caught:
        Ledger(path, accountant=StepPrices())
    assert caught.value.code == "ledger-damaged"


def test_a_ledger_of_the_first_release_opens_and_takes_scans(ledger: Ledger, path: Path) -> None:
    reserve(ledger, 3)
    ledger.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute("DROP TABLE scans")
        old.execute("PRAGMA user_version = 2")
    with Ledger(path, accountant=StepPrices()) as one, Ledger(path, accountant=StepPrices()) as two:
        assert one.names(PEOPLE[0]) == (PEOPLE[0],)
        reserve(one, 1)
        assert _format(path) == 2  # to read it, or to charge, changes nothing
        one.know({PEOPLE[0]: {SCANS[0]}})
        two.know({PEOPLE[1]: {SCANS[0]}})
        assert one.names(PEOPLE[1]) == two.names(PEOPLE[1]) == (PEOPLE[0], PEOPLE[1])
        assert one.spent(1e-3).steps == 4
    assert _format(path) == 3


def _format(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as look:
        return int(look.execute("PRAGMA user_version").fetchone()[0])


def test_steps_without_privacy_are_never_refused_and_leave_no_room(path: Path) -> None:
    with Ledger(path, accountant=PldAccountant()) as ledger:
        assert ledger.spent(1e-3).epsilon == 0
        reserve(ledger, 10_000, study="open", mechanism=UNPROTECTED)
        reserve(ledger, 1, study="open", mechanism=UNPROTECTED)
        assert ledger.spent(1e-3, study="open").epsilon == math.inf
        assert ledger.spent(1e-5).steps == 10_001
        assert set(ledger.room(**wanted()).values()) == {0}
        with pytest.raises(PrivacyError) as caught:
            reserve(ledger, 1)
        assert caught.value.code == "privacy-cap"
    with Ledger(path, accountant=PldAccountant()) as again:
        assert again.spent(1e-3).epsilon == math.inf


def test_a_refusal_holds_no_figure_of_a_patient(ledger: Ledger) -> None:
    said = set()
    for _ in range(3):
        reserve(ledger, 3)
        with pytest.raises(PrivacyError) as caught:
            reserve(ledger, 9)
        said.add(caught.value.message)
    reserve(ledger, 3, study="beta")
    with pytest.raises(PrivacyError) as caught:
        reserve(ledger, 9)
    assert said == {caught.value.message}
