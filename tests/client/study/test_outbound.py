"""The door: nothing passes but what both sides allow, and the journal knows before it leaves."""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np
import pytest

from client.site.folder import Site
from client.study.outbound import Reply, let_out, may_report
from common.errors import StateError, UpdateError
from common.messages.compression import plain
from common.messages.wire_format import Order, PrivacySpent, Report
from common.study.protocol import StudyProtocol
from tests.consortia import STUDY, edit, events, tiny_protocol

SPENT = PrivacySpent(noise_multiplier=1, sampling_rate=0.5, steps=2, delta=1e-3, epsilon=1)
DUE = {"a": (2, 3)}
GOOD = {"a": np.ones((2, 3), np.float32)}


def an_order(**changes: Any) -> Order:
    return Order(kind="train", study=STUDY, round=1, protocol="{}", **changes)


def reply(arrays: Any = None, **fields: Any) -> Reply:
    base = {"kind": "train", "study": STUDY, "round": 1, "status": "done", **fields}
    report = Report.model_validate(base)
    return Reply(
        report,
        what="a test",
        body=plain(arrays) if arrays else None,
        due=DUE if arrays else {},
        max_norm=10.0,
    )


def leave(site: Site, protocol: StudyProtocol | None, one: Reply) -> Any:
    return let_out(site, an_order(), protocol, one)


FIELDS: dict[str, dict[str, Any]] = {
    "dice": {"dice": {"WT": 0.5}},
    "case_count": {"case_count": "1-9"},
    "privacy_spent": {"privacy_spent": SPENT},
    "withdrawals": {"withdrawn": (1, 2)},
}


STATISTICS = {"spacing_finest": (1.0,) * 11, "spacing_coarsest": (0.5,) * 11}


def test_histograms_leave_only_if_asked_for_allowed_and_whole(site: Site) -> None:
    asking = tiny_protocol(statistics={"about": ["spacing"]})
    told = reply(statistics=STATISTICS)
    for protocol, at in ((asking, site), (tiny_protocol(), site)):
        with pytest.raises(UpdateError, match="statistics"):
            leave(at, protocol, told)
    open_site = edit(site, '"withdrawals"]', '"withdrawals", "statistics"]')
    with pytest.raises(UpdateError, match="statistics"):
        leave(open_site, tiny_protocol(), told)
    leave(open_site, asking, told)
    for wrong in ({}, {**STATISTICS, "volume_wt": (1.0,) * 9}, {"spacing_finest": (1.0,)}):
        with pytest.raises(UpdateError, match="histograms"):
            leave(open_site, asking, reply(statistics=wrong))
    (entry,) = events(open_site, "sent")
    assert set(entry["statistics"]) == set(STATISTICS)


@pytest.mark.parametrize("what", FIELDS)
def test_a_field_leaves_only_if_both_sides_allow_it(site: Site, what: str) -> None:
    protocol = tiny_protocol()
    assert may_report(site, protocol, what)
    leave(site, protocol, reply(**FIELDS[what]))
    others = [name for name in FIELDS if name != what]
    closed = edit(site, 'dice = "exact"', 'dice = "never"')
    closed = edit(
        closed, 'reports = ["case_count", "privacy_spent", "withdrawals"]', "reports = []"
    )
    for where, study in ((site, tiny_protocol(reports=others)), (closed, protocol)):
        before = len(where.journal.events())
        with pytest.raises(UpdateError, match="must not leave") as caught:
            leave(where, study, reply(**FIELDS[what]))
        assert caught.value.code == "update-outbound"
        assert len(where.journal.events()) == before


def test_exact_scores_do_not_leave_a_site_that_adds_noise(site: Site) -> None:
    noisy = edit(site, 'dice = "exact"', 'dice = "noised"')
    with pytest.raises(UpdateError, match="dice"):
        leave(noisy, tiny_protocol(), reply(dice={"WT": 0.5}))
    leave(noisy, tiny_protocol(), reply(dice={"WT": 0.5}, dice_noise=0.1))


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        ("failed", {"dice": {"WT": 0.5}}),
        ("refused", {"privacy_spent": SPENT}),
        ("failed", {"arrays": GOOD}),
        ("pending", {"case_count": "1-9"}),
        ("failed", {"reason": "the scan of Anna Tamm is broken"}),
        ("done", {"reason": "the scan of Anna Tamm is broken"}),
    ],
)
def test_what_was_not_done_says_nothing_more(
    site: Site, status: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(UpdateError):
        leave(site, tiny_protocol(), reply(status=status, **fields))
    assert events(site, "sent", "declined") == []


BAD: dict[str, Any] = {
    "an array more": {**GOOD, "b": np.ones(1, np.float32)},
    "another name": {"b": GOOD["a"]},
    "another shape": {"a": np.ones((3, 2), np.float32)},
    "NaN": {"a": np.full((2, 3), np.nan, np.float32)},
    "infinite": {"a": np.full((2, 3), np.inf, np.float32)},
    "too long": {"a": np.full((2, 3), 5.0, np.float32)},
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_are_those_of_the_protocol_or_stay(site: Site, name: str) -> None:
    with pytest.raises(UpdateError):
        leave(site, tiny_protocol(), reply(BAD[name]))
    assert events(site, "sent") == []


def test_what_leaves_is_in_the_journal_first(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def fail(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", fail)
        with pytest.raises(StateError, match="Nothing was done"):
            leave(site, tiny_protocol(), reply(GOOD))
    content = leave(site, tiny_protocol(), reply(GOOD))
    (sent,) = events(site, "sent")
    assert (sent["what"], sent["study"], sent["round"]) == ("a test", STUDY, 1)
    text = str(content.config_records["gliofed"]["json"])
    assert sent["bytes"] == len(plain(GOOD)) + len(text)
    assert site.journal.head in text
