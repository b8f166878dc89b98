"""The outbox says in words what left, and leaves open what an older journal does not say."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from client.site.folder import Site
from client.views.disclosures import outbox
from common.errors import StateError
from tests.consortia import STUDY, World, events

UPDATE = {
    "study": STUDY,
    "round": 2,
    "order": "train",
    "what": "weight update",
    "to": "Northern Consortium, 127.0.0.1:4433",
    "bytes": 4096,
    "update": "ab" * 32,
    "private": True,
    "case_count": "10-19",
    "privacy_spent": {"epsilon": 1.234, "delta": 1e-3, "steps": 4},
    "withdrawn": [1, 2],
}


@pytest.mark.parametrize(
    ("event", "facts", "told"),
    [
        (
            "sent",
            UPDATE,
            "differentially private; training cases 10-19; epsilon 1.23 after 4 steps; "
            "rounds that saw who withdrew: 1, 2",
        ),
        ("sent", {"private": False}, "WITHOUT PRIVACY"),
        ("sent", {"by": "Dr. Tamm"}, "decided by Dr. Tamm"),
        ("sent", {"dice": {"WT": 0.5, "ET": 0.25}}, "Dice WT 0.500, ET 0.250 (EXACT)"),
        (
            "sent",
            {"dice": {"WT": 0.5}, "dice_noise": 0.04},
            "Dice WT 0.500 (with noise of about 0.04)",
        ),
        ("declined", {"code": "case-grid"}, "not done: case-grid"),
        (
            "declined",
            {"code": "expired", "reason": "It expired."},
            "not done: expired; It expired.",
        ),
        ("sent", {}, ""),
    ],
)
def test_what_was_told(site: Site, event: str, facts: dict[str, Any], told: str) -> None:
    entry = site.journal.append(event, **facts)
    (one,) = outbox(site)
    assert one["told"] == told
    assert (one["time"], one["line"]) == (entry.time, entry.hash)


def test_the_rest_is_as_it_was_written(site: Site) -> None:
    site.journal.append("sent", **UPDATE)
    site.journal.append("sent", study="old", what="weight update")
    new, old = outbox(site)
    assert {key: new[key] for key in ("study", "round", "what", "to", "bytes")} == {
        key: UPDATE[key] for key in ("study", "round", "what", "to", "bytes")
    }
    assert new["digests"] == {"update": "ab" * 32}
    assert {key: old[key] for key in ("round", "to", "bytes", "told", "digests")} == {
        "round": None,
        "to": "",
        "bytes": None,
        "told": "",
        "digests": {},
    }


def test_studies_and_days_are_chosen(site: Site) -> None:
    for study in ("one", "two"):
        site.journal.append("sent", study=study)
    today = dt.datetime.now(dt.UTC).date()
    assert [one["study"] for one in outbox(site, study="two")] == ["two"]
    assert len(outbox(site, since=today)) == 2
    assert outbox(site, since=today + dt.timedelta(days=1)) == []


def test_everything_that_a_real_study_sent_is_there(world: World) -> None:
    found = outbox(world.site)
    assert len(found) == len(events(world.site, "sent", "declined"))
    assert {"weight update", "the signed approval"} <= {one["what"] for one in found}
    assert all(one["to"].startswith("Northern Consortium, ") for one in found)
    updates = [one for one in found if one["what"] == "weight update"]
    assert [one["round"] for one in updates] == [1, 2]
    assert all(one["bytes"] > 1000 and one["digests"]["update"] for one in updates)


def test_a_damaged_journal_is_not_retold(world: World) -> None:
    path = world.site.folder / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b"weight update", b"weight UPDATE"))
    with pytest.raises(StateError, match=r"at line \d+, bytes \d+ to \d+"):
        outbox(world.site)
