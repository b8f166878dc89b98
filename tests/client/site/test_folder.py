"""The hospital's folder: enrolment, settings, offered protocols and signed decisions."""

from __future__ import annotations

import datetime as dt
import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from client.privacy.ledger import Ledger
from client.site import folder as sites
from client.site.folder import Site
from client.site.settings import Policy
from common.errors import ConsentError, IdentityError, StateError
from common.study.protocol import PROTOCOL, StudyProtocol
from common.trust.enrolment import open_request
from common.trust.identity import Identity, Statement, fingerprint
from server.consortium import provisioning
from server.consortium.provisioning import Consortium
from tests import consortia
from tests.consortia import edit, tiny_protocol


def signed(consortium: Consortium, protocol: StudyProtocol) -> Statement:
    return consortium.identity.sign(PROTOCOL, protocol.model_dump(mode="json"))


def test_a_request_makes_the_folder_and_sends_only_public_keys(tmp_path: Path) -> None:
    site = sites.request(tmp_path / "north", name="north", data=None, make_ledger=Ledger.create)
    assert site.data == tmp_path / "north" / "data"
    assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700
    for secret in (site.folder / "keys").iterdir():
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    text = (site.folder / "request.json").read_text()
    request = open_request(Statement.loads(text))
    assert (request.site, request.identity_key) == ("north", site.identity.public)
    assert site.superexec_secret.read_text() not in text
    assert "PRIVATE" not in text
    assert [entry.event for entry in site.journal.entries()] == ["site made"]
    assert site.study_names() == []
    with pytest.raises(StateError, match="is a site's folder already"):
        sites.request(tmp_path / "north", name="other", data=None, make_ledger=Ledger.create)
    with pytest.raises(StateError, match="has not joined"):
        _ = site.kit


@pytest.mark.parametrize("name", ["", "north east", 'a"b', "-a", "a/b", "ä", "x" * 64])
def test_an_impossible_name_makes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(StateError, match="cannot be a site's name"):
        sites.request(tmp_path / "north", name=name, data=None, make_ledger=Ledger.create)
    assert not (tmp_path / "north").exists()


@pytest.mark.parametrize("folder", ['with "quotes"', "back\\slash", "{braces}", "Größe 測"])
def test_any_path_may_hold_the_data(tmp_path: Path, folder: str) -> None:
    site = sites.request(
        tmp_path / "north", name="north", data=tmp_path / folder, make_ledger=Ledger.create
    )
    assert site.data == tmp_path / folder


def test_a_folder_that_is_no_site_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="is not a site's folder"):
        Site.open(tmp_path)


WRONG = {
    # what is replaced in site.toml, by what, what the error says
    "not TOML": ("[policy]", "[policy", ["is not TOML", "line"]),
    "unknown key": ("threads = 0", "threads = 0\nspeed = 3", ["machine.speed"]),
    "impossible cap": ("max_epsilon = 10.0", "max_epsilon = -1", ["policy.max_epsilon"]),
    "infinite cap": ("max_epsilon = 10.0", "max_epsilon = inf", ["policy.max_epsilon"]),
    "no such device": ('device = "auto"\n', 'device = "tpu"\n', ["machine.device"]),
    "no time of day": ("00:00-24:00", "20:00-25:00", ["policy.hours", "25:00"]),
    "no such minute": ("00:00-24:00", "20:61-06:00", ["policy.hours", "20:61"]),
    "hours in words": ("00:00-24:00", "at night", ["policy.hours"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_named(site: Site, name: str) -> None:
    old, new, words = WRONG[name]
    with pytest.raises(StateError) as caught:
        edit(site, old, new)
    for word in words:
        assert word in str(caught.value)


def test_every_wrong_line_is_named_at_once(site: Site) -> None:
    path = site.folder / "site.toml"
    text = path.read_text().replace("= 10.0", '= "much"').replace('["case_count",', '["names",')
    path.write_text(text.replace("threads = 0", "threads = -3"))
    with pytest.raises(StateError) as caught:
        Site.open(site.folder)
    for line in ("policy.max_epsilon", "policy.reports.0", "machine.threads"):
        assert line in caught.value.message


@pytest.mark.parametrize(
    ("hours", "open_at", "closed_at"),
    [
        ("00:00-24:00", ["00:00", "23:59"], []),
        ("20:00-06:00", ["20:00", "23:59", "00:00", "05:59"], ["06:00", "19:59"]),
        ("06:00-20:00", ["06:00", "19:59"], ["05:59", "20:00", "00:00"]),
        ("12:00-12:00", [], ["12:00", "11:59"]),
        ("22:00-24:00", ["22:00", "23:59"], ["00:00", "21:59"]),
    ],
)
def test_hours_may_pass_midnight(hours: str, open_at: list[str], closed_at: list[str]) -> None:
    policy = Policy(hours=hours)
    assert all(policy.open_at(dt.time.fromisoformat(time)) for time in open_at)
    assert not any(policy.open_at(dt.time.fromisoformat(time)) for time in closed_at)


def test_joining_keeps_the_kit_and_the_ca(site: Site, consortium: Consortium) -> None:
    assert site.kit.coordinator_key == consortium.identity.public
    assert site.kit.address == "127.0.0.1:4433"
    assert (site.folder / "ca.crt").read_bytes() == (consortium.folder / "ca.crt").read_bytes()
    (joined,) = site.journal.events("consortium joined")
    assert joined.facts["key"] == consortium.identity.public


def test_the_fingerprint_heard_by_telephone_must_fit(
    site: Site, consortium: Consortium, tmp_path: Path
) -> None:
    kit = tmp_path / "north-kit.json"
    heard = fingerprint(consortium.identity.public)
    assert sites.join(site, kit, coordinator=heard).site == "north"
    with pytest.raises(IdentityError, match="The kit is signed by") as caught:
        sites.join(site, kit, coordinator="0000-0000-0000-0000-0000")
    assert "telephone" in caught.value.do


def test_a_kit_for_another_hospital_is_refused(
    site: Site, make_site: Callable[..., Site], tmp_path: Path
) -> None:
    make_site("south")
    with pytest.raises(IdentityError, match="made for south"):
        sites.join(site, tmp_path / "south-kit.json")


def test_a_kit_for_the_same_key_under_another_name_is_refused(
    consortium: Consortium, tmp_path: Path
) -> None:
    site = sites.request(tmp_path / "a", name="north", data=None, make_ledger=Ledger.create)
    kit = tmp_path / "kit.json"
    provisioning.admit(consortium, site.folder / "request.json", kit)
    renamed = replace(site, settings=site.settings.model_copy(update={"name": "south"}))
    with pytest.raises(IdentityError, match="The kit is for north, this site is south"):
        sites.join(renamed, kit)


def unjoined(folder: Path) -> Path:
    (folder / "kit.json").unlink()
    return folder


def from_before(folder: Path) -> Path:
    (folder / "request.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("prepare", "name", "said"),
    [
        (lambda folder: folder, "sued", "calls this site 'sued', but its kit.json is that of"),
        (lambda folder: folder, "NORTH", "'NORTH', but its kit.json is that of 'north'"),
        (from_before, "sued", "its kit.json is that of 'north'"),
        (unjoined, "sued", "its request.json is that of 'north'"),
        (lambda folder: from_before(unjoined(folder)), "sued", ""),  # nobody knows it yet
        (lambda folder: folder, "north", ""),
    ],
)
def test_a_site_that_was_renamed_is_told_its_name(
    site: Site, prepare: Callable[[Path], Path], name: str, said: str
) -> None:
    path = prepare(site.folder) / "site.toml"
    path.write_text(path.read_text().replace('name = "north"', f'name = "{name}"'))
    if not said:
        assert Site.open(site.folder).name == name
        return
    with pytest.raises(StateError, match=said) as error:
        Site.open(site.folder)
    assert error.value.code == "site-name"
    assert 'Set name = "north" there again.' in error.value.do


@pytest.mark.parametrize("content", ["", "{", "[]", '{"body": 1}'])
def test_a_damaged_kit_is_not_a_question_of_the_name(site: Site, content: str) -> None:
    (site.folder / "kit.json").write_text(content)
    opened = Site.open(site.folder)
    with pytest.raises((StateError, IdentityError)):
        _ = opened.kit


def test_a_site_stays_in_its_consortium(site: Site, tmp_path: Path) -> None:
    other = consortia.found(tmp_path / "other", name="Other")
    kit = tmp_path / "other-kit.json"
    provisioning.admit(other, site.folder / "request.json", kit)
    with pytest.raises(IdentityError, match="belongs to the consortium Northern Consortium"):
        sites.join(site, kit)
    assert site.kit.consortium == "Northern Consortium"


def test_a_changed_kit_is_refused(site: Site) -> None:
    path = site.folder / "kit.json"
    data = json.loads(path.read_text())
    data["body"]["address"] = "elsewhere:1"
    path.write_text(json.dumps(data))
    with pytest.raises(IdentityError, match="was changed"):
        _ = site.kit
    path.write_text("{")
    with pytest.raises(StateError, match="not valid JSON"):
        _ = site.kit


def test_an_offered_protocol_is_kept_once(site: Site, consortium: Consortium) -> None:
    protocol = tiny_protocol()
    for _ in range(2):
        assert site.keep_protocol(signed(consortium, protocol)) == protocol
    assert site.study_names() == [protocol.study]
    assert site.protocol(protocol.study).digest == protocol.digest
    assert len(site.journal.events("study offered")) == 1
    with pytest.raises(StateError, match="No study named other"):
        site.protocol("other")


def test_a_protocol_that_changed_is_refused(site: Site, consortium: Consortium) -> None:
    site.keep_protocol(signed(consortium, tiny_protocol()))
    with pytest.raises(ConsentError) as caught:
        site.keep_protocol(signed(consortium, tiny_protocol(rounds=3)))
    assert caught.value.code == "protocol-changed"
    assert site.protocol(consortia.STUDY).rounds == 2


def test_a_protocol_by_another_key_is_refused(site: Site, tmp_path: Path) -> None:
    stranger = Identity.create(tmp_path / "stranger.key")
    with pytest.raises(IdentityError, match="is signed by key"):
        site.keep_protocol(stranger.sign(PROTOCOL, tiny_protocol().model_dump(mode="json")))
    assert site.study_names() == []


def test_a_protocol_changed_on_the_disk_is_refused(site: Site, consortium: Consortium) -> None:
    site.keep_protocol(signed(consortium, tiny_protocol()))
    path = site.folder / "studies" / consortia.STUDY / "protocol.json"
    path.write_text(path.read_text().replace("0.5", "1.0"))
    with pytest.raises(IdentityError, match="was changed"):
        site.protocol(consortia.STUDY)


def test_a_decision_is_signed_and_may_be_changed(site: Site, consortium: Consortium) -> None:
    site.keep_protocol(signed(consortium, tiny_protocol()))
    assert site.decision(consortia.STUDY) is None
    site.decide(consortia.STUDY, "approve", by="Dr. Tamm")
    decided = site.decision(consortia.STUDY)
    assert decided is not None
    value, statement = decided
    assert (value.decision, value.by) == ("approve", "Dr. Tamm")
    assert value.protocol == tiny_protocol().digest
    assert statement.signer == site.identity.public
    site.decide(consortia.STUDY, "refuse", by="Dr. Tamm", why="second thoughts")
    decided = site.decision(consortia.STUDY)
    assert decided is not None
    assert decided[0].decision == "refuse"
    assert [e.event for e in site.journal.entries()][-2:] == ["study approved", "study refused"]


def test_a_decision_changed_on_the_disk_does_not_count(site: Site, consortium: Consortium) -> None:
    site.keep_protocol(signed(consortium, tiny_protocol()))
    site.decide(consortia.STUDY, "refuse", by="Dr. Tamm", why="no")
    path = site.folder / "studies" / consortia.STUDY / "decision.json"
    path.write_text(path.read_text().replace('"refuse"', '"approve"'))
    with pytest.raises(IdentityError, match="was changed"):
        site.decision(consortia.STUDY)


@pytest.mark.parametrize(("by", "why"), [("", ""), ("  ", ""), ("x" * 201, ""), ("Dr.", "y" * 501)])
def test_a_decision_needs_a_person(site: Site, consortium: Consortium, by: str, why: str) -> None:
    site.keep_protocol(signed(consortium, tiny_protocol()))
    with pytest.raises(ConsentError, match="needs a person's name"):
        site.decide(consortia.STUDY, "approve", by=by, why=why)
    assert site.decision(consortia.STUDY) is None
