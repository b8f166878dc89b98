import contextlib
import os
import signal
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.privacy.ledger import Ledger
from client.privacy.mechanism import StepPrices
from common.errors import PrivacyError, StateError
from tests.charges import PATIENTS, PEOPLE, reserve, wanted


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Ledger.create(tmp_path / "ledger")
    return tmp_path / "ledger"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path, accountant=StepPrices(), code_version="1.2.3") as opened:
        yield opened


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM facts",
        "UPDATE facts SET steps = 1",
        "UPDATE facts SET state = 'reserved'",
        "UPDATE facts SET digest = ''",
        "UPDATE facts SET time = ''",
        "DELETE FROM cohorts",
        "UPDATE cohorts SET patients = ''",
        "UPDATE cohorts SET digest = ''",
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
        "UPDATE facts SET purpose = 'metrics' WHERE id = 1",
        "UPDATE facts SET cohort = (SELECT cohort FROM facts WHERE id = 3) WHERE id = 1",
        "UPDATE facts SET sampling_rate = 'x' WHERE id = 1",
        "DROP TABLE facts",
        "DELETE FROM cohorts",
        "UPDATE cohorts SET patients = '00000000000000000000000000000004'",
        "UPDATE cohorts SET patients = 'Jane Doe'",
        "UPDATE cohorts SET patients = 7",
        "UPDATE cohorts SET digest = digest || '0'",
        "DROP TABLE cohorts",
        "PRAGMA application_id = 7",
    ],
)
def test_changed_ledger_is_refused(path: Path, ledger: Ledger, statement: str) -> None:
    for number in range(3):
        reserve(ledger, 2, patients=frozenset(PEOPLE[: 1 + number]))
    ledger.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as foreign:
        for trigger in ("facts_stay", "facts_keep", "cohorts_stay", "cohorts_keep"):
            foreign.execute(f"DROP TRIGGER {trigger}")
        foreign.execute("PRAGMA ignore_check_constraints = 1")
        foreign.execute(statement)
    with pytest.raises(StateError) as error:
        Ledger(path, accountant=StepPrices())
    assert error.value.code in {"ledger-damaged", "ledger-unusable"}
    assert "Jane" not in str(error.value)


def test_damaged_pages_are_refused(path: Path, ledger: Ledger) -> None:
    for number in range(40):
        reserve(ledger, study=f"study{number}")
    ledger.close()
    whole = path.read_bytes()
    for damage in (b"", whole[:100], whole[:-4096], b"\0" * len(whole), whole[::-1]):
        path.write_bytes(damage)
        with pytest.raises(StateError) as error:
            Ledger(path, accountant=StepPrices())
        assert error.value.exit_code == 10
    place = whole.index(b"study17")
    path.write_bytes(whole[:place] + b"stuDy17" + whole[place + 7 :])
    with pytest.raises(StateError, match="fact 18"):
        Ledger(path, accountant=StepPrices())


def test_lost_ledger_is_never_replaced_by_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(StateError) as error:
        Ledger(tmp_path / "absent", accountant=StepPrices())
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


@pytest.mark.parametrize("version", [1, 4])
def test_ledger_of_another_format_is_refused(path: Path, version: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as foreign:
        foreign.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StateError) as error:
        Ledger(path, accountant=StepPrices())
    assert error.value.code == "ledger-version"


def test_ledger_in_use_says_so(path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.privacy.ledger_file._BUSY_S", 0.05)
    with (
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as foreign,
        Ledger(path, accountant=StepPrices()) as waiting,
    ):
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateError) as error:
            reserve(waiting)
    assert error.value.code == "ledger-busy"


def test_a_fact_that_cannot_be_written_leaves_no_cohort(path: Path, ledger: Ledger) -> None:
    with pytest.raises(StateError):
        reserve(ledger, round_number=2**70)
    with contextlib.closing(sqlite3.connect(path)) as foreign:
        assert foreign.execute("SELECT count(*) FROM cohorts").fetchone() == (0,)
    reserve(ledger)


def test_copy_of_the_file_alone_is_complete(path: Path, ledger: Ledger, tmp_path: Path) -> None:
    for _ in range(5):
        ledger.confirm(reserve(ledger))
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    with Ledger(copy, accountant=StepPrices()) as restored:
        assert restored.facts() == ledger.facts()


def test_ledger_is_synced_at_each_commit(ledger: Ledger) -> None:
    connection = ledger._connection
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


class Deadly(sqlite3.Connection):
    """Kills its process at the statement ``left`` counts down to, before or after it."""

    left = 0

    @classmethod
    def count(cls) -> None:
        cls.left -= 1
        if cls.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self.count()
        cursor = super().execute(*arguments)
        self.count()
        return cursor


def tell_story(path: Path, tell: Callable[[str], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Create a ledger, open it, reserve and confirm; say what is about to happen and what did."""
    connect, link = sqlite3.connect, os.link

    def deadly_link(*names: Any) -> None:
        Deadly.count()
        link(*names)
        Deadly.count()

    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **{**k, "factory": Deadly}))
    monkeypatch.setattr(os, "link", deadly_link)
    Ledger.create(path)
    tell("created")
    with Ledger(path, accountant=StepPrices()) as ledger:
        for steps, cohort in ((1, PATIENTS), (2, PATIENTS)):
            tell("reserving")
            number = reserve(ledger, steps, patients=cohort)
            tell(f"reserved {number} {steps}")
            tell(f"confirming {number}")
            ledger.confirm(number)
            tell(f"confirmed {number}")


def told_until_killed(path: Path, moment: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Tell the story in a child that dies at ``moment``; return its exit status and its words."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # The child of a process with threads may do little: it uses SQLite, and never returns.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            Deadly.left = moment
            tell_story(path, lambda words: os.write(writer, f"{words};".encode()), monkeypatch)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        words = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), words


def test_a_kill_at_any_statement_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = 0
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        path = tmp_path / str(died) / "ledger"
        path.parent.mkdir()
        status, words = told_until_killed(path, died + 1, monkeypatch)
        died += status == -signal.SIGKILL
        said = [line.split() for line in words.split(";")]
        numbers = {
            word: {int(line[1]) for line in said if line and line[0] == word}
            for word in ("reserved", "confirming", "confirmed")
        }
        if not path.exists():
            assert words == ""
            continue
        with Ledger(path, accountant=StepPrices()) as ledger:
            facts = ledger.facts()
            confirmed = {fact.id for fact in facts if fact.state == "confirmed"}
            assert numbers["reserved"] <= {fact.id for fact in facts}
            assert len(facts) <= sum(line == ["reserving"] for line in said)
            assert numbers["confirmed"] <= confirmed <= numbers["confirming"]
            steps = {fact.id: fact.steps for fact in facts}
            assert sum(steps.values()) >= sum(int(line[2]) for line in said if len(line) == 3)
            assert ledger.spent(1e-3).steps == sum(steps.values())
            left = 10 - sum(steps.values())
            assert ledger.steps_left(**wanted()) == left
            reserve(ledger, left)
            with pytest.raises(PrivacyError):
                reserve(ledger)
    assert status == 0
    assert died > 60
