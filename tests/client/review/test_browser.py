"""The review page in a real browser: open, scroll, draw, save, load again, on any grid."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import uvicorn

from client.imaging.nifti import read_volume
from client.review.pages import application
from client.review.session import Desk
from common.process.loopback_tls import free_port
from common.web.auth import Door, issue, link
from tests.programs import needed
from tests.reviews import GRIDS, tumour, write_result

sync_api = pytest.importorskip("playwright.sync_api")

SOFTWARE_GL = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
SLOW_MS = 60_000
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


class Server:
    """The page of a result, from a thread of this process; each link of it opens once."""

    def __init__(self, result: Path, tokens: Path, *, port: int) -> None:
        self.address, self._tokens = f"http://127.0.0.1:{port}", tokens
        door = Door(tokens, title="Test", cookie=f"review_{port}", pictures=True)
        pages = application(Desk(result), door, reviewer="Dr. Tamm")
        options = {"log_config": None, "ws": "none", "timeout_graceful_shutdown": 1}
        self._server = uvicorn.Server(uvicorn.Config(pages, host="127.0.0.1", port=port, **options))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        until = time.monotonic() + 20
        while not self._server.started and time.monotonic() < until:
            time.sleep(0.01)

    @property
    def link(self) -> str:
        return link(self.address, issue(self._tokens))

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


class Visitor:
    """A person with a browser; ``said`` is its console, ``asked`` each address it asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def enter(self, address: str) -> None:
        self.page.goto(address)
        self.page.get_by_role("button", name="Log in").click()
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_selector("body[data-ready=true]", timeout=SLOW_MS)

    def stroke(self, sequence: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw in a pane from one place to another; both are shares of its width and height."""
        box = self.page.locator(f"#pane-{sequence}").bounding_box()
        (x0, y0), (x1, y1) = (
            (box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)
        )
        self.page.mouse.move(x0, y0)
        self.page.mouse.down()
        self.page.mouse.move(x1, y1, steps=8)
        self.page.mouse.up()

    def status(self, words: str) -> None:
        sync_api.expect(self.page.locator("#status")).to_contain_text(words, timeout=SLOW_MS)


@pytest.fixture
def visitor() -> Iterator[Visitor]:
    chromium = needed("chromium")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=list(SOFTWARE_GL))
        yield Visitor(browser.new_context(viewport={"width": 860, "height": 520}).new_page())
        browser.close()


@contextlib.contextmanager
def served(result: Path, tokens: Path, *, port: int | None = None) -> Iterator[Server]:
    server = Server(result, tokens, port=port or free_port())
    try:
        yield server
    finally:
        server.stop()


def right_of_middle_mm(labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return how far to the patient's right, front and top voxels lie of the scan's middle."""
    world = nib.affines.apply_affine(affine, np.argwhere(labels))
    middle = nib.affines.apply_affine(affine, (np.array(labels.shape) - 1) / 2)
    return world - middle


@pytest.mark.parametrize(
    "grid",
    [one if one == "oblique" else pytest.param(one, marks=pytest.mark.slow) for one in GRIDS],
)
def test_a_stroke_lies_where_it_was_drawn(grid: str, visitor: Visitor, tmp_path: Path) -> None:
    result = write_result(tmp_path, grid)
    affine = GRIDS[grid]
    page = visitor.page
    with served(result, tmp_path / "tokens") as server:
        visitor.enter(server.link)
        slices = page.locator("#place").inner_text()
        for _ in range(4):
            page.keyboard.press("ArrowUp")
        assert page.locator("#place").inner_text() != slices
        page.keyboard.press("3")
        # On the picture: left of its middle, above it. Radiological: the patient's right, in front.
        visitor.stroke("t1c", (0.40, 0.30), (0.44, 0.30))
        visitor.status("Draft kept")
        for name in ("t1n", "t2w", "t2f"):  # all four show the same mask
            same = "gliofed.panes.viewers.every((one) => one.drawBitmap === gliofed.panes.bitmap)"
            assert page.evaluate(f"() => {same}"), name
        page.reload()
        visitor.ready()
        visitor.status("with the draft of before")
        page.get_by_role("button", name="Save corrected").click()
        visitor.status("Saved as review 1")
    mask = read_volume(result / "reviews" / "0001" / "segmentation.nii.gz", dtype=np.uint8)
    assert np.allclose(mask.affine, affine, atol=1e-4)
    new = (mask.data == 3) & (tumour() != 3)
    assert 0 < new.sum() < 200
    assert np.array_equal(mask.data[~new], tumour()[~new])
    where = right_of_middle_mm(new, affine)
    assert (where[:, 0] > 0).all(), "drawn on the patient's right"
    assert (where[:, 1] > 0).all(), "drawn in front"
    assert (where[:, 2] > 0).all(), "drawn above the middle slice"
    assert visitor.asked
    assert not [
        url for url in visitor.asked if not url.startswith((server.address, "data:", "blob:"))
    ]
    assert visitor.said == []  # a broken policy would be told on the console


def test_what_the_server_did_not_get_stays_and_is_sent_later(
    visitor: Visitor, result: Path, tmp_path: Path
) -> None:
    page, port = visitor.page, free_port()
    here = f"http://127.0.0.1:{port}"
    with served(result, tmp_path / "one", port=port) as server:
        visitor.enter(server.link)
        page.keyboard.press("2")
        visitor.stroke("t2f", (0.40, 0.30), (0.44, 0.30))
        visitor.status("Draft kept")
    first = Desk(result).state()["sha256"]
    visitor.stroke("t2f", (0.60, 0.30), (0.64, 0.30))  # nobody is there
    problem = page.locator("#problem")
    sync_api.expect(problem).to_contain_text(f"--port {port}", timeout=SLOW_MS)
    assert page.locator("[data-decision=corrected]").is_disabled()
    with served(result, tmp_path / "two", port=port) as server:
        assert Desk(result).state()["sha256"] == first
        other = page.context.new_page()
        other.goto(server.link)
        page.get_by_role("button", name="Try again").click()
        sync_api.expect(problem).to_contain_text("still here", timeout=SLOW_MS)
        other.get_by_role("button", name="Log in").click()
        other.wait_for_url(f"{here}/")
        other.close()
        page.get_by_role("button", name="Try again").click()
        visitor.status("Draft kept")
        sync_api.expect(problem).to_be_hidden()
        page.get_by_role("button", name="Save corrected").click()
        visitor.status("Saved as review 1")
    saved = read_volume(result / "reviews/0001/segmentation.nii.gz", dtype=np.uint8).data
    before = (saved == 2) & (tumour() != 2)
    assert len(np.unique(np.argwhere(before)[:, 0])) > 4, "both strokes are there"


def test_undo_eraser_and_keys(visitor: Visitor, result: Path, tmp_path: Path) -> None:
    page = visitor.page

    def counts() -> list[int]:
        return list(page.evaluate("() => gliofed.strokes.counts()"))

    with served(result, tmp_path / "tokens") as server:
        visitor.enter(server.link)
        before = counts()
        visitor.stroke("t1n", (0.40, 0.30), (0.44, 0.30))  # no pen: it looks only
        assert counts() == before
        page.keyboard.press("1")
        visitor.stroke("t1n", (0.40, 0.30), (0.44, 0.30))
        drawn = counts()
        assert drawn[1] > before[1]
        page.keyboard.press("z")
        assert counts() == before
        page.keyboard.press("y")
        assert counts() == drawn
        page.keyboard.press("e")
        for _ in range(3):
            page.keyboard.press("]")
        visitor.stroke("t2w", (0.36, 0.30), (0.48, 0.30))
        assert counts()[1] <= before[1]
        page.keyboard.press("Control+z")
        page.keyboard.press("Control+z")
        visitor.status("Draft kept")
        assert page.locator("[data-decision=accepted]").is_enabled(), "all was taken back"
        page.locator("#comment").fill("c1e?")  # keys are letters there
        assert page.locator("#planes [data-plane=axial]").get_attribute("aria-pressed") == "true"
        page.locator("#comment").blur()
        page.keyboard.press("c")
        assert page.locator("#place").inner_text().endswith("of 36")
        page.keyboard.press("o")
        assert page.locator("#opacity").input_value() == "0"
    assert visitor.said == []
