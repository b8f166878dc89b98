"""No patient anywhere but in the hospital's own folders: all that is shown and said is searched.

A study runs in memory with everything on: dashboard, site page, both sides' figures and logs. Then
all of it is searched for the names by which the hospital knows its patients and cases. The same
with real processes is in ``tests/deployment/test_no_patient.py``.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from starlette.testclient import TestClient

from client.cohort.series_decisions import cohort_of
from client.page.listen_address import tokens
from client.page.pages import application as site_page
from client.page.prometheus import SiteFigures
from client.page.site_status import Readings as SiteReadings
from client.runtime.order_handler import Participation
from client.site import stop
from client.site.folder import Site
from client.study.withdrawal import withdraw
from client.views.cohort_check import check_site
from common.process import logs
from common.process.supervisor_log import Chronicle
from common.study.protocol import PreprocessingOptions
from common.web.auth import Door, issue
from common.web.live_updates import changes
from common.web.prometheus import registry
from server.consortium.provisioning import Consortium
from server.release.release_folder import release
from server.reporting.dashboard.csv_tables import OF_A_STUDY
from server.reporting.dashboard.pages import application as dashboard
from server.reporting.live_status import Readings
from server.reporting.markdown_report import markdown
from server.reporting.prometheus import Consortium as Figures
from server.reporting.study_report import full_report
from server.rounds.fleet import Presence
from tests.consortia import approve, publish, rounds, tiny_protocol
from tests.logging_state import restored
from tests.names import names_in, names_of


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the processes of both sides would write."""
    out = io.StringIO()
    with restored():
        logs.configure("worker", known=lambda: ["north", "glioma-10"], form="json", stream=out)
        yield out


def broken(cohort: Path) -> None:
    """Damage two cases: one is refused when the cohort is read, one when it is trained on."""
    first, second = sorted(path for path in cohort.iterdir() if path.is_dir())[:2]
    next(first.glob("*t1c*")).unlink()
    image = next(second.glob("*t2f*"))
    image.write_bytes(image.read_bytes()[:400])


def pages(client: TestClient, token: str, paths: list[str]) -> str:
    assert client.post("/login", data={"token": token}).status_code == 200
    answers = [client.get(path) for path in paths]
    assert [one.status_code for one in answers] == [200] * len(paths), paths
    return "\n".join(f"{one.headers}\n{one.text}" for one in answers)


async def stream(mark: Any, change: Any) -> str:
    """Return the events of a page until one says that something changed."""
    said = ""
    async for one in changes(mark, poll_s=0.0, for_s=20.0):
        said += one
        change()
        if "event: changed" in said:
            return said
    return said


def test_nothing_that_is_shown_or_said_names_a_patient(
    consortium: Consortium, make_site: Any, own_cohort: Path, tmp_path: Path, log: io.StringIO
) -> None:
    names = names_of(own_cohort)
    broken(own_cohort)
    site: Site = make_site(data=own_cohort)
    study = publish(consortium, tiny_protocol()).study
    site_facts = Chronicle(site.journal, logs.get_logger("x"), site="north", clock=_ticking())
    own_facts = Chronicle(consortium.journal, logs.get_logger("x"), clock=_ticking())
    site_facts()
    own_facts()
    found = check_site(site, PreprocessingOptions(spacing_mm=6.0), workers=1)
    assert names_in(str(found), names), "the hospital itself must see whom it is about"
    approve(site, consortium, consortium.study(study).protocol)
    withdraw(site, cohort_of(site).cases[-1].patient, by="Bo")

    rounds(consortium, study, {"north": Participation(site)}).run()
    release(consortium, study, tmp_path / "model")
    stop.stop(site, by="Bo", reason="a drill")
    site_facts()
    own_facts()

    seen: dict[str, str] = {}
    readings = Readings(consortium, lambda: {"north": Presence(True, "")})
    door = Door(tmp_path / "tokens", title="Test")
    client = TestClient(dashboard(readings, door), base_url="http://127.0.0.1")
    seen["dashboard"] = pages(
        client,
        issue(tmp_path / "tokens"),
        [
            *("/", "/models", "/journal", "/journal.csv", f"/studies/{study}"),
            f"/studies/{study}/report.md",
            *(f"/studies/{study}/{kind}.csv" for kind in OF_A_STUDY),
        ],
    )
    seen["stream of the dashboard"] = asyncio.run(
        stream(readings.mark, lambda: consortium.journal.append("x"))
    )
    seen["figures of the coordinator"] = generate_latest(registry(Figures(readings.now))).decode()
    report = full_report(consortium.study(study), consortium.journal, admitted=["north"])
    seen["report"] = markdown(report) + repr(report)
    for path in sorted(consortium.folder.rglob("*")):
        if path.is_file():
            seen[f"coordinator's {path.name}"] = path.read_bytes().decode("latin-1")
    for path in sorted((tmp_path / "model").rglob("*")):
        seen[f"model's {path.name}"] = path.read_bytes().decode("latin-1")

    of_site = SiteReadings(site.folder)
    client = TestClient(
        site_page(site.folder, of_site, Door(tokens(site), title="x")),
        base_url="http://127.0.0.1",
    )
    seen["site's page"] = pages(client, issue(tokens(site)), ["/"])
    seen["stream of the site's page"] = asyncio.run(
        stream(of_site.mark, lambda: site.journal.append("x"))
    )
    seen["figures of the site"] = generate_latest(registry(SiteFigures(of_site.now))).decode()
    seen["logs"] = log.getvalue()
    seen["site's journal"] = site.journal.path.read_text()

    for where, words in {
        "dashboard": "round closed",
        "stream of the dashboard": "event: changed",
        "figures of the coordinator": "gliofed_study_rounds_closed",
        "coordinator's journal.jsonl": "reply accepted",
        "site's page": "weight update",
        "stream of the site's page": "event: changed",
        "figures of the site": "gliofed_orders_total",
    }.items():
        assert words in seen[where], f"{where} is empty: nothing was searched"
    assert '"event": "round closed"' in seen["logs"]
    assert '"event": "sent"' in seen["logs"]
    assert "left out of ... case-sequence" in seen["logs"].replace("....", "..."), "not tried"
    wrong = {where: hits for where, text in seen.items() if (hits := names_in(text, names))}
    assert not wrong


def _ticking() -> Any:
    """A clock that goes on by some seconds each time that somebody looks."""
    now = iter(range(0, 10_000, 5))
    return lambda: float(next(now))
