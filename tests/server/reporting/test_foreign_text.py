"""What a site wrote moves no terminal, forges no line, and stops no report, however it came in."""

from __future__ import annotations

import logging
import unicodedata
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from common import console
from common.errors import StateError
from common.process import logs
from common.web.auth import Door, issue
from server.commands import coordinator
from server.reporting.dashboard.pages import application
from server.reporting.live_status import Readings

EVIL = (
    "Harmless\x1b[1A\x1b[2K\x1b]0;owned\x07\x9b1A\u202e\r\n"
    "Error: all patients were lost\x00<script>alert(1)</script>"
)


def obeyed(text: str) -> set[str]:
    """Return the characters that a terminal or a page would obey, but the newlines of ours."""
    return {
        one
        for one in text
        if one not in "\n" and unicodedata.category(one) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    }


@pytest.fixture
def written(three: Any) -> Any:
    """A finished study, in whose journal are a site's words as earlier versions kept them."""
    three.run()
    about = {"study": "demo", "site": "c", "round": 2}
    journal = three.consortium.journal
    journal.append("site declined", **about, order="train", status="refused", code="x", reason=EVIL)
    journal.append("reply refused", **about, order="train", code="y", reason=EVIL)
    journal.append("site suspended", site="c", by=EVIL, why=EVIL)
    journal.append("study paused", study="demo", code="z", reason=EVIL)
    return three


@pytest.mark.parametrize(
    "command", [["status"], ["status", "demo"], ["report", "demo"], ["launch", "demo"], ["doctor"]]
)
def test_no_command_passes_it_on(written: Any, command: list[str]) -> None:
    name, *rest = command
    result = CliRunner().invoke(coordinator.app, [name, str(written.consortium.folder), *rest])
    assert obeyed(result.output) == set()
    assert not [line for line in result.output.splitlines() if line.startswith("Error: all")]
    if command == ["report", "demo"]:
        assert "Harmless" in result.output


def test_no_file_of_a_report_holds_it(written: Any, tmp_path: Path) -> None:
    out = tmp_path / "report"
    folder = str(written.consortium.folder)
    result = CliRunner().invoke(coordinator.app, ["report", folder, "demo", "--out", str(out)])
    assert result.exit_code == 0, result.exception
    for name in ("report.md", "report.json"):
        assert obeyed((out / name).read_text()) == set()
    assert "\\u001b" not in (out / "report.json").read_text()


def test_no_page_and_no_table_holds_it(written: Any, tmp_path: Path) -> None:
    door = Door(tmp_path / "tokens", title="Test", renew="another")
    client = TestClient(
        application(Readings(written.consortium, lambda: None), door), base_url="http://127.0.0.1"
    )
    assert client.post("/login", data={"token": issue(tmp_path / "tokens")}).status_code == 200
    pages = ["/", "/studies/demo", "/journal", "/journal.csv", "/models"]
    pages += ["/studies/demo/report.md", "/studies/demo/rounds.csv"]
    seen = 0
    for path in pages:
        answer = client.get(path)
        if answer.status_code == 404:
            continue
        seen += 1
        text = answer.text.replace("\r\n", "\n") if path.endswith(".csv") else answer.text
        assert obeyed(text) == set(), path
        if not path.endswith((".md", ".csv")):
            assert "<script>alert" not in text
    assert seen >= 5


def test_a_log_does_not_hold_it(consortium: Any) -> None:
    stream = StringIO()
    before = logging.getLogger().handlers[:]
    try:
        logs.configure("executor", known=lambda: ["c"], in_words=True, stream=stream)
        try:
            raise StateError(EVIL)
        except StateError:
            logging.getLogger("server.executor").exception(
                "The run was interrupted; another one is started."
            )
    finally:
        logging.getLogger().handlers[:] = before
    assert "Harmless" in stream.getvalue()
    assert obeyed(stream.getvalue()) == set()


def test_the_facts_that_launch_follows_are_one_line_each() -> None:
    said = console.brief({"site": "c", "reason": EVIL, "dropped": {"c": EVIL}, "took_part": [EVIL]})
    assert obeyed(said) == set()
    assert "\n" not in said


@pytest.mark.parametrize("show", [console.say, console.warn])
def test_what_is_said_keeps_its_own_lines(show: Any, capsys: pytest.CaptureFixture[str]) -> None:
    show("one\ntwo \x1b[2J [bold]three[/]")
    shown = capsys.readouterr()
    assert "one\ntwo �[2J [bold]three[/]" in shown.out + shown.err


def test_a_number_that_an_earlier_version_took_stops_no_report(three: Any, tmp_path: Path) -> None:
    three.run()
    spent = {
        "noise_multiplier": 1e308,
        "sampling_rate": 5e-324,
        "steps": 10**300,
        "delta": 5e-324,
        "epsilon": 1.7e308,
    }
    last = {name: three.events(name)[-1] for name in ("round opened", "round closed")}
    accepted = three.events("reply accepted", site="c")[-1]
    journal = three.consortium.journal
    journal.append("round opened", **{**last["round opened"], "round": 3})
    made_up = {"round": 3, "privacy_spent": spent, "withdrawn": [10**300]}
    journal.append("reply accepted", **{**accepted, **made_up})
    journal.append(
        "round closed", **{**last["round closed"], "round": 3, "privacy_spent": {"c": spent}}
    )
    folder = str(three.consortium.folder)
    for command in (["status"], ["status", "--json"], ["report", "demo", "--out", str(tmp_path)]):
        name, *rest = command
        result = CliRunner().invoke(coordinator.app, [name, folder, *rest])
        assert result.exit_code == 0, (command, result.exception)
        assert len(result.output) < 20_000
