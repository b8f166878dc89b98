"""When a study in a folder is complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.clinic.watch.folder import Folder
from common.errors import StateError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def names(folder: Folder) -> list[str]:
    return [found.name for found in folder.look()]


def test_a_study_is_complete_when_it_rests(tmp_path: Path) -> None:
    clock = Clock()
    folder = Folder(tmp_path, quiet_s=60, clock=clock)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a").write_text("1")
    assert names(folder) == []
    clock.now = 50
    (tmp_path / "one" / "b").write_text("2")
    assert names(folder) == []
    clock.now = 100
    assert names(folder) == []
    clock.now = 110
    (before,) = folder.look()
    with before.files() as where:
        assert where == tmp_path / "one"
    (tmp_path / "one" / "b").write_text("longer")
    assert names(folder) == []
    clock.now = 200
    (after,) = folder.look()
    assert after.fingerprint != before.fingerprint


def test_a_marker_says_it_at_once(tmp_path: Path) -> None:
    folder = Folder(tmp_path, quiet_s=1e9)
    (tmp_path / "one.zip").write_text("1")
    (tmp_path / "two").mkdir()
    assert names(folder) == []
    (tmp_path / "one.zip.complete").touch()
    assert names(folder) == ["one.zip"]


def test_what_is_no_study_is_left_alone(tmp_path: Path) -> None:
    for name in (".hidden", "copying.part", "x.complete"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert names(Folder(tmp_path, quiet_s=0)) == []


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be read"):
        names(Folder(tmp_path / "none", quiet_s=0))
