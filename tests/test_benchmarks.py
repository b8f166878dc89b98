"""What benchmarks say while they run; their figures are not tested here."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks.result import Benchmark, Measuring, Result, line

DONE = Result("Title", ["step", "seconds"], [["one", 1.5], ["two", 2.5]], "quick", holds=False)
Bench = Callable[..., int]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Return what runs benchmarks that the test makes up, as from a shell."""

    def run(*names: str, **made: Callable[[Path], Measuring]) -> int:
        known = {name: Benchmark(measure, minutes=7) for name, measure in made.items()}
        monkeypatch.setattr(benchmarks, "BENCHMARKS", known)
        monkeypatch.setattr("sys.argv", ["benchmarks", "--out", str(tmp_path), *names])
        return benchmarks.main()

    return run


def two(folder: Path) -> Measuring:
    assert folder.is_dir()
    for row in DONE.rows:
        yield line(DONE.columns, row)
    return DONE


def test_a_benchmark_says_how_long_it_takes_and_each_row_before_its_table(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(one=two) == 1
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "one, about 7 min:"
    assert lines[:2] == ["    0:00  one: seconds 1.5", "    0:00  two: seconds 2.5"]
    assert lines[2].startswith("Title")
    assert "quick: DOES NOT HOLD" in lines
    record = json.loads((tmp_path / "one.json").read_text())
    assert (record["rows"], record["holds"]) == ([["one", 1.5], ["two", 2.5]], False)
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]


def test_how_long_it_took_the_last_time_is_said_beforehand(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"seconds": 1234.0}))
    bench(one=two, other=two)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 benchmarks, about 28 min in all."
    assert {"one, about 21 min:", "other, about 7 min:"} < set(lines)


def test_what_is_cut_off_leaves_what_it_knew(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut_off(folder: Path) -> Measuring:
        yield from list(two(folder))[:1]
        raise KeyboardInterrupt

    bench(one=two)
    with pytest.raises(KeyboardInterrupt):
        bench(one=cut_off)
    assert "    0:00  one: seconds 1.5" in capsys.readouterr().out
    left = json.loads((tmp_path / "one.unfinished.json").read_text())
    assert left["said"] == ["one: seconds 1.5"]
    assert "rows" in json.loads((tmp_path / "one.json").read_text()), "the last whole run stays"


def test_who_says_nothing_for_long_is_said_to_go_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmarks, "_QUIET_S", 0.05)
    went_on = "... still at work after: the network"
    said: list[str] = []

    def slow(folder: Path) -> Measuring:
        yield "the network"
        until = time.monotonic() + 20
        while not any(went_on in one for one in said) and time.monotonic() < until:
            said.append(capsys.readouterr().out)
            time.sleep(0.01)
        return DONE

    bench(one=slow)
    assert any(went_on in one for one in said)


def test_every_benchmark_speaks_while_it_works() -> None:
    for name, one in benchmarks.BENCHMARKS.items():
        assert inspect.isgeneratorfunction(one.measure), name
        assert one.minutes >= 1, name


def test_an_unknown_name_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench("three", one=two)
    assert "no benchmark is named three" in capsys.readouterr().err
