"""How long a private round takes until its answer does not tell who was drawn for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.imaging.prepared_cache import PreparedCache
from client.runtime.order_handler import Participation
from client.site.folder import Site
from client.study import round_training
from client.study.answer_times import Known, Work, answer_after, margin
from client.study.outbound import Reply
from client.study.round_state import Trained
from common.errors import PrivacyError
from common.messages.wire_format import Order
from common.study.protocol import StudyProtocol
from server.consortium.provisioning import Consortium
from tests.consortia import answer, edit, order, tiny_protocol

ROUNDS = 200
BOUND = 0.2
"""Three standard deviations of the correlation of what has nothing to do with each other."""
PRIVACY = {"sampling_rate": 0.2, "nominal_patients": 24, "max_epsilon": 8.0}


def study(**changes: Any) -> StudyProtocol:
    return tiny_protocol(
        rounds=ROUNDS,
        training={"local_steps": 10},
        privacy=PRIVACY,
        aggregation={"deadline_s": 600.0},
        **changes,
    )


@dataclass
class Clock:
    """Time that passes only where somebody works or waits."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def correlation(times: list[float], drawn: list[int]) -> float:
    return 0.0 if np.ptp(times) == 0 else float(np.corrcoef(times, drawn)[0, 1])


def durations(
    site: Site,
    consortium: Consortium,
    monkeypatch: pytest.MonkeyPatch,
    rounds: int,
    *,
    whole: bool = True,
) -> tuple[list[float], list[int], list[str]]:
    """Return each round's time to its answer, how many were drawn, and how it ended.

    A patient who is drawn takes half a second, the rest of a round three. One round in eight fails
    on its way: half of these as a budget that is spent, half in a way that nobody foresaw.
    Without ``whole`` no weights are checked and none leave, which takes most of the time.
    """
    protocol, clock = study(), Clock()
    rng = np.random.default_rng(5)
    drawn: list[int] = []

    def work(drawing: Callable[[], None]) -> None:
        clock.pass_by(rng.uniform(0, 40))  # what is prepared before the first draw
        drawing()
        steps = rng.binomial(24, 0.2, 10)
        kind = len(drawn) % 16
        seen = int(steps[: 5 if kind in (7, 15) else 10].sum())
        drawn.append(seen)
        clock.pass_by(3 + 0.5 * seen + abs(rng.normal(0, 0.2)))
        if kind == 7:
            raise PrivacyError("It is spent.", code="privacy-cap")
        if kind == 15:
            raise RuntimeError("an unforeseen end")

    def trained(*_: Any, drawing: Any = None, **__: Any) -> Trained:
        work(drawing)
        return Trained({name: np.zeros(shape, np.float32) for name, shape in due.items()})

    def carried_out(
        self: Participation, here: Site, approved: StudyProtocol, order: Order, _: Any
    ) -> Reply:
        work(lambda: self._begin(here, approved))
        return Reply(self._report(order), what="nothing")

    began: list[float] = []
    original = Participation._begin

    def begin(self: Participation, *arguments: Any) -> None:
        original(self, *arguments)
        began.append(clock.now)

    monkeypatch.setattr(Participation, "_begin", begin)
    monkeypatch.setattr(round_training, "train_round", trained)
    participation = Participation(site, pause=clock.pass_by, clock=clock)
    answer(participation, order(consortium.identity, protocol, "offer"))
    site.decide(protocol.study, "approve", by="Dr. Tamm")
    weights = round_training.starting_weights(protocol)
    due = round_training.update_shapes(protocol, weights)
    if not whole:
        monkeypatch.setattr(Participation, "_carry_out", carried_out)
    times, ends = [], []
    for number in range(1, rounds + 1):
        sent = weights if whole else None
        content = order(consortium.identity, protocol, "train", number=number, weights=sent)
        report, _ = answer(participation, content)
        assert began, report
        times.append(clock.now - began[-1])
        ends.append(report.code or report.status)
    return times, drawn, ends


def test_two_hundred_rounds_do_not_tell_their_draws(
    site: Site, consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = edit(site, "answer_every_s = 0.0", 'answer_every_s = "auto"')
    times, drawn, ends = durations(site, consortium, monkeypatch, ROUNDS, whole=False)
    assert len(set(drawn)) > 20
    assert {"done", "privacy-cap", "internal"} == set(ends)
    assert abs(correlation(times, drawn)) < BOUND
    assert len({round(one, 6) for one in times}) <= 3  # and not only on average
    assert np.median(times) < 3 * (3 + 0.5 * 48)


def test_the_whole_way_of_an_order_does_not_tell_either(
    site: Site, consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = edit(site, "answer_every_s = 0.0", 'answer_every_s = "auto"')
    times, drawn, ends = durations(site, consortium, monkeypatch, 16)
    assert len(set(drawn)) > 5
    assert {"done", "privacy-cap", "internal"} == set(ends)
    assert len({round(one, 6) for one in times}) == 1


def test_answers_at_once_tell_them(
    site: Site, consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above measures is there to be seen."""
    times, drawn, _ = durations(site, consortium, monkeypatch, 32, whole=False)
    assert correlation(times, drawn) > 0.9


@pytest.mark.parametrize("fails", [False, True])
def test_a_round_that_fails_is_answered_when_one_that_does_not_is(
    site: Site, consortium: Consortium, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    site = edit(site, "answer_every_s = 0.0", "answer_every_s = 100.0")
    times, _, ends = durations(site, consortium, monkeypatch, 16 if fails else 4)
    assert ("internal" in ends) == fails
    assert all(math.isclose(one, 100) for one in times)


def test_nothing_waits_without_privacy(site: Site, consortium: Consortium) -> None:
    site = edit(site, "answer_every_s = 0.0", 'answer_every_s = "auto"')
    site = edit(site, "allow_without_privacy = false", "allow_without_privacy = true")
    waited: list[float] = []
    participation = Participation(site, pause=waited.append)
    protocol = tiny_protocol(privacy={"mode": "none"})
    answer(participation, order(consortium.identity, protocol, "offer"))
    site.decide(protocol.study, "approve", by="Dr. Tamm")
    weights = round_training.starting_weights(protocol)
    content = order(consortium.identity, protocol, "train", number=1, weights=weights)
    assert answer(participation, content)[0].status == "done"
    assert waited == []


def test_all_are_prepared_before_the_first_is_drawn(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = tiny_protocol(privacy={"sampling_rate": 1e-9})
    order_of_things: list[str] = []
    get = PreparedCache.get

    def watched(cache: PreparedCache, case: Any) -> Any:
        order_of_things.append(case.name)
        return get(cache, case)

    monkeypatch.setattr(PreparedCache, "get", watched)
    weights = round_training.starting_weights(protocol)
    for number in (1, 2):
        round_training.train_round(
            site,
            protocol,
            weights,
            round_number=number,
            drawing=lambda: order_of_things.append("drawing"),
        )
    names = {case.name for case in round_training.read_split(site, protocol).train}
    assert set(order_of_things[:-2]) == names  # once, and none of them is drawn
    assert order_of_things[-2:] == ["drawing", "drawing"]


PROTOCOL = study()


def test_the_time_does_not_depend_on_what_is_shorter_than_it() -> None:
    assert {answer_after(PROTOCOL, taken, Known(50.0))[0] for taken in (0.1, 20.0, 50.0)} == {50.0}


@pytest.mark.parametrize("taken", [0.2, 3.0, 17.0, 400.0])
def test_the_first_round_sets_a_time_that_has_room_for_others(taken: float) -> None:
    due, known = answer_after(PROTOCOL, taken, Known())
    assert taken * margin(PROTOCOL) <= due + 1e-9 or due == 1.0
    assert due <= max(1.0, 1.25 * taken * margin(PROTOCOL))
    assert known == Known(due)
    assert answer_after(PROTOCOL, due, known)[0] == due


def test_a_longer_round_raises_it_and_short_ones_lower_it_again() -> None:
    _, known = answer_after(PROTOCOL, 10.0, Known())
    usual = known.answer_s
    due, known = answer_after(PROTOCOL, 500.0, known)
    assert due > 500
    seen = []
    for _ in range(45):
        due, known = answer_after(PROTOCOL, 10.0, known)
        seen.append(due)
    assert seen[0] > 500
    assert seen[-1] == usual
    assert len(set(seen)) == 2


def test_it_is_not_lowered_by_a_step_that_chance_may_decide() -> None:
    _, known = answer_after(PROTOCOL, 10.0, Known())
    for _ in range(60):
        due, known = answer_after(PROTOCOL, 9.0, known)
        assert due == known.answer_s


@pytest.mark.parametrize(
    ("steps", "patients", "rate", "least", "most"),
    [
        (245, 200, 0.1, 1.1, 1.25),
        (35, 17, 0.5, 1.3, 1.4),
        (10, 24, 0.2, 1.9, 2.1),
        (1, 1, 0.1, 4, 5),
    ],
)
def test_the_margin_is_that_of_the_draws(
    steps: int, patients: int, rate: float, least: float, most: float
) -> None:
    protocol = tiny_protocol(
        training={"local_steps": steps},
        privacy={"sampling_rate": rate, "nominal_patients": patients},
    )
    assert least < margin(protocol) < most


def test_an_answer_does_not_wait_beyond_the_deadline(site: Site, consortium: Consortium) -> None:
    site = edit(site, "answer_every_s = 0.0", 'answer_every_s = "auto"')
    protocol = study()
    assert Work(site, protocol, 0.0).wait_s(400.0, failed=False) == pytest.approx(140)
    assert Work(site, protocol, 0.0).wait_s(570.0, failed=False) == 0


def test_a_damaged_memory_is_found_anew(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site = edit(site, "answer_every_s = 0.0", 'answer_every_s = "auto"')
    protocol = study()
    path: Path = site.folder / "studies" / protocol.study / "answers.json"
    first = Work(site, protocol, 0.0).wait_s(10.0, failed=False)
    path.write_text("{}")
    assert Work(site, protocol, 0.0).wait_s(10.0, failed=False) == first
    assert "found anew" in caplog.text
