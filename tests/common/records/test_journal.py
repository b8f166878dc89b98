import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from common.errors import StateError
from common.records.journal import GENESIS, Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def filled(journal: Journal, count: int = 5) -> list[str]:
    return [journal.append("step", number=n, note="ü").hash for n in range(count)]


def test_an_absent_journal_is_empty(journal: Journal) -> None:
    assert list(journal.entries()) == []
    assert journal.head == GENESIS


def test_facts_come_back_in_order_and_chained(journal: Journal) -> None:
    hashes = filled(journal)
    entries = list(journal.entries())
    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry.facts["number"] for entry in entries] == [0, 1, 2, 3, 4]
    assert [entry.hash for entry in entries] == hashes
    assert journal.head == hashes[-1]
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert [line["previous"] for line in lines] == [GENESIS, *hashes[:-1]]


def test_events_are_chosen_by_name_and_fact(journal: Journal) -> None:
    journal.append("opened", study="a", round=1)
    journal.append("closed", study="a", round=1)
    journal.append("closed", study="b", round=1)
    assert len(journal.events()) == 3
    assert len(journal.events("closed")) == 2
    assert [e.event for e in journal.events(study="a")] == ["opened", "closed"]
    assert len(journal.events("opened", "closed", study="b", round=1)) == 1
    assert journal.events("closed", absent=1) == []


@pytest.mark.parametrize("line", range(4))
@pytest.mark.parametrize("damage", ["change", "remove", "swap", "no-json", "no-object", "empty"])
def test_tampering_shows_at_any_line(journal: Journal, line: int, damage: str) -> None:
    filled(journal)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    if damage == "change":
        lines[line] = lines[line].replace(b'"number":', b'"numbers":')
    elif damage == "remove":
        del lines[line]
    elif damage == "swap":
        lines[line], lines[line + 1] = lines[line + 1], lines[line]
    else:
        lines[line] = {"no-json": b"{\n", "no-object": b"[1]\n", "empty": b"\n"}[damage]
    journal.path.write_bytes(b"".join(lines))
    with pytest.raises(StateError, match="damaged or was changed at line") as caught:
        list(journal.entries())
    assert caught.value.code == "journal-damaged"


@pytest.mark.parametrize("line", range(3))
def test_any_flipped_bit_is_found_and_located(journal: Journal, line: int) -> None:
    filled(journal, 3)
    sound = journal.path.read_bytes()
    ends = [place for place, byte in enumerate(sound) if byte == ord("\n")]
    begin = ends[line - 1] + 1 if line else 0
    for place in range(begin, ends[line] + 1):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << place % 8
        journal.path.write_bytes(bytes(damaged))
        with pytest.raises(StateError, match=f"at line {line + 1}, bytes {begin} to"):
            list(journal.entries())
    journal.path.write_bytes(sound)
    assert len(list(journal.entries())) == 3


def test_a_damaged_end_is_never_built_upon(journal: Journal) -> None:
    filled(journal, 2)
    sound = journal.path.read_bytes()
    for place in range(sound.index(b"\n") + 1, len(sound)):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << place % 8
        journal.path.write_bytes(bytes(damaged))
        with pytest.raises(StateError, match="damaged at its end"):
            journal.append("after")
        with pytest.raises(StateError, match="damaged at its end"):
            _ = journal.head
        assert journal.path.read_bytes() == bytes(damaged)


def test_known_heads_are_held_and_others_are_not(journal: Journal) -> None:
    hashes = filled(journal)
    assert all(journal.holds(head) for head in (GENESIS, *hashes))
    assert not journal.holds("f" * 64)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join(lines[:3]))
    assert not journal.holds(hashes[-1])
    assert journal.append("step", number=3, note="ü").hash != hashes[3]


@pytest.mark.parametrize("record", [b"{}", b"[]", b"nonsense", b'{"n":"5"}', b'{"n":1}'])
def test_a_last_line_that_is_no_fact_stops_reader_and_writer(
    journal: Journal, record: bytes
) -> None:
    filled(journal)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join(lines[:-1]) + record + b"\n")
    with pytest.raises(StateError, match="at line 5"):
        list(journal.entries())
    before = journal.path.read_bytes()
    with pytest.raises(StateError, match="damaged at its end"):
        journal.append("step")
    assert journal.path.read_bytes() == before


@pytest.mark.parametrize("whole", [0, 1, 5])
@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_last_line_is_set_aside(journal: Journal, whole: int, cut: int) -> None:
    filled(journal, whole + 1)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    torn = lines[-1][:cut]
    journal.path.write_bytes(b"".join(lines[:-1]) + torn)
    assert len(list(journal.entries())) == whole
    assert journal.append("after").number == whole + 1
    assert [e.event for e in journal.entries()] == ["step"] * whole + ["after"]
    assert journal.path.with_suffix(".torn").read_bytes() == torn + b"\n"


@pytest.mark.parametrize("size", [10, 4000, 4096, 9000, 50_000])
def test_lines_of_any_length_follow_each_other(journal: Journal, size: int) -> None:
    for length in (size, 1, size, size):
        journal.append("long", text="x" * length)
    assert [len(e.facts["text"]) for e in journal.entries()] == [size, 1, size, size]
    with journal.path.open("ab") as file:
        file.write(b"y" * size)
    assert journal.append("after").number == 5
    assert len(list(journal.entries())) == 5


def test_an_append_reads_only_the_end(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(journal, 200)
    read: list[int] = []
    from common.records import journal as module

    original = module._read

    def watch(file: Any, count: int) -> bytes:
        read.append(count)
        return original(file, count)

    monkeypatch.setattr(module, "_read", watch)
    journal.append("last")
    assert sum(read) < 10_000 < journal.path.stat().st_size


def write_many(path: str, name: str, count: int) -> None:
    for number in range(count):
        Journal(Path(path)).append("step", writer=name, number=number)


def test_processes_append_to_one_chain(journal: Journal) -> None:
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=write_many, args=(str(journal.path), name, 25)) for name in "abcd"
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert [writer.exitcode for writer in writers] == [0] * 4
    entries = list(journal.entries())
    assert [entry.number for entry in entries] == list(range(1, 101))
    for name in "abcd":
        mine = [e.facts["number"] for e in entries if e.facts["writer"] == name]
        assert mine == list(range(25))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_loses_nothing_and_adds_nothing(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    filled(journal)
    before = journal.path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(number, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StateError, match="Nothing was done") as caught:
            journal.append("unheard")
    assert caught.value.code == "journal-write"
    assert journal.path.read_bytes() == before
    assert journal.append("heard").number == 6
    assert len(list(journal.entries())) == 6


def test_a_line_that_was_written_in_part_is_taken_back(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(journal)
    before = journal.path.read_bytes()
    from common.records import journal as module

    def half(file: Any, data: bytes) -> None:
        file.write(data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", half)
        with pytest.raises(StateError):
            journal.append("unheard")
    assert journal.path.read_bytes() == before


def test_a_journal_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="Cannot write the journal"):
        Journal(tmp_path).append("step")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_facts_are_finite(journal: Journal, value: float) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        journal.append("step", value=value)
    assert list(journal.entries()) == []
