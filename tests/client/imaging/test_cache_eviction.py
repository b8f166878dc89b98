"""A cache with a limit stays within it: what is unused for longest goes, what is in use stays."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.imaging import cache_eviction
from client.imaging import prepared_cache as module
from client.imaging.case import Case, Image
from client.imaging.nifti import write_volume
from client.imaging.prepared_cache import PreparedCache
from client.study import round_training
from client.views import cohort_check
from common.errors import StateError
from common.regions import MODALITIES
from common.study.protocol import PreprocessingOptions
from tests import children
from tests.conftest import MakeSite
from tests.consortia import edit

from .conftest import anatomy

OPTIONS = PreprocessingOptions()
Limited = Callable[[float], PreparedCache]


def make(folder: Path, number: int) -> Case:
    """Return a case of its own, which was not touched for a while."""
    images, labels = anatomy()
    images[0, 20, 18, 15] += number
    label = folder / f"{number}-seg.nii.gz"
    write_volume(label, labels, np.eye(4))
    paths = {name: folder / f"{number}-{name}.nii.gz" for name in MODALITIES}
    for path, image in zip(paths.values(), images, strict=True):
        write_volume(path, image, np.eye(4))
    for path in (label, *paths.values()):
        os.utime(path, (time.time() - 3600,) * 2)
    return Case(
        f"case-{number}", "", {n: Image(p) for n, p in paths.items()}, label, {1: 1, 2: 2, 3: 3}
    )


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    return [make(tmp_path, number) for number in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def limited(folder: Path, cases: list[Case], tmp_path: Path) -> Limited:
    """Return a function that opens the cache with room for so many entries."""
    trial = PreparedCache(tmp_path / "trial", OPTIONS)
    trial.get(cases[0])
    size = trial.place(cases[0]).stat().st_size
    assert module._size(trial.get(cases[0])) == size

    def opened(entries: float) -> PreparedCache:
        return PreparedCache(folder, OPTIONS, limit_bytes=int(entries * size))

    return opened


def unused(path: Path, days: float) -> None:
    """Make an entry look as if it was used last so long ago."""
    facts = path.stat()
    os.utime(path, ns=(time.time_ns() - int(days * 86_400e9), facts.st_mtime_ns))


def kept(cache: PreparedCache, cases: list[Case]) -> list[int]:
    return [number for number, case in enumerate(cases) if cache.place(case).exists()]


def filled(cache: PreparedCache, cases: list[Case]) -> None:
    """Prepare the cases; the first was unused for longest."""
    for number, case in enumerate(cases):
        cache.get(case)
        unused(cache.place(case), 30 - number)


def test_what_was_unused_for_longest_goes_and_the_log_says_so(
    limited: Limited, cases: list[Case], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = limited(2)
    filled(cache, cases[:2])
    cache.get(cases[0])  # so the other one is older now
    cache.get(cases[2])
    assert kept(cache, cases) == [0, 2]
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert f"{folder} keeps to cache_gb = " in line.getMessage()
    assert "removed 1 prepared cases" in line.getMessage()
    assert "more room" not in line.getMessage()
    assert "case-" not in line.getMessage()
    cache.get(cases[3])  # takes the place of one that this run prepared
    assert "give the cache more room" in caplog.records[-1].getMessage()
    assert cache_eviction.used_bytes(folder) <= cache._limit


def test_entries_of_other_options_count_and_go_too(
    limited: Limited, cases: list[Case], folder: Path
) -> None:
    cache = limited(2)
    filled(cache, cases[:1])
    other = PreparedCache(folder, PreprocessingOptions(margin_mm=0.0), limit_bytes=cache._limit)
    other.get(cases[0])
    cache.get(cases[1])
    assert kept(cache, cases) == [1]
    assert kept(other, cases) == [0]


def test_nothing_goes_without_a_limit(
    cases: list[Case], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = PreparedCache(folder, OPTIONS)
    filled(cache, cases)
    assert kept(cache, cases) == [0, 1, 2, 3]
    assert not caplog.records


def test_an_entry_is_in_use_as_long_as_one_of_its_arrays_lives(
    limited: Limited, cases: list[Case]
) -> None:
    cache = limited(2)
    filled(cache, cases[:2])
    labels = cache.get(cases[0]).labels
    unused(cache.place(cases[0]), 99)
    cache.get(cases[2])
    assert kept(cache, cases) == [0, 2]
    del labels
    unused(cache.place(cases[0]), 99)
    cache.get(cases[3])
    assert kept(cache, cases) == [2, 3]


_READER = """\
import sys
from pathlib import Path
from client.imaging import prepared_cache as cache
with Path(sys.argv[1]).open("rb") as file:
    cache.cache_eviction.use(file.fileno())
    prepared = cache._read(file, check=True)
print("mapped", flush=True)
sys.stdin.read()
print(prepared.image.sum())
"""


def test_what_another_process_reads_stays_until_that_one_ends(
    limited: Limited, cases: list[Case]
) -> None:
    cache = limited(2)
    filled(cache, cases[:2])
    with children.start(
        [sys.executable, "-c", _READER, cache.place(cases[0])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "mapped\n"
        unused(cache.place(cases[0]), 99)
        cache.get(cases[2])
        assert kept(cache, cases) == [0, 2]
        reader.kill()
        reader.wait()
    cache.get(cases[3])
    assert kept(cache, cases) == [2, 3]


def test_a_case_for_which_there_is_no_room_is_prepared_but_not_kept(
    limited: Limited, cases: list[Case], caplog: pytest.LogCaptureFixture
) -> None:
    cache = limited(1)
    held = cache.get(cases[0])
    for tight, case in ((cache, cases[1]), (limited(0.9), cases[2])):
        assert tight.get(case).image.any()
        assert "is not kept" in caplog.records[-1].getMessage()
    assert kept(cache, cases) == [0]
    assert held.image.any()


_KILLED = """\
import os, pathlib, signal, sys
from client.imaging import cache_eviction as eviction
remove = pathlib.Path.unlink
def killed(path, *args, **options):
    remove(path, *args, **options)
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.unlink = killed
folder = pathlib.Path(sys.argv[1])
with eviction.alone(folder):
    eviction.make_room(folder, 10**9, why="test", began_ns=0)
"""


def test_a_process_that_is_killed_while_it_makes_room_leaves_whole_entries_and_no_lock(
    limited: Limited, cases: list[Case], folder: Path
) -> None:
    cache = limited(3)
    filled(cache, cases[:3])
    done = subprocess.run([sys.executable, "-c", _KILLED, folder])
    assert done.returncode == -signal.SIGKILL
    assert kept(cache, cases) == [1, 2]
    before = [cache.get(case).image.copy() for case in cases[1:3]]
    for case, image in zip(cases[1:3], before, strict=True):
        np.testing.assert_array_equal(PreparedCache(folder, OPTIONS).get(case).image, image)
    cache.get(cases[0])
    cache.get(cases[3])
    assert len(kept(cache, cases)) == 3


@pytest.mark.parametrize(
    ("limit", "faults", "left"),
    [(9, 1, [1, 2]), (9, 2, [1]), (0, 1, [0, 1])],
    ids=["room is made", "still full", "nothing goes without a limit"],
)
def test_on_a_full_disk_a_cache_with_a_limit_makes_room_once(
    limited: Limited,
    cases: list[Case],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limit: float,
    faults: int,
    left: list[int],
) -> None:
    cache = limited(limit)
    filled(cache, cases[:2])
    write, tries = module._write, [0]

    def full(*values: object) -> None:
        tries[0] += 1
        if tries[0] <= faults:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_write", full)
    if 2 in left:
        assert cache.get(cases[2]).image.any()
    else:
        with pytest.raises(StateError, match="disk is full") as caught:
            cache.get(cases[2])
        assert caught.value.code == "disk-full"
    assert kept(cache, cases) == left
    assert not list(folder.rglob(".partial-*"))
    said = [one.getMessage() for one in caplog.records]
    assert [f"The disk of {folder} is full" in one for one in said] == [True] * bool(limit)


def test_several_at_a_time_never_take_more_than_the_limit(
    limited: Limited, cases: list[Case], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, most, put = threading.Barrier(4), [0], module._put
    lock = threading.Lock()

    def watched(path: Path, prepared: object) -> None:
        put(path, prepared)  # type: ignore[arg-type]
        with lock:
            most.append(cache_eviction.used_bytes(folder))

    monkeypatch.setattr(module, "_put", watched)
    caches = [limited(2) for _ in cases]
    prepare = module.prepare

    def at_once(case: Case, options: PreprocessingOptions, **read: Any) -> object:
        prepared = prepare(case, options, **read)
        together.wait()
        return prepared

    monkeypatch.setattr(module, "prepare", at_once)
    threads = [
        threading.Thread(target=cache.get, args=(case,))
        for cache, case in zip(caches, cases, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < max(most) <= caches[0]._limit


def test_training_and_check_keep_to_what_the_site_allows(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site()
    options = PreprocessingOptions(spacing_mm=6.0)
    site = edit(site, "cache_gb = 0\n", "cache_gb = 0.00002\n")
    assert site.settings.machine.cache_bytes == 20_000
    cohort_check.check_site(site, options, workers=1)
    cases = round_training.cohort_of(site).cases
    for load in round_training.loaders(site, options, cases):
        load()
    assert "is not kept" in caplog.text
    assert cache_eviction.used_bytes(site.folder / "cache") <= 20_000
