"""A study of four rounds is amended after two: who approves goes on, late or at once, or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.privacy.budget_caps import open_ledger
from client.runtime.order_handler import Participation
from client.site.folder import Site
from common.errors import IdentityError, ProtocolError, StateError
from common.messages.wire_format import Content, unpack_order
from common.study.protocol import PROTOCOL, StudyProtocol
from common.trust.identity import Identity, Statement
from server.commands.amend import amend_study
from server.consortium import key_rotation
from server.consortium.provisioning import Consortium
from server.reporting.study_report import study_report
from server.rounds import approvals, study_scheduler
from server.rounds.fleet import MemoryFleet
from tests import consortia
from tests.conftest import MakeSite
from tests.consortia import STUDY, copied, events, tiny_protocol

NEW = {"rounds": 5, "training": {"local_steps": 1, "learning_rate": 5e-4}}
OLD: dict[str, Any] = {"rounds": 4, "evaluate_every": 9, "training": {"local_steps": 1}}


@pytest.fixture(autouse=True)
def asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approvals, "OFFER_AGAIN_S", 0.0)


@pytest.fixture
def protocol() -> StudyProtocol:
    return tiny_protocol(**OLD)


@pytest.fixture
def sites(consortium: Consortium, make_site: MakeSite, protocol: StudyProtocol) -> dict[str, Site]:
    made = {name: make_site(name) for name in ("north", "south", "west")}
    consortia.publish(consortium, protocol)
    for site in made.values():
        consortia.approve(site, consortium, protocol)
    return made


def write(consortium: Consortium, **changes: Any) -> Path:
    path = consortium.folder / "amended.toml"
    path.write_text(consortia.toml(tiny_protocol(**{**OLD, **changes})))
    return path


def run(
    consortium: Consortium, sites: dict[str, Site], told: Callable[[str, Any], None]
) -> list[tuple[int, list[str]]]:
    """Run the study to its end; ``told`` is called with each order before its site answers it.

    Returns who took part in each round.
    """

    def reply(name: str) -> Callable[[str, Content], Content]:
        def answer(_: str, content: Content) -> Content:
            order, _arrays = unpack_order(copied(content))
            told(name, order)
            return Participation(sites[name]).answer(content)

        return answer

    study = consortium.study(STUDY)
    study.want("running")
    study_scheduler.run_study(consortium, study, MemoryFleet({name: reply(name) for name in sites}))
    closed = consortium.journal.events("round closed", study=STUDY)
    return [(e.facts["round"], e.facts["took_part"]) for e in closed]


def test_a_running_study_is_amended(consortium: Consortium, sites: dict[str, Site]) -> None:
    old = consortium.study(STUDY).statement
    seen: list[str] = []

    def told(name: str, order: Any) -> None:
        version = len(Statement.loads(order.protocol).body.get("supersedes", ())) + 1
        if (order.kind, order.round, name) == ("train", 2, "north"):
            amend_study(consortium, STUDY, write(consortium, **NEW))
        if order.kind == "offer" and version == 2 and name not in seen:
            seen.append(name)
            sites[name].keep_protocol(Statement.loads(order.protocol))
            if name == "north":
                sites[name].decide(STUDY, "approve", by="Dr. Tamm")
            if name == "west":
                sites[name].decide(STUDY, "refuse", by="Dr. Oja", why="too long")
        if (order.kind, order.round) == ("train", 3):
            sites["south"].decide(STUDY, "approve", by="Dr. Salo")
        if order.kind == "train":
            assert version == (1 if order.round < 3 else 2)

    rounds = run(consortium, sites, told)
    everybody = ["north", "south", "west"]
    assert rounds[:3] == [(1, everybody), (2, everybody), (3, ["north"])]
    assert rounds[3:] == [(4, ["north", "south"]), (5, ["north", "south"])]
    assert consortium.study(STUDY).wanted == "finished"
    now = consortium.study(STUDY)
    assert (now.protocol.version, now.protocol.rounds, now.amendment) == (2, 5, None)
    assert (now.folder / "versions" / "0001.json").exists()
    names = [e.event for e in consortium.journal.events(study=STUDY)]
    assert names.count("amendment in force") == names.count("study amended") == 1
    told_report = study_report(now, consortium.journal, admitted=everybody)
    assert (told_report["version"], told_report["approved"]) == (2, ["north", "south"])
    assert "too long" in told_report["declined"]["west"]

    # The ledger counts over both versions: it is the same study.
    for name, taken in (("north", 5), ("south", 4), ("west", 2)):
        with open_ledger(sites[name]) as ledger:
            facts = ledger.facts(study=STUDY)
            assert len({f.protocol for f in facts}) == (1 if name == "west" else 2)
            assert sum({(f.round, f.id): f.steps for f in facts}.values()) == taken
            spent = ledger.spent(now.protocol.privacy.delta, study=STUDY)
            assert spent.steps == taken
    (amended,) = events(sites["north"], "study amended")
    assert amended["changed"] == ["rounds", "training.learning_rate"]

    # The old version cannot be replayed, to nobody.
    for name in everybody:
        order = consortia.order(
            consortium.identity,
            StudyProtocol.model_validate(old.body),
            "offer",
            protocol=old.dumps(),
        )
        report, _ = consortia.answer(Participation(sites[name]), order)
        assert (report.status, report.code) == ("refused", "superseded")


def test_an_amendment_that_nobody_wants_is_amended(
    consortium: Consortium, sites: dict[str, Site]
) -> None:
    """The study waits for approvals of the second version, and goes on with the third."""
    done: list[str] = []

    def told(name: str, order: Any) -> None:
        version = len(Statement.loads(order.protocol).body.get("supersedes", ())) + 1
        if order.kind == "train" and order.round == 2 and not done:
            done.append("second")
            amend_study(consortium, STUDY, write(consortium, rounds=9))
        if order.kind == "offer" and version == 2 and "third" not in done:
            done.append("third")
            amend_study(consortium, STUDY, write(consortium, rounds=3))
        if order.kind == "offer" and version == 3:
            sites[name].keep_protocol(Statement.loads(order.protocol))
            decided = sites[name].decision(STUDY)
            if decided is None or decided[0].protocol != sites[name].protocol(STUDY).digest:
                sites[name].decide(STUDY, "approve", by="Dr. Tamm")

    rounds = run(consortium, sites, told)
    assert [number for number, _ in rounds] == [1, 2, 3]
    assert consortium.study(STUDY).protocol.version == 3
    assert sites["north"].protocol(STUDY).version == 3


def test_two_persons_sign_an_amendment(
    consortium: Consortium, sites: dict[str, Site], tmp_path: Path
) -> None:
    other = Identity.create(tmp_path / "other.key")
    keys = {"first": consortium.identity.public, "second": other.public}
    assert key_rotation.change_coordinators(consortium, keys, needed=2, by="Ada") is not None
    study = consortium.study(STUDY)
    study.statement.cosigned(other).save(study.folder / "protocol.json")
    new, enough = amend_study(consortium, STUDY, write(consortium, **NEW))
    assert (new.version, enough, consortium.study(STUDY).amendment) == (2, False, None)
    draft = Statement.load(consortium.folder / "drafts" / f"{STUDY}.json", what="draft")
    said = key_rotation.take_countersigned(consortium, draft.cosigned(other))
    assert said == f"{STUDY} is amended from its next round on."
    staged = consortium.study(STUDY).amendment
    assert staged is not None
    assert staged.signers() == frozenset(keys.values())


def test_a_site_takes_only_what_follows_and_is_signed(
    consortium: Consortium, sites: dict[str, Site], tmp_path: Path
) -> None:
    site, old = sites["north"], consortium.study(STUDY).protocol
    bigger = {**old.model_dump(mode="json"), "supersedes": [old.digest]}
    bigger["network"] = {**bigger["network"], "size": "base"}
    forged = consortium.identity.sign(PROTOCOL, bigger)
    with pytest.raises(ProtocolError, match="network"):
        site.keep_protocol(forged)
    fine = {**old.model_dump(mode="json"), "supersedes": [old.digest], "rounds": 9}
    with pytest.raises(IdentityError):
        site.keep_protocol(Identity.create(tmp_path / "x.key").sign(PROTOCOL, fine))
    assert site.protocol(STUDY).digest == old.digest
    assert not events(site, "study amended")
    # Approved before is not approved now.
    content = consortia.order(consortium.identity, StudyProtocol.model_validate(fine), "initial")
    report, _ = consortia.answer(Participation(site), content)
    assert (report.status, report.code) == ("refused", "not-approved")
    assert site.version_before(STUDY) == old


def test_what_cannot_be_amended_is_said(consortium: Consortium, sites: dict[str, Site]) -> None:
    with pytest.raises(ProtocolError, match="preprocessing"):
        amend_study(consortium, STUDY, write(consortium, preprocessing={"spacing_mm": 5.0}))
    with pytest.raises(ProtocolError, match="no draft of an amendment"):
        amend_study(consortium, STUDY, write(consortium, study="glioma-11"))
    assert amend_study(consortium, STUDY, write(consortium, **NEW))[1]
    with pytest.raises(StateError, match="waits already"):
        amend_study(consortium, STUDY, write(consortium, rounds=7))


def test_taking_force_survives_a_kill(consortium: Consortium, sites: dict[str, Site]) -> None:
    amend_study(consortium, STUDY, write(consortium, **NEW))
    study = consortium.study(STUDY)
    amendment = study.amendment
    assert amendment is not None
    study.amend()
    amendment.save(study.folder / "amendment.json")  # killed before it was removed
    following = study_scheduler.in_force(consortium, consortium.study(STUDY))
    assert (following.protocol.version, following.amendment) == (2, None)
    kept = Statement.load(study.folder / "versions" / "0001.json", what="version")
    assert kept == study.statement


def test_fewer_rounds_than_are_closed(consortium: Consortium, sites: dict[str, Site]) -> None:
    consortium.journal.append("round closed", study=STUDY, round=1)
    with pytest.raises(ProtocolError, match="1 rounds of"):
        amend_study(consortium, STUDY, write(consortium, rounds=1))
    consortium.journal.append("study finished", study=STUDY)
    with pytest.raises(StateError, match="is finished"):
        amend_study(consortium, STUDY, write(consortium, rounds=9))
