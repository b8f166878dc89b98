"""Real processes with everything on, one of them stopped by its hospital: no patient anywhere."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.process.child_processes import script
from common.process.loopback_tls import free_port
from tests.deployment.stack import Stack, running_stack, until
from tests.names import names_in, names_of

pytestmark = pytest.mark.slow

SITES = ("north", "south")
STUDY = "pilot"
ROUNDS = 4
STEPS = 30
"""So many that there is time to press the button."""


class Shown:
    """What one side shows: its pages, once somebody has logged in, and its figures."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.name, self.page, self.metrics = name, free_port(), free_port()
        program, verb, folder, option = (
            ("gliofed-server", "serve", stack.coordinator, "--dashboard")
            if name == "server"
            else ("gliofed-site", "run", stack.site(name), "--page")
        )
        words = [script(program), verb, str(folder), option, str(self.page)]
        words += ["--metrics", str(self.metrics), "--log-format", "json"]
        self.log = stack.folder / f"{name}.log"
        stack.start(name, command=words)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.page}", timeout=30)

    def log_in(self) -> None:
        found: list[str] = []

        def printed() -> bool:
            found[:] = re.findall(r"/login\?token=(\S+)", self.log.read_text())
            return bool(found)

        until(printed, timeout_s=60, what=f"link of {self.name}")
        until(self._answers, timeout_s=60, what=f"page of {self.name}")
        assert self.client.post("/login", data={"token": found[-1]}).status_code == 303

    def _answers(self) -> bool:
        try:
            return self.client.get("/login").status_code == 200
        except httpx.HTTPError:
            return False

    def press(self, button: str, **fields: str) -> None:
        csrf = re.search(r'name="csrf" value="([^"]+)"', self.get("/"))
        assert csrf is not None
        answer = self.client.post(f"/{button}", data={"csrf": csrf[1], **fields})
        assert answer.status_code == 303, answer.text

    def get(self, path: str) -> str:
        answer = self.client.get(path)
        assert answer.status_code == 200, (path, answer.text)
        return f"{answer.headers}\n{answer.text}"

    def figures(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.metrics}/metrics", timeout=30).text

    def stream(self) -> str:
        """Return what the page is told until something has changed."""
        said = ""
        with self.client.stream("GET", "/events", timeout=60) as answer:
            for piece in answer.iter_text():
                said += piece
                if "event: changed" in said:
                    break
        return said


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("shown")) as stack:
        for seed, name in enumerate(SITES):
            stack.enrol(name, seed=seed)
        stack.publish(
            STUDY,
            quorum=1,
            rounds=ROUNDS,
            local_steps=STEPS,
        )
        yield stack


def events(stack: Stack, *names: str, **where: Any) -> list[Any]:
    return stack.journal.events(*names, study=STUDY, **where)


def test_a_study_with_everything_on_and_a_stop_in_the_middle(stack: Stack) -> None:
    broken = next((stack.folder / "data-north").glob("*/*t2f*"))
    names = {n for site in SITES for n in names_of(stack.folder / f"data-{site}")}
    broken.write_bytes(broken.read_bytes()[:400])
    shown = {name: Shown(stack, name) for name in ("server", *SITES)}
    with contextlib.ExitStack() as clients:
        for one in shown.values():
            clients.callback(one.client.close)
            one.log_in()
        seen = watch(stack, shown)
        look(stack, shown, seen)
    for where, words in {
        "metrics of server": "gliofed_study_rounds_closed",
        "metrics of north": "gliofed_last_contact_seconds",
        "page of north": "weight update",
        "log of server": '"event": "round closed"',
        "log of north": '"event": "sent"',
        "north/flower/log/worker.log": "case-",
        "coordinator/journal.jsonl": "reply accepted",
        "stream of north": "event: changed",
    }.items():
        assert words in seen[where], f"{where} does not hold {words}: was it on?"
    wrong = {where: hits for where, text in seen.items() if (hits := names_in(text, names))}
    assert not wrong


def watch(stack: Stack, shown: dict[str, Shown]) -> dict[str, str]:
    """Run the study, stop north in its first round, resume it; return what was seen meanwhile."""
    stack.wait_for_offer(STUDY, *SITES, timeout_s=120)
    stack.approve(STUDY, *SITES)
    stack.call("gliofed-server", "launch", stack.coordinator, STUDY, "--no-wait")

    north = shown["north"]
    until(
        lambda: re.search(r'id="step">[1-9]\d* of 30', north.get("/")),
        timeout_s=180,
        what="north's steps on its page",
        every_s=0.2,
    )
    (number,) = {e.facts["round"] for e in stack.opened("north").journal.events("training")}
    north.press("stop", confirm="yes", reason="a drill")
    seen = {"page of the site that was stopped": north.get("/")}
    until(lambda: events(stack, "round closed", round=number), timeout_s=180, what="the round")
    (closed,) = events(stack, "round closed", round=number)
    assert closed.facts["took_part"] == ["south"]
    assert closed.facts["dropped"] == {"north": "site-stopped"}
    assert not events(stack, "reply accepted", site="north")
    assert not stack.opened("north").journal.events("sent", what="weight update")
    seen["dashboard while it is stopped"] = shown["server"].get("/")
    assert "paused by the hospital" in seen["dashboard while it is stopped"]
    assert "gliofed_site_stopped 1.0" in north.figures()
    assert 'gliofed_site_paused{site="north"} 1.0' in shown["server"].figures()
    assert "a drill" not in seen["dashboard while it is stopped"]

    north.press("resume")
    until(lambda: events(stack, "reply accepted", site="north"), timeout_s=240, what="its return")
    for name, one in shown.items():
        seen[f"stream of {name}"] = one.stream()
    until(lambda: events(stack, "study finished"), timeout_s=400, what="the end", every_s=0.5)
    assert [e.facts["round"] for e in events(stack, "round closed")] == [*range(1, ROUNDS + 1)]
    return seen


def look(stack: Stack, shown: dict[str, Shown], seen: dict[str, str]) -> None:
    """Gather everything that is shown, told or kept where no patient may be."""
    server = shown["server"]
    for path in ("/", "/models", "/journal", "/journal.csv", f"/studies/{STUDY}"):
        seen[f"dashboard {path}"] = server.get(path)
    for kind in ("report.md", "rounds.csv", "updates.csv", "dice.csv", "privacy.csv"):
        seen[f"dashboard {kind}"] = server.get(f"/studies/{STUDY}/{kind}")
    for name, one in shown.items():
        seen[f"metrics of {name}"] = one.figures()
        seen[f"log of {name}"] = one.log.read_text()
    for name in SITES:
        seen[f"page of {name}"] = shown[name].get("/")
        seen[f"status of {name}"] = stack.call("gliofed-site", "status", stack.site(name))
    seen["status"] = stack.call("gliofed-server", "status", stack.coordinator, STUDY, "--json")
    files: list[Path] = [path for path in stack.coordinator.rglob("*") if path.is_file()]
    for name in SITES:
        files += [*stack.site(name).glob("flower/log/*"), stack.site(name) / "journal.jsonl"]
    for file in files:
        seen[str(file.relative_to(stack.folder))] = file.read_bytes().decode("latin-1")
