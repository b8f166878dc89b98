"""Histograms of the cohorts: asked for once, checked, added up, and told with their noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import PrivacyError
from common.messages.wire_format import Content, Order, pack
from common.study.cohort_histograms import StatisticsOptions
from server.consortium.published_study import Study
from server.release.release_folder import release
from server.reporting.markdown_report import markdown
from server.reporting.study_report import full_report
from tests.server.conftest import report

ASKED = StatisticsOptions(about=("spacing",), noise_multiplier=2.0)


def counts(value: float) -> dict[str, list[float]]:
    return {name: [value] * one.bins for name, one in ASKED.histograms.items()}


def publish(world: Any, **changes: Any) -> Study:
    study: Study = world.publish(
        rounds=1, statistics={"about": '["spacing"]', "noise_multiplier": 2.0}, **changes
    )
    return study


def told(world: Any) -> dict[str, Any]:
    study = world.consortium.study("demo")
    return full_report(study, world.consortium.journal, admitted=world.consortium.sites.names())


def test_sites_are_asked_once_before_the_first_round(world: Any) -> None:
    world.join("a", "b")
    for value, name in enumerate("ab", start=1):
        world.hospitals[name].statistics = counts(value)
    publish(world)
    world.run()
    names = world.names()
    assert names.index("cohorts described") < names.index("round opened")
    (facts,) = world.events("cohorts described")
    assert facts["statistics"] == {"a": counts(1), "b": counts(2)}
    assert facts["dropped"] == {}
    assert facts["deviation"] == pytest.approx(ASKED.deviation, abs=1e-3)
    world.consortium.study("demo").want("running")
    world.rounds().run()
    assert [kind for kind, _ in world.hospitals["a"].asked].count("describe") == 1


def test_nobody_is_asked_when_the_protocol_does_not(three: Any) -> None:
    three.run()
    assert "cohorts described" not in three.names()
    assert told(three)["statistics"] is None
    assert "training patients" not in markdown(told(three))


def test_who_does_not_say_or_says_nonsense_is_named_and_the_study_goes_on(world: Any) -> None:
    world.join("a", "b", "c", "d")
    world.hospitals["a"].statistics = counts(3)
    world.hospitals["c"].statistics = {"volume_wt": [1.0]}

    def refuses(order: Order, _good: Content) -> Content:
        return pack(report(order, status="refused", code="privacy-cap"), None)

    world.hospitals["d"].replies["describe"] = refuses
    publish(world)
    world.rounds().approvals.gather(4)
    world.run()
    (facts,) = world.events("cohorts described")
    assert facts["statistics"] == {"a": counts(3)}
    assert facts["dropped"] == {
        "b": "not reported",
        "c": "update-statistics",
        "d": "privacy-cap",
    }
    assert world.names()[-1] == "study finished"
    page = markdown(told(world))
    assert "Not described by: b (not reported), c (update-statistics), d (privacy-cap)." in page


def test_the_page_shows_each_bin_and_the_noise(world: Any) -> None:
    world.join("a", "b")
    for value, name in enumerate("ab", start=1):
        world.hospitals[name].statistics = counts(value)
    publish(world)
    world.run()
    said = told(world)["statistics"]
    assert said["sum"] == counts(3)
    assert said["sum_deviation"] == pytest.approx(4.0, abs=1e-3)
    page = markdown(told(world))
    assert "2.8 patients at a site and 4.0 in the sum" in page
    assert "### Finest voxel spacing of a scan" in page
    assert "| mm | all | a | b |" in page
    assert "| 0.8 to 1 | 3.0 | 1.0 | 2.0 |" in page


def test_a_site_that_refused_before_is_not_in_the_sum(world: Any) -> None:
    world.join("a", "b")
    for name in "ab":
        world.hospitals[name].statistics = counts(1)
    world.hospitals["b"].refuses = PrivacyError("The budget is spent.", code="privacy-cap")
    publish(world, aggregation={"quorum": 1, "deadline_s": 100})
    world.run()
    assert set(told(world)["statistics"]["statistics"]) == {"a"}


def test_a_release_holds_the_sum_alone(world: Any, tmp_path: Path) -> None:
    world.join("a", "b")
    for value, name in enumerate("ab", start=1):
        world.hospitals[name].statistics = counts(value)
    publish(world)
    world.run()
    card = release(world.consortium, "demo", tmp_path / "model")
    assert card["cohort"] == {
        "histograms": counts(3),
        "deviation": pytest.approx(ASKED.deviation * 2**0.5, abs=1e-3),
        "sites": 2,
    }
    assert "coarsest voxel spacing" in (tmp_path / "model" / "card.md").read_text()


def test_a_single_sites_histograms_stay_with_the_coordinator(world: Any, tmp_path: Path) -> None:
    world.join("a", "b")
    world.hospitals["a"].statistics = counts(1)
    publish(world)
    world.run()
    assert list(told(world)["statistics"]["statistics"]) == ["a"]
    assert "cohort" not in release(world.consortium, "demo", tmp_path / "model")


def test_a_release_without_histograms_says_nothing_of_them(three: Any, tmp_path: Path) -> None:
    three.run()
    assert "cohort" not in release(three.consortium, "demo", tmp_path / "model")
