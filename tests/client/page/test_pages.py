"""The site's page: who may see it, what it shows, and its two buttons."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from client.page.listen_address import note_page, noted_page, page_link, read_place, tokens
from client.page.pages import application
from client.page.site_status import Readings
from client.site import stop
from client.site.folder import Site
from common.errors import StateError
from common.records.atomic_files import held
from common.web.auth import Door, issue
from tests.consortia import STUDY, events


@pytest.fixture
def client(site: Site, readings: Readings) -> TestClient:
    door = Door(tokens(site), title="Test")
    return TestClient(application(site.folder, readings, door), base_url="http://127.0.0.1")


@pytest.fixture
def inside(client: TestClient, site: Site) -> TestClient:
    assert client.post("/login", data={"token": issue(tokens(site))}).status_code == 200
    return client


def csrf(client: TestClient) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', client.get("/").text)
    assert found is not None
    return found[1]


def words(client: TestClient) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", client.get("/").text).split())


def test_what_it_shows(trained: Site, inside: TestClient, patients: list[str]) -> None:
    said = words(inside)
    assert "Member of Northern Consortium" in said
    assert f"{STUDY}: approved" in said
    assert "1 × weight update" in said
    assert "NVIDIA H100" in said
    assert "% of 8.0" in said
    assert "open at all hours" in said
    assert "does not run here" in said
    assert not [name for name in patients if name in inside.get("/").text]


def test_an_empty_site(inside: TestClient) -> None:
    assert "No study was offered yet" in words(inside)


@pytest.mark.parametrize("path", ["/", "/events"])
def test_nobody_sees_anything_without_a_session(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 401


@pytest.mark.parametrize("path", ["/stop", "/resume"])
def test_nobody_presses_anything_without_a_session(
    client: TestClient, site: Site, path: str
) -> None:
    assert client.post(path, data={"confirm": "yes"}).status_code == 401
    assert stop.halted(site) is None


def test_the_stop_needs_the_sessions_form_and_a_confirmation(
    inside: TestClient, site: Site
) -> None:
    good = {"csrf": csrf(inside), "confirm": "yes", "reason": " a  test "}
    foreign = {"origin": "http://evil.example"}
    assert inside.post("/stop", data={**good, "csrf": "x"}).status_code == 403
    assert inside.post("/stop", data=good, headers=foreign).status_code == 403
    assert inside.post("/stop", data={**good, "confirm": ""}).status_code == 400
    assert inside.get("/stop").status_code == 405
    assert stop.halted(site) is None
    assert inside.post("/stop", data=good).status_code == 200
    standing = stop.halted(site)
    assert standing is not None
    assert (standing.by, standing.reason) == ("the site's page", "a test")
    said = words(inside)
    assert "Stopped since" in said
    assert "a test" in said
    assert "Stop this site" not in said
    assert inside.post("/resume", data={"csrf": "x"}).status_code == 403
    assert inside.post("/resume", data={"csrf": good["csrf"]}).status_code == 200
    assert stop.halted(site) is None
    assert [len(events(site, f"site {e}")) for e in ("stopped", "resumed")] == [1, 1]


def test_a_reason_is_text(inside: TestClient, site: Site) -> None:
    stop.stop(site, by="Bo", reason="<b>x</b>")
    assert "<b>x" not in inside.get("/").text


def test_a_damaged_journal_leaves_the_button(inside: TestClient, site: Site) -> None:
    path = site.journal.path
    path.write_bytes(path.read_bytes().replace(b"joined", b"joineD", 1))
    assert "This needs a person." in words(inside)
    answer = inside.post("/stop", data={"csrf": csrf(inside), "confirm": "yes"})
    assert answer.status_code in {200, 503}
    assert stop.halted(site) is not None, "stopped, whatever the journal takes"


def test_it_brings_no_script_or_style_of_its_own(trained: Site, inside: TestClient) -> None:
    text = inside.get("/").text
    assert not re.search(
        r"<script(?! src=\"/static/)|<style| style=| on[a-z]+=|https?://(?!127)", text
    )
    assert "default-src 'none'" in inside.get("/").headers["content-security-policy"]


@pytest.mark.parametrize("said", ["0.0.0.0:8480", "192.0.2.1:8480", "x", "0", "127.0.0.1:", "::1"])
def test_it_is_for_this_machine_alone(said: str) -> None:
    with pytest.raises(StateError) as caught:
        read_place(said)
    assert caught.value.code == "place"


def test_places_of_this_machine() -> None:
    assert read_place("8480").address == "http://127.0.0.1:8480"
    assert read_place("[::1]:8480").address == "http://[::1]:8480"


def test_another_link(site: Site, tmp_path: Path) -> None:
    place = read_place("8480")
    with pytest.raises(StateError, match="No page of north"):
        noted_page(site)
    with held(site.lock, what="x"):
        note_page(site, place)
        assert noted_page(site) == place
        note_page(site, None)
        with pytest.raises(StateError):
            noted_page(site)
    assert page_link(site, place) != page_link(site, place)
