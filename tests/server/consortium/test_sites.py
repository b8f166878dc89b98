from __future__ import annotations

from typing import Any

import pytest

from common.errors import IdentityError, StateError
from server.consortium import provisioning


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
