from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import IdentityError, StateError
from common.trust.enrolment import Request, sign_request
from common.trust.identity import Identity, Statement
from server.consortium import provisioning
from server.consortium.key_rotation import take_renewals
from tests.server.conftest import node_key


def test_admitted_sites_are_known_by_name(world: Any) -> None:
    world.join("b", "a")
    sites = world.consortium.sites
    assert sites.names() == ["a", "b"]
    assert [request.site for request in sites.all()] == ["a", "b"]
    assert sites.get("a").identity_key == world.hospitals["a"].identity.public
    assert sites.get("c") is None


def test_a_consortium_without_sites(world: Any) -> None:
    assert world.consortium.sites.names() == []
    assert world.consortium.sites.all() == []


def test_a_stored_request_that_was_changed_is_refused(world: Any) -> None:
    world.join("a")
    path = world.consortium.folder / "sites" / "a.json"
    path.write_text(path.read_text().replace('"version": "0.1.0"', '"version": "0.2.0"'))
    with pytest.raises(IdentityError, match="does not fit"):
        world.consortium.sites.get("a")


def test_a_request_under_another_name_is_refused(world: Any) -> None:
    world.join("a")
    folder = world.consortium.folder / "sites"
    (folder / "a.json").rename(folder / "b.json")
    with pytest.raises(IdentityError, match="is that of a"):
        world.consortium.sites.get("b")


def test_a_site_is_suspended_until_it_is_restored(world: Any) -> None:
    world.join("a", "b")
    sites = world.consortium.sites
    sites.suspend("a", by="Ada", why="scaled updates")
    assert sites.suspended() == {"a": "scaled updates"}
    assert sites.active() == {"b"}
    assert sites.names() == ["a", "b"], "it stays admitted"
    sites.suspend("a", by="Ada", why="and noise")
    assert world.consortium.sites.suspended() == {"a": "and noise"}
    sites.restore("a", by="Bob")
    assert sites.suspended() == {}
    assert sites.active() == {"a", "b"}
    said = [(e.event, e.facts) for e in world.consortium.journal.entries()][-3:]
    assert said == [
        ("site suspended", {"site": "a", "by": "Ada", "why": "scaled updates"}),
        ("site suspended", {"site": "a", "by": "Ada", "why": "and noise"}),
        ("site restored", {"site": "a", "by": "Bob"}),
    ]


def test_only_a_site_that_is_there_can_be_suspended_or_restored(world: Any) -> None:
    world.join("a")
    sites = world.consortium.sites
    with pytest.raises(StateError, match="no site b"):
        sites.suspend("b", by="Ada", why="x")
    with pytest.raises(StateError, match="no site"):
        sites.suspend("../a", by="Ada", why="x")
    with pytest.raises(StateError, match="a is not suspended"):
        sites.restore("a", by="Ada")
    assert not world.events("site suspended", "site restored")


def test_a_suspension_whose_file_is_damaged_holds(world: Any) -> None:
    world.join("a", "b")
    sites = world.consortium.sites
    sites.suspend("a", by="Ada", why="x")
    (world.consortium.folder / "sites" / "suspended" / "a.json").write_text("{")
    assert sites.active() == {"b"}
    with pytest.raises(StateError):
        sites.suspended()
    sites.restore("a", by="Ada")
    assert sites.active() == {"a", "b"}


def test_a_revoked_site_is_out_and_the_others_go_on(three: Any) -> None:
    sites = three.consortium.sites
    three.run()
    asked = len(three.hospitals["c"].orders)
    sites.revoke("c", by="Ada", why="its laptop was stolen")
    assert (sites.names(), sites.out("c"), sites.out("a")) == (["a", "b"], "revoked", "")
    three.publish("second")
    three.run("second")
    assert len(three.hospitals["c"].orders) == asked
    assert [f["took_part"] for f in three.events("round closed", study="second")] == [
        ["a", "b"]
    ] * 2
    (told,) = three.events("site revoked")
    assert (told["site"], told["by"], told["why"]) == ("c", "Ada", "its laptop was stolen")


def test_a_site_that_is_revoked_in_a_round_is_dropped_from_it(three: Any) -> None:
    three.fleet.slow["c"] = 50.0
    three.clock.after(10.0, lambda: three.consortium.sites.revoke("c", by="Ada", why="x"))
    three.run()
    closed = three.events("round closed")
    assert [f["took_part"] for f in closed] == [["a", "b"]] * 2
    assert closed[0]["dropped"] == {"c": "revoked"}


def asking(world: Any, name: str, **changes: str) -> Path:
    """Return the request of a hospital that signs whatever it asks with a key of its own."""
    identity = Identity.create(world.folder / f"{name}-{len(list(world.folder.iterdir()))}.key")
    fields = {"identity_key": identity.public, "node_key": node_key(), "version": "0.1.0"}
    path: Path = world.folder / f"{name}.request.json"
    sign_request(Request(site=name, **{**fields, **changes}), identity).save(path)
    return path


def weakly_signed(world: Any) -> Path:
    """A request that anybody can sign: its key has order 1."""
    key = "01" + "00" * 31
    body = {"site": "z", "identity_key": key, "node_key": node_key(), "version": "1"}
    path: Path = world.folder / "weak.json"
    Statement("enrolment-request", body, key, key + "00" * 32).save(path)
    return path


def of_a(world: Any, field: str) -> str:
    return str(getattr(world.consortium.sites.get("a"), field))


def as_a(world: Any, name: str) -> Path:
    """Another name asks with the identity of a."""
    identity = world.hospitals["a"].identity
    request = Request(site=name, identity_key=identity.public, node_key=node_key(), version="0.1.0")
    path: Path = world.folder / f"{name}.request.json"
    sign_request(request, identity).save(path)
    return path


def as_the_coordinator(world: Any) -> Path:
    identity = world.consortium.identity
    request = Request(site="z", identity_key=identity.public, node_key=node_key(), version="0.1.0")
    path: Path = world.folder / "z.request.json"
    sign_request(request, identity).save(path)
    return path


KEYS: dict[str, tuple[Callable[[Any], Path], str]] = {
    "the node key of another site": (
        lambda w: asking(w, "z", node_key=of_a(w, "node_key")),
        "doubled-key",
    ),
    "the identity of another site": (lambda w: as_a(w, "z"), "doubled-key"),
    "the key of a coordinator": (as_the_coordinator, "doubled-key"),
    "a node key that is none": (
        lambda w: asking(w, "z", node_key="ecdsa-sha2-nistp384 AAAA"),
        "key",
    ),
    "an identity by which anybody can sign": (weakly_signed, "key"),
}


@pytest.mark.parametrize("case", KEYS)
def test_a_key_that_is_none_or_anothers_is_not_admitted(world: Any, case: str) -> None:
    world.join("a")
    ask, code = KEYS[case]
    before = len(list(world.consortium.journal.entries()))
    with pytest.raises(IdentityError) as refused:
        provisioning.admit(world.consortium, ask(world), world.folder / "kit")
    assert refused.value.code == code
    assert refused.value.do
    assert world.consortium.sites.names() == ["a"]
    assert len(list(world.consortium.journal.entries())) == before
    assert not (world.folder / "kit").exists()


def renewing(world: Any, name: str, **changes: str) -> Statement:
    """Return new keys of a site, signed by its key as well."""
    new = Identity.create(world.folder / f"{name}-{len(list(world.folder.iterdir()))}.key")
    fields = {"identity_key": new.public, "node_key": node_key(), "version": "0.1.0"}
    request = Request(site=name, **{**fields, **changes})
    return sign_request(request, new).cosigned(world.hospitals[name].identity)


@pytest.mark.parametrize(
    ("node", "code"), [("ecdsa-sha2-nistp384 AAAA", "key"), ("of b", "doubled-key")]
)
def test_a_renewal_that_no_person_sees_is_read_as_closely(world: Any, node: str, code: str) -> None:
    world.join("a", "b")
    sites = world.consortium.sites
    bad = renewing(world, "a", node_key=sites.get("b").node_key if node == "of b" else node)
    with pytest.raises(IdentityError) as refused:
        sites.heard("a", kit_sha256="", renewal=bad.dumps())
    assert refused.value.code == code
    assert sites.renewals() == []


def test_a_renewal_that_an_earlier_version_kept_ends_no_thread(world: Any) -> None:
    world.join("a", "b")
    sites, before = world.consortium.sites, of_a(world, "node_key")
    folder = world.consortium.folder / "sites" / "renewals"
    renewing(world, "a", node_key="ecdsa-sha2-nistp384 AAAA").save(folder / "a.json")
    renewing(world, "b").save(folder / "b.json")
    take_renewals(world.consortium)
    assert of_a(world, "node_key") == before
    (refused,) = world.events("site keys refused")
    assert (refused["site"], refused["code"]) == ("a", "key")
    (renewed,) = world.events("site keys renewed")
    assert renewed["site"] == "b"
    assert sites.renewals() == []


def test_two_sites_do_not_take_each_others_keys_in_turn(world: Any) -> None:
    """What waits to be taken over counts, and so does what has just been left."""
    world.join("a", "b")
    sites = world.consortium.sites
    first = renewing(world, "a")
    sites.offer_renewal("a", first)
    waiting = str(first.body["node_key"])
    with pytest.raises(IdentityError, match="a key that is a's"):
        sites.offer_renewal("b", renewing(world, "b", node_key=waiting))
    old = of_a(world, "node_key")
    take_renewals(world.consortium)
    with pytest.raises(IdentityError, match="a key that is a's"):
        sites.offer_renewal("b", renewing(world, "b", node_key=old))


@pytest.mark.parametrize(
    "version", ["\x1b[2J", "<script>alert(1)</script>", "1\n2", "x" * 41, "=cmd()"]
)
def test_a_version_is_no_text_of_any_kind(version: str) -> None:
    with pytest.raises(ValueError, match="version"):
        Request(site="z", identity_key="ab" * 32, node_key=node_key(), version=version)


def test_revoked_keys_are_never_admitted_again(world: Any) -> None:
    world.join("a")
    old = world.folder / "a.request.json"
    world.consortium.sites.revoke("a", by="Ada", why="stolen")
    with pytest.raises(IdentityError, match=r"revoked as those of a: stolen") as refused:
        provisioning.admit(world.consortium, old, world.folder / "kit")
    assert refused.value.code == "revoked"
    with pytest.raises(StateError, match="no site a"):
        world.consortium.sites.revoke("a", by="Ada", why="again")
    (world.folder / "a.key").unlink()
    world.join("a")
    assert world.consortium.sites.names() == ["a"]
    world.consortium.sites.revoke("a", by="Ada", why="again")
    assert len(list((world.consortium.folder / "sites" / "revoked").iterdir())) == 2
