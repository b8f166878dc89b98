import contextlib
import math
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import PrivacyError, StateError
from common.privacy import Cap, Ledger, Mechanism

MECHANISM = Mechanism(1.0, 0.1)
OTHER = Mechanism(2.0, 0.1)
CAP = Cap(10.0, 1e-3)


def linear(history: Sequence[tuple[Mechanism, int]], delta: float) -> float:
    """Epsilon of a made-up mechanism: each step costs the inverse of its noise."""
    return sum(steps / mechanism.noise_multiplier for mechanism, steps in history)


def reserve(ledger: Ledger, steps: int = 1, **changes: object) -> int:
    wanted: dict[str, object] = {
        "study": "alpha",
        "protocol": "0" * 64,
        "round_number": 1,
        "mechanism": MECHANISM,
        "clipping_norm": 1.0,
        "steps": steps,
        "study_cap": CAP,
        "site_cap": Cap(1000.0, 1e-3),
        **changes,
    }
    return ledger.reserve(**wanted)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Ledger.create(tmp_path / "ledger")
    return tmp_path / "ledger"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path, accountant=linear, code_version="1.2.3") as opened:
        yield opened


def test_facts_are_kept_over_restarts(path: Path, ledger: Ledger) -> None:
    first = reserve(ledger, 2)
    second = reserve(ledger, 3, study="beta", mechanism=OTHER, clipping_norm=0.5)
    ledger.confirm(first)
    with Ledger(path, accountant=linear) as again:
        facts = again.facts()
        assert [fact.id for fact in facts] == [first, second]
        assert [fact.state for fact in facts] == ["confirmed", "reserved"]
        assert facts[1].mechanism == OTHER
        assert facts[1].clipping_norm == 0.5
        assert facts[1].steps == 3
        assert facts[1].delta == CAP.delta
        assert facts[1].code_version == "1.2.3"
        assert again.facts(study="beta") == facts[1:]
        assert again.spent(1e-3).epsilon == 2 + 3 / 2
        assert again.spent(1e-3).unconfirmed == 3
        assert again.spent(1e-3, study="alpha").steps == 2
        assert again.spent(1e-3, study="gamma").epsilon == 0


def test_study_cap_refuses_and_writes_nothing(ledger: Ledger) -> None:
    for _ in range(10):
        reserve(ledger)
    with pytest.raises(PrivacyError) as error:
        reserve(ledger)
    assert error.value.code == "privacy-cap"
    assert ledger.spent(1e-3).steps == 10
    reserve(ledger, study="beta")


def test_site_cap_counts_every_study(ledger: Ledger) -> None:
    site = {"site_cap": Cap(7.0, 1e-3)}
    reserve(ledger, 4, **site)
    reserve(ledger, 5, study="beta", mechanism=OTHER, **site)
    with pytest.raises(PrivacyError):
        reserve(ledger, 1, study="gamma", **site)
    reserve(ledger, 1, study="gamma", mechanism=OTHER, **site)


def test_unconfirmed_steps_stay_spent(path: Path, ledger: Ledger) -> None:
    reserve(ledger, 10)
    with Ledger(path, accountant=linear) as again, pytest.raises(PrivacyError):
        reserve(again)


@pytest.mark.parametrize("answer", [math.nan, math.inf])
def test_accountant_without_an_answer_stops_everything(path: Path, answer: float) -> None:
    with (
        Ledger(path, accountant=lambda *_: answer) as ledger,
        pytest.raises(PrivacyError),
    ):
        reserve(ledger)


@settings(max_examples=25)
@given(
    taken=st.lists(
        st.tuples(
            st.sampled_from(["a1", "b1"]),
            st.sampled_from([MECHANISM, OTHER, Mechanism(0.5, 0.2)]),
            st.integers(1, 6),
        ),
        max_size=8,
    )
)
def test_reservations_pass_exactly_while_they_fit(
    tmp_path_factory: pytest.TempPathFactory, taken: list[tuple[str, Mechanism, int]]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger"
    Ledger.create(path)
    site = Cap(15.0, 1e-3)
    held: list[tuple[str, Mechanism, int]] = []
    with Ledger(path, accountant=linear) as ledger:
        for study, mechanism, steps in taken:
            wanted = [*held, (study, mechanism, steps)]
            own = linear([(m, n) for s, m, n in wanted if s == study], 1e-3)
            fits = own <= CAP.epsilon and linear([(m, n) for _, m, n in wanted], 1e-3) <= 15.0
            left = ledger.steps_left(study=study, mechanism=mechanism, study_cap=CAP, site_cap=site)
            assert (steps <= left) == fits
            with contextlib.nullcontext() if fits else pytest.raises(PrivacyError):
                reserve(ledger, steps, study=study, mechanism=mechanism, site_cap=site)
            held = wanted if fits else held


def test_accountant_is_asked_once_for_a_run_of_steps(path: Path) -> None:
    asked = []

    def counting(history: Sequence[tuple[Mechanism, int]], delta: float) -> float:
        asked.append(history)
        return linear(history, delta)

    with Ledger(path, accountant=counting) as ledger:
        reserve(ledger)
        first = len(asked)
        for _ in range(5):
            reserve(ledger)
        assert len(asked) == first < 60
        reserve(ledger, study="beta")
        assert len(asked) > first


def test_steps_left_is_bounded(path: Path) -> None:
    with Ledger(path, accountant=lambda *_: 0.0) as ledger:
        left = ledger.steps_left(study="a1", mechanism=MECHANISM, study_cap=CAP, site_cap=CAP)
        assert left == 2**24


def test_threads_never_pass_the_cap(ledger: Ledger) -> None:
    barrier = threading.Barrier(4)

    def spend(_: int) -> int:
        barrier.wait()
        taken = 0
        with contextlib.suppress(PrivacyError):
            while True:
                reserve(ledger, study_cap=Cap(30.0, 1e-3))
                taken += 1
        return taken

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(spend, range(4))) == 30
    assert ledger.spent(1e-3).steps == 30


def test_processes_never_pass_the_cap(path: Path, ledger: Ledger) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from common.errors import PrivacyError\n"
        "from common.privacy import Cap, Ledger, Mechanism\n"
        "ledger = Ledger(Path(sys.argv[1]), accountant=lambda h, d: sum(n for _, n in h))\n"
        "taken = 0\n"
        "try:\n"
        "    while True:\n"
        "        ledger.confirm(ledger.reserve(study='alpha', protocol='', round_number=1,\n"
        "            mechanism=Mechanism(1.0, 0.1), clipping_norm=1.0, steps=1,\n"
        "            study_cap=Cap(40, 1e-3), site_cap=Cap(100, 1e-3)))\n"
        "        taken += 1\n"
        "except PrivacyError:\n"
        "    print(taken)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    taken = [int(process.communicate(timeout=60)[0]) for process in running]
    assert sum(taken) == 40
    spend = ledger.spent(1e-3)
    assert (spend.steps, spend.unconfirmed) == (40, 0)


def test_killed_process_has_spent_what_it_reserved(path: Path, ledger: Ledger) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from common.privacy import Cap, Ledger, Mechanism\n"
        "ledger = Ledger(Path(sys.argv[1]), accountant=lambda h, d: sum(n for _, n in h))\n"
        "ledger.reserve(study='alpha', protocol='', round_number=1,\n"
        "    mechanism=Mechanism(1.0, 0.1), clipping_norm=1.0, steps=7,\n"
        "    study_cap=Cap(40, 1e-3), site_cap=Cap(100, 1e-3))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert ended.returncode == -9
    assert ledger.spent(1e-3).unconfirmed == 7


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
    ],
)
def test_impossible_reservations_are_refused(ledger: Ledger, changes: dict[str, float]) -> None:
    with pytest.raises(PrivacyError) as error:
        reserve(ledger, **changes)  # type: ignore[arg-type]
    assert error.value.code == "privacy-parameters"
    assert ledger.facts() == ()


def test_delta_of_a_question_is_checked(ledger: Ledger) -> None:
    with pytest.raises(PrivacyError):
        ledger.spent(0.0)


def test_facts_are_confirmed_once(ledger: Ledger) -> None:
    number = reserve(ledger)
    ledger.confirm(number)
    for wrong in (number, 99):
        with pytest.raises(StateError) as error:
            ledger.confirm(wrong)
        assert error.value.code == "ledger-confirm"


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM facts",
        "UPDATE facts SET steps = 1",
        "UPDATE facts SET state = 'reserved'",
        "UPDATE facts SET digest = ''",
        "UPDATE facts SET time = ''",
    ],
)
def test_facts_are_only_appended(path: Path, ledger: Ledger, statement: str) -> None:
    ledger.confirm(reserve(ledger, 5))
    with contextlib.closing(sqlite3.connect(path)) as foreign, pytest.raises(sqlite3.Error):
        foreign.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM facts WHERE id = 3",
        "DELETE FROM facts WHERE id = 2",
        "UPDATE facts SET steps = 1 WHERE id = 2",
        "UPDATE facts SET noise_multiplier = 9.5 WHERE id = 3",
        "UPDATE facts SET study = 'other' WHERE id = 1",
        "UPDATE facts SET sampling_rate = 'x' WHERE id = 1",
        "DROP TABLE facts",
        "PRAGMA application_id = 7",
    ],
)
def test_changed_ledger_is_refused(path: Path, ledger: Ledger, statement: str) -> None:
    for _ in range(3):
        reserve(ledger, 2)
    ledger.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as foreign:
        foreign.executescript("DROP TRIGGER facts_stay; DROP TRIGGER facts_keep;")
        foreign.execute("PRAGMA ignore_check_constraints = 1")
        foreign.execute(statement)
    with pytest.raises(StateError) as error:
        Ledger(path, accountant=linear)
    assert error.value.code in {"ledger-damaged", "ledger-unusable"}


def test_damaged_pages_are_refused(path: Path, ledger: Ledger) -> None:
    for number in range(40):
        reserve(ledger, study=f"study{number}")
    ledger.close()
    whole = path.read_bytes()
    for damage in (b"", whole[:100], whole[:-4096], b"\0" * len(whole), whole[::-1]):
        path.write_bytes(damage)
        with pytest.raises(StateError) as error:
            Ledger(path, accountant=linear)
        assert error.value.exit_code == 10
    place = whole.index(b"study17")
    path.write_bytes(whole[:place] + b"stuDy17" + whole[place + 7 :])
    with pytest.raises(StateError, match="fact 18"):
        Ledger(path, accountant=linear)


def test_lost_ledger_is_never_replaced_by_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(StateError) as error:
        Ledger(tmp_path / "absent", accountant=linear)
    assert error.value.code == "ledger-missing"
    assert not list(tmp_path.iterdir())


def test_ledger_is_never_created_twice(path: Path, ledger: Ledger) -> None:
    reserve(ledger, 3)
    with pytest.raises(StateError) as error:
        Ledger.create(path)
    assert error.value.code == "ledger-exists"
    assert ledger.spent(1e-3).steps == 3
    assert {file.name for file in path.parent.iterdir()} <= {
        "ledger",
        "ledger-wal",
        "ledger-shm",
    }


def test_ledger_of_a_newer_format_is_refused(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as foreign:
        foreign.execute("PRAGMA user_version = 2")
    with pytest.raises(StateError) as error:
        Ledger(path, accountant=linear)
    assert error.value.code == "ledger-version"


def test_ledger_in_use_says_so(path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.privacy._BUSY_S", 0.05)
    with (
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as foreign,
        Ledger(path, accountant=linear) as waiting,
    ):
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateError) as error:
            reserve(waiting)
    assert error.value.code == "ledger-busy"


def test_copy_of_the_file_alone_is_complete(path: Path, ledger: Ledger, tmp_path: Path) -> None:
    for _ in range(5):
        ledger.confirm(reserve(ledger))
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    with Ledger(copy, accountant=linear) as restored:
        assert restored.facts() == ledger.facts()


def test_ledger_is_synced_at_each_commit(ledger: Ledger) -> None:
    connection = ledger._connection
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
