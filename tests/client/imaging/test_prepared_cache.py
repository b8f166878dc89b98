"""A prepared case is prepared once, never wrongly reused, and never half there."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.imaging import prepared_cache as module
from client.imaging.case import Case, Image
from client.imaging.missing_sequences import present
from client.imaging.prepared_cache import PreparedCache, retain
from client.imaging.preprocessing import Prepared, prepare
from common.errors import CaseError, StateError
from common.records import atomic_files
from common.regions import MODALITIES
from common.study.protocol import PreprocessingOptions

from .conftest import MakeCase, anatomy

OPTIONS = PreprocessingOptions()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return the names of the cases that were prepared from their files."""
    names: list[str] = []

    def counted(case: Case, options: PreprocessingOptions, **read: Any) -> Prepared:
        names.append(case.name)
        return prepare(case, options, **read)

    monkeypatch.setattr(module, "prepare", counted)
    return names


def aged(case: Case, seconds: float = 3600) -> Case:
    """Make the files look untouched for a while, as a cohort's are."""
    for path in (*(image.path for image in case.images.values()), case.label):
        if path is not None:
            os.utime(path, (time.time() - seconds,) * 2)
    return case


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.prepared"))


def same(one: Prepared, other: Prepared) -> None:
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.affine, other.affine)
    np.testing.assert_array_equal(one.native_affine, other.native_affine)
    assert one.native_shape == other.native_shape
    assert one.history == other.history


@pytest.mark.parametrize("labelled", [True, False])
def test_the_second_time_gives_the_same(
    make_case: MakeCase, folder: Path, prepared: list[str], labelled: bool
) -> None:
    case = aged(make_case(labelled=labelled))
    first = PreparedCache(folder, OPTIONS).get(case)
    second = PreparedCache(folder, OPTIONS).get(case)
    assert len(prepared) == 1
    same(first, second)
    fresh = prepare(case, OPTIONS)
    np.testing.assert_array_equal(second.image, fresh.image)
    assert (second.labels is None) == (not labelled)


def test_the_second_time_opens_no_raw_file(
    make_case: MakeCase, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = aged(make_case())
    PreparedCache(folder, OPTIONS).get(case)
    opened: list[Path] = []
    original, original_raw = Path.open, os.open

    def watched(self: Path, *args: object, **kwargs: object) -> object:
        opened.append(self)
        return original(self, *args, **kwargs)

    def watched_raw(path: Any, *args: Any, **kwargs: Any) -> int:
        opened.append(Path(path))
        return original_raw(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", watched)
    monkeypatch.setattr(os, "open", watched_raw)
    PreparedCache(folder, OPTIONS).get(case)
    monkeypatch.undo()
    assert opened
    assert not [path for path in opened if path.suffix == ".gz"]


def test_arrays_can_be_written_without_changing_the_entry(
    make_case: MakeCase, folder: Path
) -> None:
    case = aged(make_case())
    first = PreparedCache(folder, OPTIONS).get(case)
    first.image[:] = 7
    assert PreparedCache(folder, OPTIONS).get(case).image.max() != 7


def test_other_options_are_another_entry(
    make_case: MakeCase, folder: Path, prepared: list[str]
) -> None:
    case = aged(make_case())
    PreparedCache(folder, OPTIONS).get(case)
    coarse = PreparedCache(folder, PreprocessingOptions(spacing_mm=2.0)).get(case)
    assert len(prepared) == 2
    assert coarse.affine[0, 0] == pytest.approx(2)


@pytest.mark.parametrize("wait_s", [0, 3600], ids=["just now", "long after"])
def test_a_changed_file_is_another_entry(
    make_case: MakeCase, folder: Path, prepared: list[str], wait_s: float
) -> None:
    cache = PreparedCache(folder, OPTIONS)
    cache.get(aged(make_case(), wait_s))
    images, _ = anatomy()
    images[0, 20, 18, 15] += 40
    case = make_case(images=images)
    same(cache.get(case), prepare(case, OPTIONS))
    assert len(prepared) == 2


def test_mask_meaning_and_channel_count_too(
    make_case: MakeCase, folder: Path, prepared: list[str]
) -> None:
    case = aged(make_case())
    cache = PreparedCache(folder, OPTIONS)
    cache.get(case)
    swapped = cache.get(dataclasses.replace(case, label_map={1: 1, 2: 3, 3: 2}))
    assert np.count_nonzero(swapped.labels == 2) == np.count_nonzero(cache.get(case).labels == 3)
    with_channel = {**case.images, "t1n": Image(case.images["t1n"].path, 0)}
    cache.get(dataclasses.replace(case, images=with_channel))
    cache.get(dataclasses.replace(case, label=None))
    assert len(prepared) == 4


def test_the_same_files_elsewhere_are_the_same_entry(
    make_case: MakeCase, folder: Path, prepared: list[str], tmp_path: Path
) -> None:
    case = aged(make_case())
    cache = PreparedCache(folder, OPTIONS)
    cache.get(case)
    for image in case.images.values():
        image.path.rename(image.path.with_name(f"moved-{image.path.name}"))
    moved = {k: Image(i.path.with_name(f"moved-{i.path.name}")) for k, i in case.images.items()}
    cache.get(dataclasses.replace(case, patient="renamed", images=moved))
    assert len(prepared) == 1


def damage_short(data: bytes) -> bytes:
    return data[:-100]


def damage_bit(data: bytes) -> bytes:
    spoilt = bytearray(data)
    spoilt[len(spoilt) // 2] ^= 4
    return bytes(spoilt)


def damage_header(data: bytes) -> bytes:
    return data.replace(b'"affine": [[1.0', b'"affine": [[2.0')


def damage_all(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [damage_short, damage_bit, damage_header, damage_all])
def test_a_damaged_entry_is_made_again(
    make_case: MakeCase, folder: Path, prepared: list[str], damage: object
) -> None:
    case = aged(make_case())
    cache = PreparedCache(folder, OPTIONS)
    first = cache.get(case)
    image = first.image.copy()
    (entry,) = entries(folder)
    whole = entry.read_bytes()
    spoilt = damage(whole)
    assert spoilt != whole
    entry.unlink()
    entry.write_bytes(spoilt)
    np.testing.assert_array_equal(cache.get(case).image, image)
    assert len(prepared) == 2
    assert entry.read_bytes() == whole


def test_a_damaged_note_is_not_trusted(
    make_case: MakeCase, folder: Path, prepared: list[str]
) -> None:
    case = aged(make_case())
    PreparedCache(folder, OPTIONS).get(case)
    for note in (folder / "index").iterdir():
        note.write_bytes(note.read_bytes()[:-5])
    PreparedCache(folder, OPTIONS).get(case)
    assert len(prepared) == 1
    assert all(json.loads(note.read_bytes()) for note in (folder / "index").iterdir())


def test_a_full_disk_leaves_no_half_entry(
    make_case: MakeCase, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = aged(make_case())
    cache = PreparedCache(folder, OPTIONS)

    def full(file: object, prepared: Prepared) -> None:
        file.write(b"the first part")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", full)
        with pytest.raises(StateError, match="disk is full") as caught:
            cache.get(case)
    assert caught.value.code == "disk-full"
    assert "Free space" in caught.value.do
    assert not entries(folder)
    assert not list(folder.rglob(".partial-*"))
    assert cache.get(case).image.any()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(StateError, match="cache"):
        PreparedCache(tmp_path / "cache", OPTIONS)


def test_what_a_killed_process_left_is_removed_in_time(folder: Path) -> None:
    folder.mkdir()
    old, new = folder / ".partial-old", folder / ".partial-new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    PreparedCache(folder, OPTIONS)
    assert [path.name for path in folder.iterdir()] == [new.name]
    assert atomic_files.sweep(folder) == 0


def test_two_processes_may_fill_one_entry(
    make_case: MakeCase, folder: Path, monkeypatch: pytest.MonkeyPatch, prepared: list[str]
) -> None:
    """While one prepares, the other finishes: both get the case, one entry stays."""
    case = aged(make_case())
    first, second = PreparedCache(folder, OPTIONS), PreparedCache(folder, OPTIONS)
    inner = module.prepare

    def overtaken(case: Case, options: PreprocessingOptions, **read: Any) -> Prepared:
        monkeypatch.setattr(module, "prepare", inner)
        second.get(case)
        return prepare(case, options, **read)

    monkeypatch.setattr(module, "prepare", overtaken)
    same(first.get(case), second.get(case))
    assert len(entries(folder)) == 1
    assert len(prepared) == 1


def test_a_file_that_changes_while_it_is_read_is_refused(
    make_case: MakeCase, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = aged(make_case())

    def meddled(case: Case, options: PreprocessingOptions, **read: Any) -> Prepared:
        result = prepare(case, options, **read)
        images, _ = anatomy()
        make_case(images=images * 2)
        return result

    monkeypatch.setattr(module, "prepare", meddled)
    with pytest.raises(CaseError) as caught:
        PreparedCache(folder, OPTIONS).get(case)
    assert caught.value.code == "case-changed"
    assert not entries(folder)


def test_a_missing_file_is_named(make_case: MakeCase, folder: Path) -> None:
    case = make_case()
    case.images["t2f"].path.unlink()
    with pytest.raises(CaseError, match="t2f"):
        PreparedCache(folder, OPTIONS).get(case)


def test_the_cache_names_no_patient(make_case: MakeCase, folder: Path, tmp_path: Path) -> None:
    case = aged(make_case())
    PreparedCache(folder, OPTIONS).get(case)
    for path in folder.rglob("*"):
        assert "case-00001" not in str(path.relative_to(folder))
        if path.is_file():
            assert path.stat().st_mode & 0o077 == 0
            content = path.read_bytes()
            assert b"case-00001" not in content
            assert str(tmp_path).encode() not in content


def test_only_what_is_still_of_use_is_retained(make_case: MakeCase, folder: Path) -> None:
    case, other = aged(make_case()), PreprocessingOptions(spacing_mm=2.0)
    for options in (OPTIONS, other):
        PreparedCache(folder, options).get(case)
    assert case.label is not None
    gone = dataclasses.replace(case, label=None)  # the same files, prepared as another case
    PreparedCache(folder, OPTIONS).get(gone)
    partial = PreparedCache(folder, OPTIONS).place(case).with_name(".partial-x")
    partial.touch()
    kept = {PreparedCache(folder, OPTIONS).place(case), partial}
    notes = list(folder.glob("index/*"))
    assert len(notes) == 5

    assert retain(folder, [case], [OPTIONS]) == 2
    assert {*entries(folder), partial} == kept
    assert sorted(folder.glob("index/*")) == sorted(notes)

    case.images["t2w"].path.unlink()
    assert retain(folder, [case], [OPTIONS]) == 1  # it cannot be told any more whose it is
    assert retain(folder, [], [OPTIONS]) == 0
    assert [path for path in folder.glob("*/*") if path != partial] == []
    assert partial.exists()


def test_a_case_that_lacks_a_sequence_is_another_entry_and_says_so(
    tmp_path: Path, make_case: MakeCase
) -> None:
    cache = PreparedCache(tmp_path / "cache", PreprocessingOptions())
    whole = make_case()
    entries = {cache.place(whole)}
    for name in MODALITIES:
        images = {one: image for one, image in whole.images.items() if one != name}
        fewer = dataclasses.replace(whole, images=images)
        cache.get(fewer)
        again = cache.get(fewer)
        assert again.missing == (name,)
        assert present(again.image).tolist() == [one != name for one in MODALITIES]
        entries.add(cache.place(fewer))
    assert len(entries) == 5
