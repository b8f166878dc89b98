"""Each study once, whatever fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from client.clinic.watch.found_study import Found
from client.clinic.watch.journal import MOST_ATTEMPTS, Journal
from client.clinic.watch.watcher import Watcher
from common.errors import CaseError, StateError


class Source:
    """Studies by name; ``settled`` lists what was settled."""

    def __init__(self, *names: str) -> None:
        self.names, self.settled = names, list[str]()

    def look(self) -> Iterator[Found]:
        for name in self.names:
            yield Found(
                name,
                "same",
                lambda name=name: nullcontext(Path(name)),
                lambda name=name: self.settled.append(name),
            )


class Work:
    """Writes a result, or raises what ``fails`` says of the study."""

    def __init__(self, **fails: BaseException) -> None:
        self.fails, self.asked = fails, list[str]()

    def __call__(self, folder: Path, place: Path) -> None:
        self.asked.append(folder.name)
        place.mkdir(parents=True)
        if folder.name in self.fails:
            raise self.fails[folder.name]
        (place / "result.json").write_text("{}")


def test_each_study_is_segmented_once(tmp_path: Path) -> None:
    work, source = Work(), Source("one", "two")
    for _ in range(2):
        watcher = Watcher(source, Journal(tmp_path), work)
        watcher.look()
        watcher.look()
    assert work.asked == ["one", "two"]
    assert source.settled == ["one", "two"] * 4


@pytest.mark.parametrize(
    ("error", "times", "settled"),
    [
        (CaseError("No.", code="case-none"), 1, 6),
        (CaseError("Away.", code="pacs-unreachable"), 6, 0),
        (StateError("Full.", code="disk-full"), 6, 0),
        (MemoryError(), MOST_ATTEMPTS, 3),
    ],
    ids=["refused", "passing", "disk", "unforeseen"],
)
def test_a_study_that_fails(tmp_path: Path, error: BaseException, times: int, settled: int) -> None:
    work, source = Work(bad=error), Source("bad", "good")
    for _ in range(6):
        Watcher(source, Journal(tmp_path), work).look()
    assert work.asked.count("bad") == times
    assert work.asked.count("good") == 1
    assert source.settled.count("bad") == settled
    assert not Journal(tmp_path).result("bad").exists()


def test_a_result_is_stored_once_also_later(tmp_path: Path) -> None:
    work, source, sent = Work(), Source("one"), list[Path]()

    def away(_: Path) -> int:
        raise CaseError("Away.", code="pacs-unreachable")

    def send(result: Path) -> int:
        sent.append(result)
        return 4

    Watcher(source, Journal(tmp_path), work, send=away).look()
    assert source.settled == []
    for _ in range(2):
        Watcher(source, Journal(tmp_path), work, send=send).look()
    assert (work.asked, len(sent)) == (["one"], 1)
    assert Journal(tmp_path).record("one").stored == 4


def test_a_look_that_fails_in_an_unforeseen_way_does_not_end_the_watch(tmp_path: Path) -> None:
    stopping = threading.Event()

    class Odd(Source):
        looks = 0

        def look(self) -> Iterator[Found]:
            self.looks += 1
            if self.looks == 1:
                raise PermissionError(13, "Permission denied")
            yield from super().look()
            stopping.set()

    work, source = Work(), Odd("one")
    Watcher(source, Journal(tmp_path), work).run(stopping, every_s=0.01)
    assert (source.looks, work.asked) == (2, ["one"])
