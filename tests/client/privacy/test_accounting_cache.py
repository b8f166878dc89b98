import json
from pathlib import Path

import pytest

from client.privacy.accounting_cache import MOST_ANSWERS, Answers
from common.records.atomic_files import held


def test_answers_outlive_the_process_that_found_them(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.json"
    first = Answers(path, maker="a 1")
    assert first.get("question") is None
    first.put("question", 0.1 + 0.2)
    first.put("endless", float("inf"))
    second = Answers(path, maker="a 1")
    assert second.get("question") == 0.1 + 0.2
    assert second.get("endless") == float("inf")


def test_answers_of_another_version_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    Answers(path, maker="a 1").put("question", 1.0)
    newer = Answers(path, maker="a 2")
    assert newer.get("question") is None
    newer.put("question", 2.0)
    assert Answers(path, maker="a 2").get("question") == 2.0
    assert Answers(path, maker="a 1").get("question") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"\xff\xfe",
        b'{"answers": 7, "sha256": ""}',
        b'{"answers": [[1, 2, 3]], "sha256": ""}',
        b'{"answers": [["question", 9.0]], "maker": "a 1", "sha256": "0"}',
    ],
)
def test_damaged_answers_are_found_again(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    answers = Answers(path, maker="a 1")
    assert answers.get("question") is None
    answers.put("question", 1.0)
    assert Answers(path, maker="a 1").get("question") == 1.0


def test_a_changed_number_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    Answers(path, maker="a 1").put("question", 1.25)
    found = json.loads(path.read_text())
    found["answers"][0][1] = 1.5
    path.write_text(json.dumps(found))
    assert Answers(path, maker="a 1").get("question") is None


def test_two_processes_keep_each_other_s_answers(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    one, other = Answers(path, maker="a 1"), Answers(path, maker="a 1")
    one.put("mine", 1.0)
    other.put("yours", 2.0)
    again = Answers(path, maker="a 1")
    assert (again.get("mine"), again.get("yours")) == (1.0, 2.0)


def test_what_cannot_be_written_is_remembered_in_memory(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    busy = tmp_path / "busy.json"
    for path in (None, blocked / "answers.json", busy):
        answers = Answers(path, maker="a 1")
        with held(tmp_path / "busy.lock", what=""):
            answers.put("question", 1.0)
        assert answers.get("question") == 1.0
    assert not busy.exists()


def test_the_file_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.privacy.accounting_cache.MOST_ANSWERS", 5)
    path = tmp_path / "answers.json"
    answers = Answers(path, maker="a 1")
    for number in range(9):
        answers.put(str(number), number)
    again = Answers(path, maker="a 1")
    assert [again.get(str(number)) for number in range(9)] == [None] * 4 + [4, 5, 6, 7, 8]
    assert MOST_ANSWERS >= 100
