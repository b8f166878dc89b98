"""The site's page in a real browser while the site trains: live, and the button works."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from client.page.listen_address import tokens
from client.page.pages import application
from client.page.site_status import Readings
from client.runtime.order_handler import Participation
from client.site import stop
from client.site.folder import Site
from client.study import round_training
from common.messages.wire_format import Report
from common.records.atomic_files import held
from common.study.protocol import StudyProtocol
from common.web.auth import Door, issue, link
from server.consortium.provisioning import Consortium
from tests.consortia import answer, approve, order
from tests.programs import needed
from tests.served import served

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_it_watches_the_training_and_stops_it(
    site: Site,
    readings: Readings,
    consortium: Consortium,
    protocol: StudyProtocol,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chromium = needed("chromium")
    approve(site, consortium, protocol)
    weights = round_training.starting_weights(protocol)
    content = order(consortium.identity, protocol, "train", number=1, weights=weights)
    one_step, pressed = threading.Event(), threading.Event()
    reports: list[Report] = []

    def look(of: Site) -> None:
        """Before the second step, wait until the button was pressed."""
        if one_step.is_set():
            assert pressed.wait(60)
        one_step.set()
        stop.check_not_halted(of)

    monkeypatch.setattr("client.study.round_training._prepare", lambda *_: None)
    monkeypatch.setattr("client.site.preemption.check_not_halted", look)
    work = threading.Thread(target=lambda: reports.append(answer(Participation(site), content)[0]))
    asked: list[str] = []
    said: list[str] = []
    pages = application(site.folder, readings, Door(tokens(site), title="north"), poll_s=0.1)
    with (
        held(site.lock, what="the test"),
        served(pages) as address,
        sync_api.sync_playwright() as play,
    ):
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(link(address, issue(tokens(site))))
        page.get_by_role("button", name="Log in").click()
        now = page.locator("#now")
        sync_api.expect(now).to_have_text("idle")
        sync_api.expect(page.locator("#live")).to_have_text("Live.")
        work.start()
        try:
            sync_api.expect(now).to_have_text("train", timeout=30_000)  # nobody loads it again
            sync_api.expect(page.locator("#step")).to_have_text("1 of 2", timeout=30_000)
            page.screenshot(path=str(tmp_path / "running.png"), full_page=True)
            page.get_by_text("Stop this site ...").click()
            page.get_by_role("button", name="STOP").click()
            assert stop.halted(site) is None, "a browser asks for the confirmation first"
            page.get_by_label("Reason").fill("a fire drill")
            page.get_by_label("Yes, stop this site.").check()
            page.screenshot(path=str(tmp_path / "asks.png"), full_page=True)
            page.get_by_role("button", name="STOP").click()
            sync_api.expect(now).to_have_text("stopped")
        finally:
            pressed.set()
            work.join()
        assert [one.code for one in reports] == ["site-stopped"]
        assert stop.halted(Site.open(site.folder)) is not None
        sync_api.expect(page.locator("#stopped")).to_contain_text("a fire drill")
        page.screenshot(path=str(tmp_path / "stopped.png"), full_page=True)
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 390, "height": 800})
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{wide} pixels wide on a telephone"
        page.screenshot(path=str(tmp_path / "phone.png"), full_page=True)
        page.get_by_role("button", name="Resume").click()
        sync_api.expect(now).to_have_text("idle")
        browser.close()
    assert stop.halted(site) is None
    assert asked
    assert not [url for url in asked if not url.startswith(address)]
    assert not said, said  # a broken policy would be told on the console
