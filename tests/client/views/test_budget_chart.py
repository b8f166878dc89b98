"""The lines of the chart are what the accountant says, few enough to be quick, and drawn."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import pytest

from client.privacy.accountant import epsilon
from client.privacy.mechanism import Fact, History, Mechanism, StepPrices
from client.site.folder import Site
from client.views import budget_chart
from client.views.budget import patients_now
from client.views.budget_chart import POINTS, Curve, curves, draw
from common.errors import StateError
from common.study.protocol import StudyProtocol
from server.consortium.provisioning import Consortium
from tests.client.views.test_budget import STEP, charge, offer
from tests.consortia import STUDY, tiny_protocol


def test_a_study_and_all_studies_have_a_line(
    site: Site, consortium: Consortium, protocol: StudyProtocol
) -> None:
    second = tiny_protocol(study="another-one", privacy={"delta": 1e-4})
    bare = tiny_protocol(study="bare", privacy={"mode": "none"})
    for one in (protocol, second, bare):
        offer(site, consortium, one)
    patients = patients_now(site, protocol)
    charge(site, protocol, ["f" * 32], steps=1)  # not the worst: not on the line
    for number in (1, 2):
        charge(site, protocol, patients, number=number)
    charge(site, second, patients)
    other, own, everything = curves(site)
    assert [line.name for line in (other, own, everything)] == [
        "another-one",
        STUDY,
        "all studies",
    ]
    assert (own.cap, everything.cap, everything.delta) == (8.0, 10.0, 1e-4)
    assert own.epsilons == pytest.approx([epsilon([(STEP, n)], 1e-3) for n in (2, 4)])
    assert everything.epsilons == pytest.approx([epsilon([(STEP, n)], 1e-4) for n in (2, 4, 6)])
    assert all(time.tzinfo is not None for time in own.times)


class Counting(StepPrices):
    asked = 0

    def epsilon(self, history: History, delta: float) -> float:
        self.asked += 1
        return super().epsilon(history, delta)


def facts(count: int) -> list[Fact]:
    begin = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    return [
        Fact(
            id=n,
            time=(begin + dt.timedelta(hours=n)).isoformat(),
            study=STUDY,
            protocol="",
            round=n,
            purpose="training",
            cohort="",
            mechanism=Mechanism(2.0, 0.5),
            clipping_norm=1.0,
            delta=1e-3,
            steps=2,
            code_version="",
            state="confirmed",
        )
        for n in range(1, count + 1)
    ]


@pytest.mark.parametrize("count", [1, 2, POINTS, 5000])
def test_many_facts_ask_the_accountant_few_times(count: int) -> None:
    known = Counting()
    line = budget_chart._curve(STUDY, facts(count), known, delta=1e-3, cap=8.0)
    assert known.asked == len(line.times) == min(count, POINTS)
    assert line.epsilons[-1] == pytest.approx(count)  # two steps at a price of a half
    assert list(line.times) == sorted(line.times)


def line(name: str, days: Sequence[int], *, cap: float = 8.0) -> Curve:
    times = tuple(dt.datetime(2030, 1, day, 9, tzinfo=dt.UTC) for day in days)
    return Curve(name, times, tuple(0.1 * day for day in days), 1e-3, cap)


@pytest.mark.parametrize(
    "lines",
    [
        [line("all studies", [3])],
        [line(f"study-{n}", [1, 2, n]) for n in range(3, 12)],
        [line(STUDY, [1, 9]), line("all studies", [1, 9], cap=0.5)],
    ],
    ids=["one-point", "more-than-colours", "above-its-cap"],
)
def test_a_picture_is_written(site: Site, tmp_path: Path, lines: list[Curve]) -> None:
    path = tmp_path / "budget.png"
    draw(site, lines, path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n")
    assert int.from_bytes(data[16:20]) >= 1200  # pixels across


@pytest.mark.parametrize(
    ("lines", "name", "reason"),
    [([], "b.png", "nothing to draw"), ([line(STUDY, [1])], "b.pdf", "no name of a picture")],
)
def test_what_cannot_be_drawn_is_said(
    site: Site, tmp_path: Path, lines: list[Curve], name: str, reason: str
) -> None:
    with pytest.raises(StateError, match=reason):
        draw(site, lines, tmp_path / name)
    assert list(tmp_path.glob("b.*")) == []
