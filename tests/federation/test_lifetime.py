"""Keys, certificates and coordinators change between orders of a study, in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from client.runtime.order_handler import Participation
from client.site import key_renewal
from client.site.folder import Site
from common.errors import IdentityError, StateError
from common.messages.wire_format import unpack_report
from common.trust.identity import Identity, Statement
from server.consortium import certificates, key_rotation
from server.consortium.provisioning import Consortium
from tests import consortia
from tests.consortia import events, order, tiny_protocol

BY = "Ada"


def offer(consortium: Consortium, site: Site) -> str:
    """Give the site an offer with its newest kit, as a round does; return the code it answers."""
    protocol = tiny_protocol()
    content = order(consortium.identity, protocol, "offer", **consortium.sites.newer_kit(site.name))
    report, _ = unpack_report(Participation(site).answer(content), template=None, max_norm=1.0)
    consortium.sites.heard(site.name, kit_sha256=report.kit_sha256, renewal=report.renewal)
    return report.code


@pytest.fixture
def approved(consortium: Consortium, site: Site) -> Site:
    consortia.approve(site, consortium, tiny_protocol())
    return site


def test_a_site_follows_a_new_coordinator_key(consortium: Consortium, approved: Site) -> None:
    old = consortium.identity
    assert key_rotation.rotate_key(consortium, by=BY) is not None
    assert consortium.identity.public != old.public
    assert offer(consortium, approved) == ""
    site = Site.open(approved.folder)
    assert site.kit.coordinator_key == consortium.identity.public
    assert site.coordinators.keys == {consortium.identity.public}
    assert site.protocol(tiny_protocol().study), "what the old key signed is still read"
    with pytest.raises(IdentityError):  # the old key publishes nothing more
        site.open_protocol(old.sign("study-protocol", tiny_protocol().model_dump(mode="json")))
    assert len(events(site, "coordinators changed")) == 1
    assert offer(consortium, site) == ""
    assert len(events(site, "coordinators changed", "kit renewed")) == 2, "once is enough"


def test_a_site_that_was_away_follows_two_changes(consortium: Consortium, approved: Site) -> None:
    key_rotation.rotate_key(consortium, by=BY)
    key_rotation.rotate_key(consortium, by=BY)
    assert offer(consortium, approved) == ""
    assert Site.open(approved.folder).coordinators.number == 2


def test_a_stranger_changes_nothing(consortium: Consortium, approved: Site, tmp_path: Path) -> None:
    stranger = Identity.create(tmp_path / "stranger.key")
    kit = Statement.load(approved.folder / "kit.json", what="kit").body
    forged = stranger.sign("site-kit", {**kit, "coordinator_key": stranger.public})
    charter = consortium.charter.follower({"x": stranger.public}, needed=1)
    chain = [stranger.sign("consortium-charter", charter.model_dump(mode="json"))]
    for charters in ([], chain):
        with pytest.raises(IdentityError):
            key_renewal.take_kit(approved, forged, charters)
    assert Site.open(approved.folder).kit.coordinator_key == consortium.identity.public
    assert not events(approved, "kit renewed", "coordinators changed")


def test_a_sites_new_keys_are_taken_over(consortium: Consortium, approved: Site) -> None:
    old = {p.name: p.read_bytes() for p in (approved.folder / "keys").glob("*.key")}
    wanted = key_renewal.begin(approved, by="Bo")
    assert offer(consortium, approved) == ""
    assert approved.identity.public != wanted.signer, "not used before the coordinator has them"
    key_rotation.take_renewals(consortium)
    assert set(consortium.sites.node_keys().values()) == {"north"}
    assert len(consortium.sites.node_keys()) == 2, "old and new are let in"
    assert offer(consortium, approved) == "", "an approval of before counts on"
    site = Site.open(approved.folder)
    assert site.identity.public == wanted.signer
    decided = site.decision(tiny_protocol().study)
    assert decided is not None
    assert decided[1].signer == wanted.signer
    changed = {n for n, b in old.items() if (site.folder / "keys" / n).read_bytes() != b}
    assert changed == {"identity.key", "node.key"}, "the patients' pseudonyms stay"
    assert key_renewal.pending(site) == ""
    consortium.sites.left("north")
    assert len(consortium.sites.node_keys()) == 1


def test_new_keys_without_the_old_ones_signature_are_refused(
    consortium: Consortium, approved: Site
) -> None:
    wanted = key_renewal.begin(approved, by="Bo")
    alone = Statement(wanted.kind, wanted.body, wanted.signer, wanted.signature)
    with pytest.raises(IdentityError, match="not signed by its key"):
        consortium.sites.offer_renewal("north", alone)


@pytest.mark.parametrize("after", ["kit.next.json", "decision", "node", "identity", "kit.json"])
def test_taking_new_keys_survives_a_kill(
    consortium: Consortium, approved: Site, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed after the named file was written; the next one finishes."""
    key_renewal.begin(approved, by="Bo")
    offer(consortium, approved)
    key_rotation.take_renewals(consortium)
    real_replace = Path.replace

    def replace(path: Path, target: Path) -> Path:
        done = real_replace(path, target)
        if Path(target).name.startswith(after):
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            offer(consortium, approved)
    assert offer(consortium, Site.open(approved.folder)) == ""
    assert not (approved.folder / "kit.next.json").exists()
    assert not list((approved.folder / "keys").glob("*.next.key"))


def test_a_new_authority_waits_for_every_site(
    consortium: Consortium, make_site: Callable[..., Site]
) -> None:
    north, south = make_site("north"), make_site("south")
    for site in (north, south):
        consortia.approve(site, consortium, tiny_protocol())
    key_rotation.begin_authority(consortium, by=BY)
    with pytest.raises(StateError, match="is being changed already"):
        key_rotation.begin_authority(consortium, by=BY)
    assert offer(consortium, north) == ""
    assert (north.folder / "ca.crt").read_bytes().count(b"BEGIN CERTIFICATE") == 2
    with pytest.raises(StateError, match="south") as refused:
        key_rotation.finish_authority(consortium, by=BY, without=frozenset())
    assert refused.value.code == "kits"
    assert offer(consortium, south) == ""
    key_rotation.finish_authority(consortium, by=BY, without=frozenset())
    (authority,) = certificates.trusted(consortium.folder)
    certificates.certificate(consortium.folder).verify_directly_issued_by(authority)
    assert not certificates.changing_authority(consortium.folder)
    offer(consortium, north)
    assert (north.folder / "ca.crt").read_text() == (consortium.folder / "ca.crt").read_text()


def test_a_certificate_that_was_half_replaced_is_settled(consortium: Consortium) -> None:
    folder = consortium.folder
    before = (folder / "server.crt").read_bytes()
    (folder / "keys" / "server.next.key").write_bytes((folder / "keys" / "ca.key").read_bytes())
    certificates.settle(folder)  # killed before the certificate was written
    assert (folder / "server.crt").read_bytes() == before
    assert not (folder / "keys" / "server.next.key").exists()
    (folder / "keys" / "server.key").rename(folder / "keys" / "server.next.key")
    certificates.settle(folder)  # killed after
    assert (folder / "keys" / "server.key").exists()


def test_a_study_needs_two_signatures_when_the_consortium_says_so(
    consortium: Consortium, site: Site, tmp_path: Path
) -> None:
    second = Identity.create(tmp_path / "second.key")
    charter = key_rotation.change_coordinators(
        consortium,
        {"ada": consortium.identity.public, "bo": second.public},
        needed=2,
        by=BY,
    )
    assert charter is not None
    consortia.publish(consortium, tiny_protocol())
    assert consortium.studies() == [], "a draft is no study"
    assert offer(consortium, site) == "signatures", "one signature is refused by the site"
    (path,) = (consortium.folder / "drafts").glob("*.json")
    draft = Statement.load(path, what="draft")
    changed = {**draft.body, "rounds": 9}
    with pytest.raises(IdentityError, match="another one than the draft"):
        key_rotation.take_countersigned(consortium, second.sign(draft.kind, changed))
    assert "published" in key_rotation.take_countersigned(consortium, draft.cosigned(second))
    (study,) = consortium.studies()
    assert Site.open(site.folder).keep_protocol(study.statement).digest == study.protocol.digest
    assert key_rotation.rotate_key(consortium, by=BY) is None, "nor does one hand over alone"
