from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.reporting.fairness import Attempt, Reply, conducts, spreads


def reply(norm: float = 1.0, **changes: Any) -> Reply:
    return Reply(**{"weight": 1.0, "norm": norm, "digest": f"{norm}", "cosine": None, **changes})


def attempt(number: int, *, closed: bool = True, also: str = "", **replies: Reply) -> Attempt:
    return Attempt(number, closed, frozenset(replies) | frozenset(also.split()), replies)


def test_the_spread_names_the_worst_site() -> None:
    dice = {
        "a": {"WT": 0.9, "TC": 0.5},
        "b": {"WT": 0.6, "TC": 0.7, "ET": 0.4},
        "c": {"WT": 0.9},
    }
    found = spreads(dice)
    assert list(found) == ["WT", "TC", "ET"]
    whole = found["WT"]
    assert (whole.sites, whole.worst_site, whole.worst) == (3, "b", 0.6)
    assert (whole.best_site, whole.best) == ("a", 0.9)
    assert whole.mean == pytest.approx(0.8)
    assert whole.spread == pytest.approx(0.3)
    assert whole.standard_deviation == pytest.approx(math.sqrt(0.02))
    assert (found["TC"].worst_site, found["TC"].best_site) == ("a", "b")
    assert (found["ET"].sites, found["ET"].spread, found["ET"].standard_deviation) == (1, 0.0, 0.0)


def test_no_scores_no_spread() -> None:
    assert spreads({}) == {}
    assert spreads({"a": {}}) == {}


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text("abcdef", min_size=1), st.floats(0, 1), min_size=1))
def test_laws_of_the_spread(scores: dict[str, float]) -> None:
    found = spreads({site: {"WT": score} for site, score in scores.items()})["WT"]
    assert found.worst == min(scores.values()) == scores[found.worst_site]
    assert found.best == max(scores.values()) == scores[found.best_site]
    assert found.worst - 1e-12 <= found.mean <= found.best + 1e-12
    assert 2 * found.standard_deviation <= found.spread + 1e-12


def test_participation_counts_every_order() -> None:
    found = conducts(
        [
            attempt(1, a=reply(), also="b"),
            attempt(2, closed=False, a=reply(2), also="b"),
            attempt(2, a=reply(2), b=reply(2, digest="other")),
        ],
        ["a", "b", "c"],
    )
    assert (found["a"].ordered, found["a"].answered, found["a"].share) == (3, 3, 1.0)
    assert (found["b"].ordered, found["b"].answered) == (3, 1)
    assert found["b"].share == pytest.approx(1 / 3)
    assert (found["c"].ordered, found["c"].share, found["c"].contribution) == (0, None, 0.0)


def test_contributions_share_out_the_closed_rounds() -> None:
    found = conducts(
        [
            attempt(1, a=reply(3.0, weight=2.0), b=reply(2.0)),
            attempt(2, a=reply(5.0)),
            attempt(3, closed=False, b=reply(7.0)),
        ],
        ["a", "b"],
    )
    assert found["a"].contribution == pytest.approx((6 / 8 + 1) / 2)
    assert found["b"].contribution == pytest.approx((2 / 8 + 0) / 2)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_contributions_sum_to_one(norms: list[float]) -> None:
    replies = {f"s{place}": reply(norm) for place, norm in enumerate(norms)}
    found = conducts([Attempt(1, True, frozenset(replies), replies)], list(replies))
    assert math.fsum(one.contribution or 0 for one in found.values()) == pytest.approx(1)


def test_long_and_short_updates_are_named() -> None:
    rounds = [
        attempt(
            n,
            a=reply(1.0, digest=f"a{n}"),
            b=reply(1.0, digest=f"b{n}"),
            c=reply(1.0, digest=f"c{n}"),
            long=reply(9.0, digest=f"l{n}"),
            short=reply(0.1, digest=f"s{n}"),
        )
        for n in (1, 2)
    ]
    found = conducts(rounds, ["a", "long", "short"])
    assert (found["a"].norm_ratio, found["a"].remarks) == (1.0, ())
    assert found["long"].norm_ratio == 9.0
    assert "9.0 times as long" in found["long"].remarks[0]
    assert "0.1 times as long" in found["short"].remarks[0]


def test_drift_is_one_minus_the_cosine() -> None:
    rounds = [
        attempt(1, a=reply(digest="1"), b=reply(digest="2")),
        attempt(2, a=reply(digest="3", cosine=0.5), b=reply(digest="4", cosine=-0.5)),
        attempt(3, a=reply(digest="5", cosine=0.7), b=reply(digest="6", cosine=-0.7)),
    ]
    found = conducts(rounds, ["a", "b", "c"])
    assert found["a"].drift == pytest.approx(0.4)
    assert found["a"].remarks == ()
    assert found["b"].drift == pytest.approx(1.6)
    assert "against the common change" in found["b"].remarks[0]
    assert found["c"].drift is None


@pytest.mark.parametrize(
    ("rounds", "repeated"),
    [
        ([attempt(1, a=reply(digest="x")), attempt(2, a=reply(digest="x"))], 2),
        ([attempt(1, a=reply(digest="x"), b=reply(digest="x"))], 1),
        ([attempt(1, a=reply(digest="x")), attempt(2, a=reply(digest="y"))], 0),
        ([attempt(1, closed=False, a=reply(digest="x")), attempt(1, a=reply(digest="x"))], 0),
    ],
    ids=["replayed", "copied", "its own", "the same order again"],
)
def test_repeated_updates_are_counted(rounds: list[Attempt], repeated: int) -> None:
    said = conducts(rounds, ["a"])["a"]
    assert said.repeated == repeated
    assert any("to the last bit" in remark for remark in said.remarks) is bool(repeated)


def test_zero_updates_and_no_rounds_divide_nothing_by_zero() -> None:
    found = conducts([attempt(1, a=reply(0.0), b=reply(0.0))], ["a"])["a"]
    assert (found.contribution, found.norm_ratio) == (0.0, None)
    nothing = conducts([], ["a"])["a"]
    assert (nothing.share, nothing.contribution, nothing.drift) == (None, None, None)
