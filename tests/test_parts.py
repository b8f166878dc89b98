"""The parts into which slow tests are dealt: all of them, each once, none too long."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import hypothesis
from hypothesis import strategies as st

from tests import children, parts

FILES = [f"tests/test_{letter}.py" for letter in "abcdef"]
NAMES = [f"{file}::test_{number}" for file in FILES for number in range(9)]


@hypothesis.settings(max_examples=20)
@hypothesis.given(
    st.dictionaries(st.sampled_from(NAMES), st.floats(0.1, 2000.0), max_size=len(NAMES)),
    st.lists(st.sampled_from(NAMES), unique=True),
)
def test_each_test_is_in_one_part(seconds: Mapping[str, float], chosen: list[str]) -> None:
    names = sorted(chosen)
    dealt = parts.parts(names, seconds)
    assert sorted(name for part in dealt for name in part) == names
    assert dealt == parts.parts(names, dict(reversed(seconds.items())))
    turns = [parts.due(names, seconds, turn=turn) for turn in range(2 * len(dealt))]
    for turn, part in enumerate(turns):
        assert sorted(part) == sorted(dealt[turn % len(dealt)])


def test_parts_are_about_as_long_as_each_other() -> None:
    """Those of the slow tests that there are: nothing runs twice as long as it should."""
    seconds = parts.known()
    dealt = parts.parts(list(seconds), seconds)
    lengths = [sum(seconds[name] for name in part) for part in dealt]
    assert max(lengths) <= 1.25 * parts.PART_S
    assert max(seconds.values()) <= parts.PART_S


def test_a_file_that_fits_stays_whole_and_a_longer_one_is_cut() -> None:
    seconds = {name: 300.0 if "test_a" in name else 30.0 for name in NAMES}
    dealt = parts.parts(NAMES, seconds)
    where = {file: [n for n, p in enumerate(dealt) if any(file in m for m in p)] for file in FILES}
    assert len(where[FILES[0]]) > 1
    assert all(len(where[file]) == 1 for file in FILES[1:])


def test_what_comes_first_in_a_part_changes() -> None:
    seconds = dict.fromkeys(NAMES, 10.0)
    firsts = {parts.due(NAMES, seconds, turn=turn)[0] for turn in range(len(FILES))}
    assert firsts == {f"{file}::test_0" for file in FILES}


def test_a_test_is_not_begun_without_time_for_it() -> None:
    assert parts.fits("a", {"a": 100.0}, left_s=150.0)
    assert not parts.fits("a", {"a": 100.0}, left_s=149.0)
    assert not parts.fits("unknown", {}, left_s=parts.UNKNOWN_S)


def test_seconds_are_brought_up_to_date() -> None:
    found = parts.updated({"a": 1.0, "gone": 2.0}, {"b": 3.14}, names=["b", "a", "new"])
    assert found == {"a": 1.0, "b": 3.1}


CONFTEST = """
from pathlib import Path
from tests import parts, slow_part
parts.SECONDS = Path(__file__).with_name("seconds.json")
parts.UNKNOWN_S, slow_part.GRACE_S = {unknown_s}, 0.0
def pytest_addoption(parser):
    slow_part.add_options(parser)
def pytest_configure(config):
    config.addinivalue_line("markers", "slow: slow")
    config.pluginmanager.register(slow_part.SlowPart(config))
"""
SUITE = """
import time
import pytest
pytestmark = pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_quick(number): pass
def test_long(): time.sleep({seconds})
"""


@dataclasses.dataclass(frozen=True)
class Ran:
    code: int
    said: str
    seconds: dict[str, float]


def run(folder: Path, *options: str, unknown_s: float = 0.0, seconds: float = 0.0) -> Ran:
    """Run slow tests of their own with the options of ``tests/conftest.py``."""
    (folder / "conftest.py").write_text(CONFTEST.format(unknown_s=unknown_s))
    (folder / "seconds.json").write_text('{"test_x.py::test_gone": 1.0, "test_y.py::test_y": 2.0}')
    (folder / "test_x.py").write_text(SUITE.format(seconds=seconds))
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull]
    done = children.run(
        [*words, "--rootdir", folder, folder, *options],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    kept = json.loads((folder / "seconds.json").read_text())
    return Ran(done.returncode, done.stdout + done.stderr, kept)


def test_what_does_not_fit_into_the_time_is_named_and_not_run(tmp_path: Path) -> None:
    ran = run(tmp_path, "--slow-minutes", "1", unknown_s=300)
    assert ran.code == 0, ran.said
    for name in ("test_quick[0]", "test_quick[1]", "test_long"):
        assert f"NOT RUN, no time was left: test_x.py::{name}" in ran.said


def test_what_does_not_end_in_time_fails(tmp_path: Path) -> None:
    ran = run(tmp_path, "--slow-minutes", "0.01", seconds=60)
    assert ran.code == 1, ran.said
    assert "not done in time: the part was to end after 0.01 minutes" in ran.said
    assert "1 failed, 2 passed" in ran.said


def test_a_turn_runs_its_part_and_says_how_long_each_test_took(tmp_path: Path) -> None:
    turns = [run(tmp_path, "--slow-turn", str(n), unknown_s=parts.PART_S).said for n in range(3)]
    for number, name in enumerate(("test_long", "test_quick[0]", "test_quick[1]"), start=1):
        (said,) = (one for one in turns if f"part {number} of 3 of the slow tests" in one)
        assert "1 passed, 2 deselected" in said
        assert f" s  test_x.py::{name}" in said


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    ran = run(tmp_path, "--slow-seconds")
    assert set(ran.seconds) == {
        "test_x.py::test_long",
        "test_x.py::test_quick[0]",
        "test_x.py::test_quick[1]",
        "test_y.py::test_y",
    }
