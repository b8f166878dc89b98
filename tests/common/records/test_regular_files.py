"""What is no regular file is refused at once, whoever asks for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from common.backup import archive
from common.errors import GliofedError, ModelError, StateError
from common.records.atomic_files import read_json
from common.records.regular_files import open_regular, read_regular
from common.records.weights import load

pytestmark = pytest.mark.usefixtures("at_once")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_suffix(".there"))
    path.symlink_to(path.with_suffix(".there"))


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a named pipe": (pipe, "a named pipe"),
    "a link to a named pipe": (link_to_pipe, "a named pipe"),
    "a link to a device": (endless, "a device"),
    "a socket": (listening, "a socket"),
    "a folder": (Path.mkdir, "a folder"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_not_opened(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, words = KINDS[kind]
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make(Path("scan"))
    with pytest.raises(OSError, match=f"it is {words}, not a regular file"):
        open_regular(Path("scan"))


def test_what_takes_its_place_meanwhile_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scan"
    path.write_bytes(b"as it was")
    facts = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: facts)
    with pytest.raises(OSError, match="named pipe"):
        open_regular(path)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    path.write_bytes(b"12345")
    assert read_regular(path, most_bytes=5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, more than 4"):
        read_regular(path, most_bytes=4)
    with pytest.raises(OSError, match="longer than the system says"):
        read_regular(Path("/proc/self/status"), most_bytes=4)  # which says that it has 0 bytes


READERS: dict[str, tuple[Callable[[Path], object], type[GliofedError]]] = {
    "weights": (load, ModelError),
    "a backup": (lambda path: archive.opening(path, None).__enter__(), StateError),
    "JSON": (lambda path: read_json(path, what="kit"), StateError),
}


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_of_foreign_files_waits_for_a_pipe(tmp_path: Path, reader: str) -> None:
    read, error = READERS[reader]
    path = tmp_path / "there"
    os.mkfifo(path)
    with pytest.raises(error, match="named pipe"):
        read(path)
