"""Makes the README's pictures of the two pages anew: ``python -m tests.pictures``.

A study of three phantom hospitals runs in memory; Chromium shows the coordinator's dashboard and
the page of one of them while it trains. The machine on that page is invented.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Final

import torch
from playwright.sync_api import sync_playwright

from client.page.listen_address import tokens
from client.page.machine_load import Gpu, Machine
from client.page.pages import application as site_page
from client.page.site_status import Readings as SiteReadings
from client.phantoms.cohort import write_cohort
from client.phantoms.profiles import PROFILES
from client.runtime.order_handler import Participation
from client.site.activity import Activity
from client.site.folder import Site
from common.messages.wire_format import Order
from common.records.atomic_files import held
from common.web.auth import Door, issue, link
from server.consortium.provisioning import Consortium
from server.reporting.dashboard.pages import application as dashboard
from server.reporting.live_status import Readings
from server.rounds.fleet import Presence
from tests import consortia
from tests.programs import needed
from tests.served import served

PICTURES: Final = Path(__file__).parents[1] / "deploy" / "demo"
SITES: Final = {"Tartu": "reference", "Turku": "3t-research", "Trondheim": "1.5t-community"}
SIZE: Final = {"width": 1180, "height": 860}
MACHINE: Final = Machine(
    disk_free_bytes=612 * 10**9,
    disk_total_bytes=2 * 10**12,
    memory_free_bytes=71 * 10**9,
    memory_total_bytes=128 * 10**9,
    processors=32,
    load=4.2,
    gpus=(Gpu("NVIDIA L40S", 21 * 2**30, 45 * 2**30, 0.93),),
)


def consortium_of_three(folder: Path) -> tuple[Consortium, Site, str]:
    """Run a study of five rounds; return the consortium, one hospital, and the study's name."""
    founded = consortia.found(folder / "coordinator", name="Northern Glioma Consortium")
    protocol = consortia.publish(
        founded,
        consortia.tiny_protocol(
            title="Glioma segmentation, pilot",
            rounds=5,
            training={"local_steps": 4},
            privacy={"noise_multiplier": 3.0},
        ),
    )
    hospitals = {}
    for number, (name, profile) in enumerate(SITES.items()):
        data = folder / f"data-{name}"
        write_cohort(data, PROFILES[profile], patients=6, size=24, seed=1, site=number)
        site = consortia.enrol(founded, folder / name, name=name, data=data)
        consortia.approve(site, founded, protocol)
        hospitals[name] = Participation(site)
    consortia.rounds(founded, protocol.study, hospitals).run()
    return founded, Site.open(folder / "Tartu"), protocol.study


def main() -> None:
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as play:
        folder = Path(name)
        founded, site, study = consortium_of_three(folder)
        browser = play.chromium.launch(executable_path=needed("chromium"), args=["--no-sandbox"])

        def picture(address: str, token: str, path: str, file: str) -> None:
            page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
            page.goto(link(address, token))
            page.get_by_role("button", name="Log in").click()
            page.goto(address + path)
            page.wait_for_function("document.getElementById('live').textContent === 'Live.'")
            page.screenshot(path=str(PICTURES / file))
            page.close()

        there = dict.fromkeys(SITES, Presence(True, ""))
        door = Door(folder / "tokens", title="dashboard")
        with served(dashboard(Readings(founded, lambda: there), door)) as address:
            picture(address, issue(folder / "tokens"), f"/studies/{study}", "dashboard.png")

        readings = SiteReadings(site.folder, machine=lambda _: MACHINE, aside=lambda work: work())
        (site.folder / "flower" / "contact").touch()
        readings.now()
        activity = Activity(site, clock=itertools.count().__next__)
        order = Order(kind="train", study=study, round=5, protocol="")
        door = Door(tokens(site), title="site")
        with (
            held(site.lock, what="the picture"),
            activity.doing(order),
            served(site_page(site.folder, readings, door)) as address,
        ):
            activity.step(27, 40)
            picture(address, issue(tokens(site)), "/", "site-page.png")
        browser.close()


if __name__ == "__main__":
    main()
