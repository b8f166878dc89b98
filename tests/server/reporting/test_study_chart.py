from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from common.errors import PrivacyError, StateError
from common.study.cohort_histograms import StatisticsOptions
from server.reporting.histogram_chart import draw_statistics
from server.reporting.study_chart import draw
from server.reporting.study_report import full_report


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    kept: list[Figure] = []
    original = Figure.savefig

    def save(self: Figure, *arguments: Any, **options: Any) -> None:
        kept.append(self)
        original(self, *arguments, **{**options, "dpi": 40})

    monkeypatch.setattr(Figure, "savefig", save)
    return kept


def told(world: Any) -> dict[str, Any]:
    study = world.consortium.study("demo")
    sites = world.consortium.sites.names()
    return full_report(study, world.consortium.journal, admitted=sites)


def panel(figure: Figure, title: str) -> Any:
    (axes,) = [one for one in figure.axes if one.get_title().startswith(title)]
    return axes


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


def test_the_curves_are_those_of_the_report(
    world: Any, tmp_path: Path, drawn: list[Figure]
) -> None:
    world.join("a", step=1.0)
    world.join("b", step=2.0)
    world.join("c", approves=True)
    world.publish(rounds=3)
    world.rounds().offer({})
    world.hospitals["c"].refuses = PrivacyError("no", code="privacy-cap")
    world.run()
    report = told(world)
    draw(report, tmp_path / "report.png")
    picture = imread(tmp_path / "report.png")
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 10
    (figure,) = drawn
    dice = lines(panel(figure, "Dice"))
    assert set(dice) == {"WT", "ET"}
    assert dice["WT"][0] == [1, 2, 3]
    assert dice["WT"][1] == [one["regions"]["WT"]["mean"] for one in report["fairness"]]
    norms = lines(panel(figure, "Length"))
    assert norms["b"] == ([1, 2, 3], [6.0] * 3)
    assert set(norms) == {"a", "b"}
    epsilon = lines(panel(figure, "Epsilon"))
    assert epsilon["a"] == ([1, 2, 3], [1.0, 2.0, 3.0])
    volume = lines(panel(figure, "Megabytes"))
    assert volume["orders to the sites"][1] == pytest.approx([3 * 36e-6] * 3)
    there, gone = panel(figure, "Who took part").collections
    assert (len(there.get_offsets()), len(gone.get_offsets())) == (6, 3)
    assert "not in every closed round: c" in figure.get_suptitle()


def test_many_sites_are_bars_and_outliers(world: Any, tmp_path: Path, drawn: list[Figure]) -> None:
    world.join("a", "b")
    world.publish(rounds=1)
    world.run()
    report = told(world)
    (one,) = report["attempts"]
    names = [f"s{place:02d}" for place in range(40)]
    reply = one["sites"]["a"]
    one |= {
        "approved": names,
        "took_part": names[:30],
        "sites": {name: {**reply, "norm": 1.0 + (name == "s07") * 9} for name in names[:30]},
    }
    report["conduct"] = {name: {"remarks": ["long"] if name == "s07" else []} for name in names}
    draw(report, tmp_path / "report.png")
    (figure,) = drawn
    there, gone = panel(figure, "Who took part").containers
    assert [bar.get_height() for bar in (*there, *gone)] == [30, 10]
    assert set(lines(panel(figure, "Length"))) == {"s07", "median of 30 sites"}
    assert lines(panel(figure, "Length"))["median of 30 sites"][1] == [1.0]


def test_attempts_at_one_round_lie_on_each_other(
    world: Any, tmp_path: Path, drawn: list[Figure]
) -> None:
    world.join("a", "b")
    world.publish(rounds=1)
    world.run()
    report = told(world)
    (closed,) = report["attempts"]
    closed["seconds"] = 5.0
    failed = {**closed, "state": "failed", "seconds": 7.0}
    report["attempts"] = [failed, failed, closed]
    draw(report, tmp_path / "report.png")
    bars = panel(drawn[0], "Seconds").patches
    spans = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in bars]
    assert spans == [(0, 7), (7, 14), (14, 19)]


def test_what_is_not_there_is_said(world: Any, tmp_path: Path, drawn: list[Figure]) -> None:
    world.join("a")
    world.publish(privacy__mode='"none"')
    draw(told(world), tmp_path / "report.png")
    said = {text.get_text() for axes in drawn[0].axes for text in axes.texts}
    assert said == {"no site reported Dice", "no round has ended", "not recorded", "not private"}


def test_another_ending_is_refused(world: Any, tmp_path: Path) -> None:
    world.publish()
    with pytest.raises(StateError, match="no name of a picture"):
        draw(told(world), tmp_path / "report.jpg")
    assert not (tmp_path / "report.jpg").exists()


def test_without_matplotlib_the_way_out_is_said(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish()
    original = builtins.__import__

    def missing(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(StateError, match=r"gliofed\[server\]"):
        draw(told(world), tmp_path / "report.png")


def test_histograms_are_drawn_with_their_noise(
    world: Any, tmp_path: Path, drawn: list[Figure]
) -> None:
    options = StatisticsOptions(about=("spacing",), noise_multiplier=2.0)
    world.join("a", "b", "c")
    for value, name in enumerate("ab", start=1):
        counts = {key: [float(value)] * one.bins for key, one in options.histograms.items()}
        world.hospitals[name].statistics = counts
    world.publish(rounds=1, statistics={"about": '["spacing"]', "noise_multiplier": 2.0})
    world.rounds().approvals.gather(3)
    world.run()
    draw_statistics(told(world), tmp_path / "cohorts.png")
    assert imread(tmp_path / "cohorts.png").ndim == 3
    (figure,) = drawn
    assert "not described by: c" in figure.get_suptitle()
    axes = panel(figure, "finest voxel spacing")
    bars, whiskers = axes.containers[0], axes.containers[1]
    assert [bar.get_height() for bar in (bars if len(bars) > 3 else whiskers)] == [3.0] * 11
    assert set(lines(axes)) == {"a", "b"}
    assert lines(axes)["b"][1] == [2.0] * 11
    assert len([one for one in figure.axes if one.get_visible()]) == 2
