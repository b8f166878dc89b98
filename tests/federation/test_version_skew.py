"""Sides of other versions: neighbours work together, others hear who must upgrade."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord

from client.runtime.order_handler import Participation
from common.errors import FederationError, UpdateError
from common.messages.wire_format import Content, unpack_order
from common.study.protocol import StudyProtocol
from common.versions import own
from server.consortium.provisioning import Consortium
from tests import consortia
from tests.conftest import MakeSite

NEW = {"mood_of_gpu": "warm"}
"""A field that no release has."""


def test_these_tests_are_of_the_first_release() -> None:
    assert own().startswith("0.1."), "write the versions below anew"


def _told(content: Content, **changes: Any) -> Content:
    value = json.loads(str(content.config_records["gliofed"]["json"]))
    content.config_records["gliofed"] = ConfigRecord({"json": json.dumps({**value, **changes})})
    return content


def of_version(site: Participation, version: str, **new: Any) -> Callable[[Content], Content]:
    """Return a site that says it is of ``version``, and that sends the fields ``new`` besides."""
    return lambda content: _told(site.answer(content), version=version, **new)


@pytest.fixture
def protocol() -> StudyProtocol:
    return consortia.tiny_protocol(rounds=1)


@pytest.mark.parametrize(
    ("version", "new", "works"),
    [
        ("0.2.0", {}, True),
        ("0.2.0", NEW, True),
        ("0.0.7", {}, True),
        ("0.3.0", {}, False),
        ("0.3.0", NEW, False),
        ("1.1.0", {}, False),
        ("0.1.5", NEW, False),  # of the same release, with a field that it does not have
    ],
)
def test_a_site_of_another_version(
    consortium: Consortium,
    make_site: MakeSite,
    cohorts: tuple[Path, ...],
    protocol: StudyProtocol,
    version: str,
    new: dict[str, str],
    works: bool,
) -> None:
    sites = {name: make_site(name, cohorts[n]) for n, name in enumerate(("north", "south"))}
    consortia.publish(consortium, protocol)
    here = {name: Participation(site) for name, site in sites.items()}
    for site in sites.values():
        consortia.approve(site, consortium, protocol)
    # The site was upgraded after it had approved, so that the approval is there.
    study = consortia.rounds(consortium, protocol.study, here)
    study.offer({})
    odd: dict[str, Any] = {**here, "north": of_version(here["north"], version, **new)}
    consortia.rounds(consortium, protocol.study, odd).run()
    (closed,) = consortium.journal.events("round closed")
    if works:
        assert closed.facts["took_part"] == ["north", "south"]
        said = consortium.journal.events("site version", site="north")
        assert [entry.facts["version"] for entry in said] == [own(), version]
        return
    assert closed.facts["took_part"] == ["south"]
    code = "update-form" if version == "0.1.5" else "version"
    assert closed.facts["dropped"] == {"north": code}
    refused = consortium.journal.events("reply refused", site="north")
    assert {entry.facts["code"] for entry in refused} == {code}
    if code == "version":
        for entry in refused:
            assert (
                f"The site runs gliofed {version}, the coordinator {own()}" in entry.facts["reason"]
            )
            assert "The coordinator must upgrade" in entry.facts["reason"]


@pytest.mark.parametrize(
    ("version", "works"), [("0.2.4", True), ("0.0.1", True), ("0.3.0", False), ("1.0.0", False)]
)
def test_a_coordinator_of_another_version(
    consortium: Consortium, make_site: MakeSite, protocol: StudyProtocol, version: str, works: bool
) -> None:
    site = make_site()
    here = Participation(site)
    consortia.approve(site, consortium, protocol)
    order = consortia.order(consortium.identity, protocol, "initial", version=version)
    report, arrays = consortia.answer(here, order)
    assert bool(arrays) == works
    if works:
        assert (report.status, report.version) == ("done", own())
        order = consortia.order(consortium.identity, protocol, "initial", version=version)
        report, _ = consortia.answer(here, _told(order, **NEW))
        assert report.status == "done"
    else:
        assert (report.status, report.code) == ("refused", "version")
        assert "The site must upgrade" in report.reason
        order = consortia.order(consortium.identity, protocol, "initial", version=version)
        with pytest.raises(UpdateError, match="The site must upgrade") as raised:
            unpack_order(_told(order, **NEW))
        assert raised.value.code == "version"


def test_a_study_of_strangers_alone_ends_with_words(
    consortium: Consortium, make_site: MakeSite, protocol: StudyProtocol
) -> None:
    site = make_site()
    consortia.publish(consortium, protocol)
    consortia.approve(site, consortium, protocol)
    here = Participation(site)
    consortia.rounds(consortium, protocol.study, {"north": here}).offer({})
    odd = of_version(here, "0.9.0")
    with pytest.raises(FederationError):
        consortia.rounds(consortium, protocol.study, {"north": odd}).run()
    words = [e.facts["reason"] for e in consortium.journal.events("reply refused", site="north")]
    assert words
    assert all("The coordinator must upgrade to 0.8 or 0.9." in one for one in words)
