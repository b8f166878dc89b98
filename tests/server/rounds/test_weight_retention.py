"""Old weights: which stay, which go, when, and what is said of them."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.errors import StateError
from common.records.journal import Journal
from server.commands import coordinator
from server.commands.backup import restore, source
from server.consortium.published_study import KEEP_ROUNDS, Study
from server.release.release_folder import release
from server.reporting.diagnosis import of_study
from server.rounds import weight_retention
from server.rounds.orders import StoppedError
from server.rounds.weight_retention import spans, stock, surplus, tidy


@pytest.mark.parametrize(
    ("on_disk", "closed", "released", "keep", "due"),
    [
        ([], [0], [], 3, []),
        ([0], [0], [], 3, []),
        ([0, 1, 2], [0, 1, 2], [], 3, []),
        ([0, 1, 2, 3], [0, 1, 2, 3], [], 3, [0]),
        ([0, 1, 2, 3], [0, 1, 2, 3], [], 1, [0, 1, 2]),
        ([0, 1, 2, 3], [0, 1, 2, 3], [], 0, []),
        ([0, 1, 2, 3], [0, 1, 2, 3], [], 99, []),
        ([0, 1, 2, 3], [0, 1, 2, 3], [0, 1], 1, [2]),
        ([0, 1, 2, 3, 4], [0, 1, 2, 3], [], 2, [0, 1]),  # round 4 is written, not closed
        ([2, 3], [0, 1, 2, 3], [], 2, []),
        ([0, 3], [0, 1, 2, 3], [], 1, [0]),  # removed before, but for one that a kill left
    ],
)
def test_what_is_not_needed_any_more(
    on_disk: list[int], closed: list[int], released: list[int], keep: int, due: list[int]
) -> None:
    assert surplus(on_disk, closed=closed, released=released, keep=keep) == due
    assert max(closed) not in due


def here(world: Any) -> list[int]:
    return [int(n) for n in world.consortium.study("demo").checkpoints()]


def study_of(world: Any, rounds: int, **changes: Any) -> Study:
    world.join("a", "b")
    study: Study = world.publish(rounds=rounds, **changes)
    return study


def removed(world: Any) -> list[int]:
    return [one for facts in world.events("weights removed") for one in facts["removed"]]


@pytest.mark.parametrize(
    ("keep", "left"),
    [(None, [4, 5, 6]), (0, [0, 1, 2, 3, 4, 5, 6]), (1, [6]), (5, [2, 3, 4, 5, 6])],
)
def test_a_study_keeps_its_last_weights(world: Any, keep: int | None, left: list[int]) -> None:
    study = study_of(world, 6)
    study.want("running", keep_rounds=keep)
    world.run()
    assert here(world) == left
    assert removed(world) == [n for n in range(7) if n not in left]
    assert study.keep_rounds == (KEEP_ROUNDS if keep is None else keep)


def test_what_a_rule_keeps_for_itself_goes_as_well(world: Any) -> None:
    study = study_of(world, 5, aggregation__rule='"fedadam"')
    world.run()
    assert study.states() == [3, 4, 5]


def test_they_are_removed_after_the_journal_says_what_replaces_them(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study_of(world, 5)
    seen: list[tuple[int, list[str]]] = []
    real = Study.remove

    def remove(self: Study, number: int) -> None:
        seen.append((number, world.names()[-2:]))
        real(self, number)

    monkeypatch.setattr(Study, "remove", remove)
    world.run()
    assert [number for number, _ in seen] == [0, 1, 2]
    assert all(last == ["round closed", "weights removed"] for _, last in seen)


class KilledError(BaseException):
    """In the place of kill -9."""


def killed(*_: Any, **__: Any) -> None:
    raise KilledError


@pytest.mark.parametrize("moment", ["append", "remove"])
def test_a_kill_while_they_are_removed_costs_nothing(
    world: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Killed after the round was closed: before the journal says what goes, or before it went."""
    study_of(world, 5)

    real = Journal.append

    def append(self: Journal, event: str, **facts: Any) -> Any:
        return killed() if event == "weights removed" else real(self, event, **facts)

    with monkeypatch.context() as context:
        if moment == "append":
            context.setattr(Journal, "append", append)
        else:
            context.setattr(Study, "remove", killed)
        with pytest.raises(KilledError):
            world.run()
    assert here(world) == [0, 1, 2, 3]
    world.run()
    assert here(world) == [3, 4, 5]
    assert removed(world) == [0, 1, 2]  # each is said once
    assert [facts["round"] for facts in world.events("round closed")] == [1, 2, 3, 4, 5]


def test_a_study_is_resumed_with_the_last_weights_alone(world: Any) -> None:
    study = study_of(world, 4)

    def stop(_: object, good: Any) -> Any:
        study.want("stopped")
        return good

    world.hospitals["b"].replies["evaluate"] = stop
    study.want("running", keep_rounds=1)
    for _ in range(9):
        study.want("running")
        with suppress(StoppedError):
            world.rounds().run()
        assert here(world) == [len(world.events("round closed"))]
    assert len(world.events("study resumed")) > 1
    assert here(world) == [4]


def test_weights_of_a_release_stay(world: Any, tmp_path: Path) -> None:
    study_of(world, 3).want("running")
    world.run()
    release(world.consortium, "demo", tmp_path / "one", number=1)
    release(world.consortium, "demo", tmp_path / "mean", number=3, average=2)
    tidy(world.consortium.study("demo"), world.consortium.journal)
    study = world.consortium.study("demo")
    study.want("finished", keep_rounds=1)
    tidy(study, world.consortium.journal)
    assert here(world) == [1, 2, 3]
    release(world.consortium, "demo", tmp_path / "again", number=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"number": 1}, "The weights of round 1 of demo were removed: only those of the last 3"),
        ({"number": 4, "average": 3}, "The weights of round 2 of demo were removed"),
        ({"average": 5}, "The weights of rounds 1, 2 of demo were removed"),
    ],
)
def test_what_is_gone_is_not_released_and_why_is_said(
    world: Any, tmp_path: Path, options: dict[str, int], said: str
) -> None:
    study_of(world, 5)
    world.run()
    with pytest.raises(StateError, match=said) as error:
        release(world.consortium, "demo", tmp_path / "model", **options)
    assert error.value.code == "not-kept"
    assert "Here are those of 3 to 5." in error.value.do
    assert not (tmp_path / "model").exists()
    release(world.consortium, "demo", tmp_path / "model", number=3)


def test_doctor_status_and_backup_do_not_miss_them(world: Any, tmp_path: Path) -> None:
    study = study_of(world, 5)
    world.run()
    folder = world.consortium.folder
    release(world.consortium, "demo", tmp_path / "model", number=4)
    assert of_study(study, world.consortium.journal.events(study="demo")).level == "ok"
    said = " ".join(CliRunner().invoke(coordinator.app, ["status", str(folder)]).output.split())
    assert "Weights on the disk: rounds 3 to 5 (0 is the start), of which a release has 4" in said
    assert "removed: 0 to 2. The last 3 are kept." in said
    found = json.loads(
        CliRunner().invoke(coordinator.app, ["status", str(folder), "--json"]).output
    )
    assert found["studies"][0]["weights"] == {
        "keep_rounds": 3,
        "on_disk": [3, 4, 5],
        "released": [4],
        "removed": [0, 1, 2],
    }
    assert len(list(folder.rglob("*.safetensors"))) == 3
    made = tmp_path / "all.backup"
    assert (
        CliRunner().invoke(coordinator.app, ["backup", str(folder), "--to", str(made)]).exit_code
        == 0
    )
    assert CliRunner().invoke(coordinator.app, ["verify-backup", str(made)]).exit_code == 0
    again = restore(made, tmp_path / "restored")
    assert again.study("demo").checkpoints() == [3, 4, 5]
    assert source(again).name == world.consortium.settings.name


def test_launch_says_how_many_are_kept(world: Any) -> None:
    study = study_of(world, 6)

    def launch(*options: object) -> None:
        asked = ["launch", world.consortium.folder, "demo", "--no-wait", *options]
        result = CliRunner().invoke(coordinator.app, [str(one) for one in asked])
        assert result.exit_code == 0, result.output

    launch("--keep-rounds", 5)
    assert world.events("study launched")[-1]["keep_rounds"] == 5
    launch()  # it stays as it is
    assert (study.wanted, study.keep_rounds) == ("running", 5)
    world.run()
    assert here(world) == [2, 3, 4, 5, 6]
    study.want("finished")
    launch("--keep-rounds", 2)
    assert (here(world), study.wanted) == ([5, 6], "finished")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"state": "running", "keep_rounds": -1}', '{"keep_rounds": 2}']
)
def test_where_the_wish_was_lost_nothing_is_removed(world: Any, content: str) -> None:
    study = study_of(world, 6)
    (study.folder / "wanted.json").write_text(content)
    with pytest.raises(StateError):
        tidy(study, world.consortium.journal)
    study.want("running")
    assert (study.wanted, study.keep_rounds) == ("running", 0)


def test_files_of_others_are_no_weights(world: Any) -> None:
    study = study_of(world, 1)
    world.run()
    (study.folder / "rounds" / "mine.safetensors").write_bytes(b"")
    (study.folder / "rounds" / ".partial-0007.safetensors").write_bytes(b"")
    assert study.checkpoints() == [0, 1]
    found = stock(study, world.consortium.journal.events(study="demo"))
    assert (found.on_disk, found.released, found.removed) == ((0, 1), (), ())


@pytest.mark.parametrize(
    ("numbers", "words"), [([], "none"), ([3], "3"), ([1, 2], "1, 2"), ([9, 1, 2, 3], "1 to 3, 9")]
)
def test_numbers_in_words(numbers: list[int], words: str) -> None:
    assert spans(numbers) == words
    assert weight_retention.REMOVED == "weights removed"
