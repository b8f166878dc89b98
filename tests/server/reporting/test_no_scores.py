"""A study of hospitals that have nobody to validate on: all that shows scores does without."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from starlette.testclient import TestClient

from common.messages.wire_format import pack
from common.web.auth import Door, issue
from common.web.prometheus import registry
from server.commands import coordinator
from server.release.release_folder import release
from server.reporting.dashboard.pages import application
from server.reporting.fairness import spreads
from server.reporting.live_status import Readings
from server.reporting.markdown_report import markdown
from server.reporting.prometheus import Consortium as Figures
from server.reporting.study_chart import draw
from server.reporting.study_report import full_report
from server.reporting.tensorboard import write_events
from tests.server.conftest import report


@pytest.mark.parametrize("silent", ["abc", "ab"], ids=["no site scores", "one site scores"])
def test_a_study_without_scores_is_shown_everywhere(
    three: Any,
    silent: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in silent:
        three.hospitals[name].replies["evaluate"] = lambda order, _: pack(report(order), None)
    three.run()
    consortium = three.consortium
    found = full_report(consortium.study("demo"), consortium.journal, admitted=["a", "b", "c"])
    assert found["evaluations"]
    assert all(sorted(one["not_reported"]) == sorted(silent) for one in found["fairness"])
    assert spreads({}) == spreads({"a": {}}) == {}
    draw(found, tmp_path / "report.png")
    assert "nan" not in markdown(found, chart="report.png").lower()
    write_events(found, tmp_path / "events")
    readings = Readings(consortium, dict)
    assert b"study_rounds" in generate_latest(registry(Figures(readings.now)))
    card = release(consortium, "demo", tmp_path / "model")
    assert (card["worst_site"], card["mean_dice"]) == (None, {})
    assert set(card["dice_not_reported"]) == set(silent)
    client = TestClient(
        application(readings, Door(tmp_path / "tokens", title="T", renew="another")),
        base_url="http://127.0.0.1",
    )
    assert client.post("/login", data={"token": issue(tmp_path / "tokens")}).status_code == 200
    page = client.get("/studies/demo").text
    assert ("No site has reported Dice yet" in page) is (silent == "abc")
    assert "a gave no score: not reported." in page
    for command in ("status", "report"):
        asked = ["gliofed-server", command, str(consortium.folder), "demo"]
        monkeypatch.setattr(sys, "argv", asked)
        with pytest.raises(SystemExit) as ended:
            coordinator.main()
        assert not ended.value.code
        said = capsys.readouterr().out
        assert "nan" not in said.lower().split()
        assert "not reported" in said
