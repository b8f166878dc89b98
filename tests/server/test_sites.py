from __future__ import annotations

from typing import Any

import pytest

from common.errors import IdentityError


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
