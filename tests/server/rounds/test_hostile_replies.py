"""Replies that would harm the study: each is refused, named and survived."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord

from common.messages.wire_format import Content, Order, Report, pack
from common.study.protocol import APPROVAL
from common.trust.identity import Identity, Statement
from tests.cargo import arrays_of, with_arrays, with_body


def means(world: Any) -> list[float]:
    return [float(value.mean()) for value in world.weights().values()]


def dropped(world: Any, number: int = 1, event: str = "round closed") -> dict[str, str]:
    (facts,) = world.events(event, round=number)
    why: dict[str, str] = facts["dropped"]
    return why


Approve = Callable[[Any, Statement], str]
APPROVALS: dict[str, Approve] = {
    "for another protocol": lambda w, p: w.hospitals["c"].approval(p, protocol="0" * 64).dumps(),
    "for another site": lambda w, p: w.hospitals["c"].approval(p, site="a").dumps(),
    "of another site": lambda w, p: w.hospitals["a"].approval(p).dumps(),
    "by another key": lambda w, p: (
        Identity.create(w.folder / "stranger.key")
        .sign(APPROVAL, w.hospitals["c"].approval(p).body)
        .dumps()
    ),
    "of another kind": lambda w, _p: (
        w.hospitals["c"].identity.sign("enrolment-request", {"site": "c"}).dumps()
    ),
    "a signed refusal": lambda w, p: w.hospitals["c"].approval(p, decision="refuse").dumps(),
    "a refusal by no word": lambda w, p: w.hospitals["c"].approval(p, decision=None).dumps(),
    "no name but a table": lambda w, p: w.hospitals["c"].approval(p, by={"a": "\x1b"}).dumps(),
    "a time that is a number": lambda w, p: w.hospitals["c"].approval(p, time=10**300).dumps(),
    "changed": lambda w, p: w.hospitals["c"].approval(p).dumps().replace('"c"', '"b"'),
    "empty": lambda _w, _p: "",
    "deep": lambda _w, _p: "[" * 19_000,
    "no text": lambda _w, _p: '{"kind":"\\ud800","body":{},"signer":"\\ud800","signature":"x"}',
}


@pytest.mark.parametrize("case", APPROVALS)
def test_an_approval_that_does_not_hold_is_refused(three: Any, case: str) -> None:
    def reply(order: Order, good: Content) -> Content:
        text = APPROVALS[case](three, Statement.loads(order.protocol))
        return pack(Report(kind="offer", study="demo", round=0, status="done", approval=text), None)

    three.hospitals["c"].replies["offer"] = reply
    three.rounds().offer({})
    assert three.rounds().approvals.current() == {"a", "b"}
    (refused,) = three.events("reply refused", site="c")
    assert refused["code"] == ("not-approved" if "refusal" in case else "identity")
    assert len(refused["reason"]) <= 500


def other(order: Order, **changes: Any) -> Content:
    fields = {"kind": order.kind, "study": order.study, "round": order.round, "status": "done"}
    update = {
        name: np.ones(shape, np.float32)
        for name, shape in {"conv_final.0.weight": (3,), "conv_final.2.weight": (2, 3)}.items()
    }
    return pack(Report.model_validate({**fields, **changes}), update)


def with_array(good: Content, value: Any, name: str = "conv_final.0.weight") -> Content:
    return with_arrays(good, {**arrays_of(good), name: value})


def without(good: Content) -> Content:
    return with_arrays(good, dict(list(arrays_of(good).items())[1:]))


def as_json(good: Content, text: str) -> Content:
    good["gliofed"] = ConfigRecord({"json": text})
    return good


MALICE: dict[str, tuple[Callable[[Order, Content], Content], str]] = {
    "nan": (lambda _o, g: with_array(g, np.full(3, np.nan, np.float32)), "update-not-finite"),
    "inf": (lambda _o, g: with_array(g, np.full(3, np.inf, np.float32)), "update-not-finite"),
    "1e30": (lambda _o, g: with_array(g, np.full(3, 1e30, np.float32)), "update-norm"),
    "shape": (lambda _o, g: with_array(g, np.zeros((3, 1), np.float32)), "update-shape"),
    "oversize": (lambda _o, g: with_array(g, np.zeros(99_999, np.float32)), "update-size"),
    "dtype": (lambda _o, g: with_array(g, np.zeros(3)), "update-dtype"),
    "extra": (lambda _o, g: with_array(g, np.zeros(3, np.float32), "more"), "update-name"),
    "missing": (lambda _o, g: without(g), "update-name"),
    "nothing": (lambda _o, _g: Content(), "update-form"),
    "no update": (lambda _o, g: Content({"gliofed": g["gliofed"]}), "update-name"),
    "empty update": (
        lambda _o, g: Content({"gliofed": g["gliofed"], "arrays": ArrayRecord()}),
        "update-form",
    ),
    "an archive": (lambda _o, g: with_body(g, b"PK\x03\x04"), "update-form"),
    "words": (lambda _o, g: as_json(g, '{"patient": "Jane"}'), "update-form"),
    "depth": (lambda _o, g: as_json(g, "[" * 9999), "update-form"),
    "another round": (lambda o, _g: other(o, round=o.round + 1), "update-form"),
    "another study": (lambda o, _g: other(o, study="other"), "update-form"),
    "another kind": (lambda o, _g: other(o, kind="initial"), "update-form"),
    "pending with arrays": (lambda o, _g: other(o, status="pending"), "update-name"),
}


@pytest.mark.parametrize("case", MALICE)
def test_a_malicious_reply_is_refused_and_the_round_goes_on(three: Any, case: str) -> None:
    reply, code = MALICE[case]
    three.hospitals["c"].replies["train"] = reply
    three.run()
    assert means(three) == [3.0, 3.0]
    assert dropped(three, 1) == dropped(three, 2) == {"c": code}
    refused = three.events("reply refused")
    assert [(f["site"], f["round"], f["code"]) for f in refused] == [("c", 1, code), ("c", 2, code)]
    assert all(facts["reason"] for facts in refused)


SPENT = {
    "noise_multiplier": 1.0,
    "sampling_rate": 0.1,
    "steps": 1,
    "delta": 1e-3,
    "epsilon": 1.0,
}
NUMBERS: dict[str, dict[str, Any]] = {
    "epsilon": {"privacy_spent": {**SPENT, "epsilon": 1.7e308}},
    "steps": {"privacy_spent": {**SPENT, "steps": 10**300}},
    "noise": {"privacy_spent": {**SPENT, "noise_multiplier": 1e308}},
    "negative": {"privacy_spent": {**SPENT, "steps": -1}},
    "withdrawn": {"withdrawn": [10**4000]},
    "withdrawn later": {"withdrawn": [10_001]},
    "round": {"round": 10**300},
    "dice noise": {"dice_noise": 1.7e308},
    "statistics": {"statistics": {"volume_wt": [1e300]}},
}


@pytest.mark.parametrize("case", NUMBERS)
def test_a_number_that_no_study_has_is_refused(three: Any, case: str) -> None:
    def reply(_order: Order, good: Content) -> Content:
        value = json.loads(str(good.config_records["gliofed"]["json"]))
        return as_json(good, dumped({**value, **NUMBERS[case]}))

    three.hospitals["c"].replies["train"] = reply
    three.run()
    assert means(three) == [3.0, 3.0]
    assert dropped(three, 1) == dropped(three, 2) == {"c": "update-form"}


def dumped(value: Any) -> str:
    """Return JSON with numbers of any length."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value)
    finally:
        sys.set_int_max_str_digits(limit)


def test_words_of_a_site_are_one_line_that_nothing_obeys(three: Any) -> None:
    def reply(order: Order, _good: Content) -> Content:
        said = Report(kind="train", study="demo", round=order.round, status="refused", code="x")
        value = {**said.model_dump(exclude_defaults=True), "reason": "\x1b[2Jno\r\nyes"}
        return as_json(pack(said, None), json.dumps(value))

    three.hospitals["c"].replies["train"] = reply
    three.run()
    assert {f["reason"] for f in three.events("site declined")} == {
        "\N{REPLACEMENT CHARACTER}[2Jno  yes"
    }


def test_a_malicious_evaluation_is_refused(three: Any) -> None:
    three.hospitals["c"].replies["evaluate"] = lambda _o, g: as_json(
        g, str(g.config_records["gliofed"]["json"]).replace("0.25", "1e30")
    )
    three.run()
    for facts in three.events("evaluated"):
        assert set(facts["dice"]) == {"a", "b"}
        assert facts["dropped"] == {"c": "update-form"}
