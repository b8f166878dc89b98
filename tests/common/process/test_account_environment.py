"""What a process lacks that runs as a number: a name, a home, a folder for caches."""

from __future__ import annotations

import getpass
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.process.account_environment import own_folder, provide

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty, and an account that has everything."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    return folder


def _unnamed(patch: pytest.MonkeyPatch) -> None:
    """Make the account one without a name, and so without a home of its own."""

    def unknown(number: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    patch.setattr("pwd.getpwuid", unknown)
    for name in NAMES:
        patch.delenv(name, raising=False)


def _without_pwd(patch: pytest.MonkeyPatch) -> None:
    """Make the machine one without the module, as Windows is."""
    patch.setitem(sys.modules, "pwd", None)
    for name in NAMES:
        patch.delenv(name, raising=False)


def _unwritable_home(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "access", lambda _path, mode: not mode & os.W_OK)


def _no_home(patch: pytest.MonkeyPatch) -> None:
    patch.delenv("HOME")


Change = Callable[[pytest.MonkeyPatch], object]
LACKS: dict[str, tuple[list[Change], dict[str, str]]] = {
    "nothing": ([], {}),
    "a name": ([_unnamed], {"LOGNAME": f"uid{os.getuid()}"}),
    "a name, and pwd to look it up": ([_without_pwd], {"LOGNAME": f"uid{os.getuid()}"}),
    "a name, but USER": ([_unnamed, lambda p: p.setenv("USER", "root")], {}),
    "a name and a home": (
        [_unnamed, _no_home],
        {"LOGNAME": f"uid{os.getuid()}", "HOME": f"gliofed-{os.getuid()}/home"},
    ),
    "a home that is there": (
        [lambda p: p.setenv("HOME", "/nonexistent")],
        {"HOME": f"gliofed-{os.getuid()}/home"},
    ),
    "a home to write": (
        [_unwritable_home],
        {"MPLCONFIGDIR": f"gliofed-{os.getuid()}/matplotlib"},
    ),
    "a home to write, but has MPLCONFIGDIR": (
        [_unwritable_home, lambda p: p.setenv("MPLCONFIGDIR", "/elsewhere/matplotlib")],
        {},
    ),
}


@pytest.mark.parametrize("what", LACKS)
def test_what_an_account_lacks_is_put_into_the_environment_and_nothing_else(
    what: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, expected = LACKS[what]
    for change in changes:
        change(monkeypatch)
    before = dict(os.environ)
    provide()
    assert os.environ == before | {
        name: value if name == "LOGNAME" else str(temporary / value)
        for name, value in expected.items()
    }
    assert getpass.getuser()
    assert Path.home().is_dir()
    for path in temporary.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_without_any_folder_that_can_be_written_nothing_is_put(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    _unwritable_home(monkeypatch)
    before = dict(os.environ)
    provide()
    assert dict(os.environ) == before


def _link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent / "elsewhere")


def _open(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


@pytest.mark.parametrize("taken", [_link, _open, Path.touch], ids=["a link", "open", "a file"])
def test_a_folder_that_another_user_may_have_made_is_not_used(
    taken: Callable[[Path], None], temporary: Path
) -> None:
    usual = temporary / f"gliofed-{os.getuid()}"
    taken(usual)
    found = own_folder()
    assert found != usual
    assert found.parent == temporary
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_one_folder_serves_all_processes_of_a_user(temporary: Path) -> None:
    assert own_folder() == own_folder() == temporary / f"gliofed-{os.getuid()}"
