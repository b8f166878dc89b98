"""The dashboard in a real browser while rounds go on: live, without scripts of others, readable."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.web.auth import Door, issue, link
from server.reporting.dashboard.pages import application
from server.reporting.live_status import Readings
from server.rounds.fleet import Presence
from tests.programs import needed
from tests.served import served

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture
def address(three: Any, tmp_path: Path) -> Iterator[str]:
    """Where the dashboard of three sites is served, from a thread of this process."""
    presence = {"a": Presence(True, "2026-01-02T03:04:05+00:00"), "b": Presence(False, "")}
    pages = application(
        Readings(three.consortium, lambda: presence),
        Door(tmp_path / "tokens", title="Gliomas"),
        poll_s=0.1,
    )
    with served(pages) as where:
        yield where


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_person_watches_the_rounds(three: Any, address: str, tmp_path: Path) -> None:
    chromium = needed("chromium")
    three.join("d", approves=False)
    three.rounds().offer({})
    asked: list[str] = []
    said: list[str] = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(link(address, issue(tmp_path / "tokens")))
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("link", name="demo").click()
        closed = page.locator("#rounds-closed")
        assert closed.inner_text() == "0 of 2"
        sync_api.expect(page.locator("#live")).to_have_text("Live.")
        rounds = threading.Thread(target=three.run)
        rounds.start()
        sync_api.expect(closed).to_have_text("2 of 2", timeout=30_000)  # nobody loads it again
        rounds.join()
        sync_api.expect(page.locator("text=(worst)").first).to_be_visible(timeout=30_000)
        page.screenshot(path=str(tmp_path / "study.png"), full_page=True)
        page.get_by_role("link", name="Consortium").click()
        page.screenshot(path=str(tmp_path / "consortium.png"), full_page=True)
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 390, "height": 800})
        for path in ("/", "/studies/demo", "/journal", "/models"):
            page.goto(address + path)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 390, f"{path} is {wide} pixels wide on a telephone"
            name = path.strip("/").replace("/", "-") or "home"
            page.screenshot(path=str(tmp_path / f"phone-{name}.png"))
        assert page.context.cookies()[0]["httpOnly"]
        browser.close()
    assert asked
    assert not [url for url in asked if not url.startswith(address)]
    assert not said, said  # a broken policy would be told on the console
