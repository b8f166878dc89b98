import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from common.errors import StateError
from common.records.atomic_files import (
    held,
    is_held,
    read_json,
    replacing,
    write_bytes,
    write_json,
    write_secret,
)


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_written_into_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    write_secret(tmp_path / "key", b"secret")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.write_bytes", "pathlib.Path.replace"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(where, full_disk)
        with pytest.raises(StateError, match="disk is full") as caught:
            write_bytes(path, b"new")
    assert caught.value.code == "disk-full"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_in_the_block_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_failure_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match=r"Cannot write .*below"):
        write_bytes(tmp_path / "file" / "below", b"new")


def test_readers_see_the_old_or_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == path.parent
    assert path.read_bytes() == b"new"


def test_json_round_trip_in_stable_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": [None, "ü"]})
    write_json(tmp_path / "b", {"a": [None, "ü"], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_json(tmp_path / "a", what="file") == {"b": 1, "a": [None, "ü"]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "There is no kit at"),
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_unreadable_json_is_named(tmp_path: Path, content: bytes | None, text: str) -> None:
    if content is not None:
        (tmp_path / "kit").write_bytes(content)
    with pytest.raises(StateError, match=text):
        read_json(tmp_path / "kit", what="kit")


def test_a_folder_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="Cannot read kit"):
        read_json(tmp_path, what="kit")


def test_the_folder_is_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    fsync = os.fsync

    def watch(handle: int) -> None:
        synced.append(os.path.isdir(f"/proc/self/fd/{handle}"))  # noqa: PTH112  a link of /proc
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    write_bytes(tmp_path / "file", json.dumps({}).encode())
    assert synced == [False, True]


def test_a_lock_is_held_once_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    assert not is_held(path)
    with held(path, what="it is served"):
        assert is_held(path)
        with pytest.raises(StateError, match="it is served"), held(path, what="it is served"):
            pass
        assert is_held(path)
    assert not is_held(path)
    with held(path, what="it is served"):
        pass


def test_a_shared_lock_is_held_by_many_and_shuts_others_out(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with held(path, what="a job", shared=True):
        with held(path, what="a job", shared=True):
            assert is_held(path)
        assert is_held(path)
        with pytest.raises(StateError), held(path, what="a job", attempts=1):
            pass
    assert not is_held(path)
