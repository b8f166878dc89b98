"""Locks exclude on Windows as they do here; what needs POSIX says so."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from common import posix
from common.errors import StateError
from common.records.atomic_files import held, is_held, write_bytes
from common.records.journal import Journal
from tests import windows


@pytest.fixture(params=["POSIX", "Windows"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Windows":
        on_windows(monkeypatch)


def on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix, "POSIX", False)
    monkeypatch.setitem(sys.modules, "msvcrt", windows.msvcrt())


@pytest.mark.usefixtures("system")
def test_one_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        with held(path, what="Somebody works"):
            assert is_held(path)
            with (
                pytest.raises(StateError, match="Somebody works already"),
                held(path, what="Somebody works", attempts=1),
            ):
                pass
        assert not is_held(path)
    assert path.read_bytes() == b""


@pytest.mark.usefixtures("system")
def test_who_appends_to_a_journal_waits_for_who_holds_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    first = journal.append("first")
    second = threading.Thread(target=journal.append, args=("second",))
    with journal.held() as head:
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert [entry.event for entry in journal.entries()] == ["first"]
    second.join(10)
    assert head == first.hash
    assert [entry.event for entry in journal.entries()] == ["first", "second"]


@pytest.mark.usefixtures("system")
def test_to_lock_a_file_leaves_it_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("r+b", buffering=0) as file:
        file.seek(4)
        posix.lock(file.fileno())
        assert file.read() == b"456789"
    assert path.read_bytes() == b"0123456789"


def test_on_windows_a_lock_is_behind_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows would keep others from reading the bytes that are locked."""
    on_windows(monkeypatch)
    places = []
    monkeypatch.setattr(
        sys.modules["msvcrt"],
        "locking",
        lambda descriptor, *_: places.append(os.lseek(descriptor, 0, os.SEEK_CUR)),
    )
    with held(tmp_path / "lock", what="Somebody works"):
        assert places == [2**31 - 2]


@pytest.mark.usefixtures("system")
def test_a_file_is_replaced(tmp_path: Path) -> None:
    for data in (b"old", b"new"):
        write_bytes(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == b"new"


def test_what_needs_posix_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    posix.required("A site", do="Use Linux.")
    on_windows(monkeypatch)
    with pytest.raises(StateError, match="A site needs a POSIX system such as Linux") as caught:
        posix.required("A site", do="Use Linux.")
    assert (caught.value.code, caught.value.do) == ("posix", "Use Linux.")
