"""The dashboard's pages: what they show, who may see them, and what a browser may do with them."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from common.errors import ConsentError, PrivacyError
from common.web.auth import COOKIE, Door, issue
from common.web.live_updates import changes
from server.release.release_folder import release
from server.release.revocation import revoke
from server.reporting.dashboard import csv_tables
from server.reporting.dashboard.pages import application
from server.reporting.live_status import Readings
from server.rounds.fleet import Presence


class Now:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def presence() -> dict[str, Presence]:
    return {"a": Presence(True, "2026-01-02T03:04:05+00:00"), "b": Presence(False, "")}


@pytest.fixture
def readings(three: Any, presence: dict[str, Presence]) -> Readings:
    return Readings(three.consortium, lambda: presence)


@pytest.fixture
def client(readings: Readings, tmp_path: Path, now: Now) -> TestClient:
    door = Door(tmp_path / "tokens", title="Test", renew="another", now=now)
    return TestClient(application(readings, door), base_url="http://127.0.0.1")


@pytest.fixture
def inside(client: TestClient, tmp_path: Path, now: Now) -> TestClient:
    assert log_in(client, issue(tmp_path / "tokens", now=now)) == 200
    return client


def log_in(client: TestClient, token: str) -> int:
    code: int = client.post("/login", data={"token": token}).status_code
    return code


def run_all(three: Any) -> None:
    three.join("d", approves=False)
    three.rounds().offer({})
    three.hospitals["c"].refuses = PrivacyError("The budget is spent.", code="privacy-cap")
    three.run()


def test_every_page_of_an_empty_consortium(inside: TestClient) -> None:
    for path in ("/", "/studies/demo", "/models", "/journal", "/journal?page=99&event=nonsense"):
        assert inside.get(path).status_code == 200, path
    assert "No round has been opened yet" in inside.get("/studies/demo").text


def test_the_consortium_page(three: Any, inside: TestClient) -> None:
    run_all(three)
    three.consortium.sites.suspend("b", by="x", why="<b>holiday</b>")
    text = inside.get("/").text
    assert "1 of 4 sites are connected" in text
    assert "suspended: &lt;b&gt;holiday" in text
    assert "<b>holiday" not in text
    assert "2026-01-02 03:04:05 UTC" in text
    assert "finished" in text


def test_a_site_that_its_hospital_stopped(three: Any, inside: TestClient) -> None:
    three.rounds().offer({})
    three.hospitals["c"].refuses = ConsentError("Stopped.", code="site-stopped")
    three.run()
    assert inside.get("/").text.count("paused by the hospital") == 2  # picture and table
    assert "Paused by the hospital: c (since" in inside.get("/studies/demo").text


def test_the_study_page_marks_the_worst_and_says_who_was_left_out(
    three: Any, inside: TestClient
) -> None:
    run_all(three)
    text = " ".join(inside.get("/studies/demo").text.split())
    assert "2 of 2 rounds closed" in text
    assert "c</span> (privacy-cap)" in text
    assert text.count("(worst)") == 2  # WT and ET, which all report; TC nobody
    assert "of the study's cap" in text
    assert text.count('class="closed"') == 2
    for found in re.findall(r"<th (?!scope)", text):
        pytest.fail(f"a header without scope: {found}")


def test_nobody_can_tell_who_is_connected(three: Any, tmp_path: Path, now: Now) -> None:
    door = Door(tmp_path / "t", title="Test", now=now)
    client = TestClient(application(Readings(three.consortium, lambda: None), door),
                        base_url="http://127.0.0.1")  # fmt: skip
    log_in(client, issue(tmp_path / "t", now=now))
    assert client.get("/").text.count("connection not known") == 6  # picture and table


def test_models_have_a_lineage(three: Any, inside: TestClient, tmp_path: Path) -> None:
    three.run()
    release(three.consortium, "demo", tmp_path / "model", average=2)
    text = inside.get("/models").text
    assert "demo 1.0.2+mean2" in text
    assert "the mean of rounds 1 to 2" in text
    assert "Lineage: 2 rounds" in text
    assert "Revoked" not in text
    revoke(three.consortium, "demo", number=2, by="Dr. Tamm", why="wrong <labels>")
    assert "by Dr. Tamm: wrong &lt;labels&gt;" in inside.get("/models").text


def test_the_journal_is_paged_and_filtered(three: Any, inside: TestClient) -> None:
    three.run()
    for number in range(60):
        three.consortium.journal.append("order lost", study="demo", round=number, site="a")
    first = inside.get("/journal?event=order+lost").text
    assert "60 of" in first
    assert first.count("<tr><td") == 50
    assert inside.get("/journal?event=order+lost&page=2").text.count("<tr><td") == 10
    assert inside.get("/journal?site=a&event=reply+accepted").text.count("<tr><td") == 2


def test_what_is_saved(three: Any, inside: TestClient) -> None:
    run_all(three)
    assert inside.get("/studies/demo/report.png").content.startswith(b"\x89PNG")
    assert inside.get("/studies/demo/report.md").text.startswith("# A study")
    rows = list(csv.DictReader(io.StringIO(inside.get("/studies/demo/rounds.csv").text)))
    assert [row["left_out"] for row in rows] == ["c: privacy-cap"] * 2
    assert len(list(csv.reader(io.StringIO(inside.get("/studies/demo/privacy.csv").text)))) == 3
    journal = list(csv.DictReader(io.StringIO(inside.get("/journal.csv?site=a").text)))
    assert {row["event"] for row in journal} >= {"site admitted", "reply accepted"}
    for path in ("/studies/demo/x.csv", "/studies/demo/rounds", "/studies/none", "/nothing"):
        assert inside.get(path).status_code == 404


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@x", "\t=1"])
def test_a_cell_is_no_formula(value: str) -> None:
    assert csv_tables.written((["x"], [[value]])).splitlines()[1].strip('"').startswith("'")


def test_a_damaged_journal_is_said(three: Any, inside: TestClient) -> None:
    path = three.consortium.journal.path
    path.write_bytes(path.read_bytes().replace(b"consortium founded", b"consortium foundeD", 1))
    answer = inside.get("/")
    assert answer.status_code == 503
    assert "damaged or was changed at line 1" in answer.text


PAGES = ("/", "/studies/demo", "/studies/demo/rounds.csv", "/models", "/journal", "/journal.csv",
         "/events")  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_nobody_sees_anything_without_a_session(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 401
    answer = client.get(path, headers={"accept": "text/html"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    client.cookies.set(COOKIE, "guessed")
    assert client.get(path).status_code == 401


def test_a_token_opens_once(client: TestClient, tmp_path: Path, now: Now) -> None:
    token = issue(tmp_path / "tokens", now=now)
    assert token in client.get(f"/login?token={token}").text  # looking does not use it up
    answer = client.post("/login", data={"token": token}, follow_redirects=False)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/").status_code == 200
    client.cookies.clear()
    assert log_in(client, token) == 403
    assert token not in "".join(path.name for path in (tmp_path / "tokens").iterdir())


def test_tokens_and_sessions_end(client: TestClient, tmp_path: Path, now: Now) -> None:
    token = issue(tmp_path / "tokens", now=now)
    now.seconds += 3601
    assert log_in(client, token) == 403
    assert log_in(client, issue(tmp_path / "tokens", now=now)) == 200
    now.seconds += 12 * 3600 + 1
    assert client.get("/").status_code == 401


@pytest.mark.parametrize("token", ["", "x", "../../keys/coordinator.key", "é\x00"])
def test_no_other_token_opens(client: TestClient, tmp_path: Path, token: str) -> None:
    issue(tmp_path / "tokens")
    assert log_in(client, token) == 403


def test_logging_out_needs_the_sessions_own_form(inside: TestClient) -> None:
    assert inside.post("/logout").status_code == 403
    assert inside.post("/logout", data={"csrf": "x"}).status_code == 403
    csrf = re.search(r'name="csrf" value="([^"]+)"', inside.get("/").text)
    assert csrf is not None
    foreign = {"origin": "http://evil.example"}
    assert inside.post("/logout", data={"csrf": csrf[1]}, headers=foreign).status_code == 403
    cross = {"sec-fetch-site": "cross-site"}
    assert inside.post("/logout", data={"csrf": csrf[1]}, headers=cross).status_code == 403
    assert inside.post("/logout", data={"csrf": csrf[1]}).status_code == 200
    assert inside.get("/").status_code == 401


def test_refusals(inside: TestClient) -> None:
    assert inside.get("/", headers={"host": "evil.example"}).status_code == 421
    assert inside.post("/login", content=b"x" * 70_000).status_code == 413
    assert inside.post("/journal", data={"csrf": "x"}).status_code == 403
    assert inside.get("/static/../__init__.py").status_code in {401, 404}


@pytest.mark.parametrize("path", ["/", "/login", "/static/style.css", "/nothing"])
def test_every_answer_has_the_policy(inside: TestClient, path: str) -> None:
    headers = inside.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_pages_bring_no_script_or_style_of_their_own(three: Any, inside: TestClient) -> None:
    run_all(three)
    for path in ("/", "/studies/demo", "/models", "/journal", "/login"):
        text = inside.get(path).text
        assert not re.search(r"<script(?! src=\"/static/)|<style|\sstyle=|\son[a-z]+=", text), path
        assert not re.search(r"(?:src|href)=\"(?!/|#)", text), path


def test_a_reading_is_shared_until_something_changes(three: Any, readings: Readings) -> None:
    first = readings.now()
    assert readings.now() is first
    three.consortium.journal.append("order lost", study="demo", round=1, site="a")
    assert readings.now() is not first


def test_changes_are_told_as_they_come() -> None:
    marks = iter(["one", "one", "two", "two", "three", *["three"] * 1000])

    async def heard() -> list[str]:
        stream: AsyncIterator[str] = changes(lambda: next(marks), poll_s=0.001, for_s=0.2)
        return [one async for one in stream]

    assert "".join(asyncio.run(heard())).count("event: changed") == 2
