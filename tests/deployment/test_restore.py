"""Both sides are backed up between rounds, destroyed and restored, over real processes.

The study ends as it would have: with the same bits without noise, with the same ledgers with noise.
A round that was ordered and not answered when the backups were made is charged once more, for no
backup knows whether it was trained.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.privacy.budget_caps import open_ledger
from common.records.weights import digest
from tests.deployment.stack import PROTOCOL, Stack, running_stack, until

pytestmark = pytest.mark.slow

SITES = ("north", "south")
EVERYONE = ("server", *SITES)
ROUNDS = 4
LOCAL_STEPS = 20
# Scores after each round take a while in which nothing is trained: time to stop.
_EACH = PROTOCOL.replace("evaluate_every = {rounds}", "evaluate_every = 1")
STUDIES = {
    "bits": _EACH.replace("max_epsilon = 10", 'mode = "none"'),
    "ledger": _EACH,
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two hospitals that also take part without privacy, so that two ends can be compared."""
    with running_stack(tmp_path_factory.mktemp("restore")) as stack:
        for seed, name in enumerate(SITES):
            stack.enrol(name, seed=seed)
            settings = stack.site(name) / "site.toml"
            text = settings.read_text()
            assert "allow_without_privacy = false" in text
            settings.write_text(
                text.replace("allow_without_privacy = false", "allow_without_privacy = true")
            )
        start(stack)
        yield stack


def start(stack: Stack) -> None:
    for name in EVERYONE:
        stack.start(name)


def end(stack: Stack) -> None:
    for name in EVERYONE:
        stack.end_supervisor(name)


def folders(stack: Stack) -> dict[str, Path]:
    return {"server": stack.coordinator, **{name: stack.site(name) for name in SITES}}


def script(name: str) -> str:
    return "gliofed-server" if name == "server" else "gliofed-site"


def back_up(stack: Stack, to: Path) -> None:
    to.mkdir()
    for name, folder in folders(stack).items():
        stack.call(script(name), "backup", folder, "--to", to / name)
        stack.call(script(name), "verify-backup", to / name)


def destroy_and_restore(stack: Stack, of: Path) -> None:
    for name, folder in folders(stack).items():
        shutil.rmtree(folder)
        stack.call(script(name), "restore-backup", of / name, "--to", folder)


def finish(stack: Stack, study: str) -> dict[str, Any]:
    """Launch the study again, wait for its end and return what came out."""
    stack.call("gliofed-server", "launch", stack.coordinator, study)
    rounds = stack.journal.events("round closed", study=study)
    assert [entry.facts["round"] for entry in rounds] == list(range(1, ROUNDS + 1))
    assert all(entry.facts["took_part"] == list(SITES) for entry in rounds)
    assert not stack.journal.events("round failed", "study paused", study=study)
    last = rounds[-1].facts
    return {
        "weights": digest(stack.consortium.study(study).load(ROUNDS, str(last["weights"]))),
        "spent": {name: spent(stack, study, name) for name in SITES},
    }


def spent(stack: Stack, study: str, name: str) -> Counter[tuple[str, int]]:
    """Return the steps of each state and round."""
    steps: Counter[tuple[str, int]] = Counter()
    with open_ledger(stack.opened(name)) as ledger:
        for fact in ledger.facts(study=study):
            steps[fact.state, fact.round] += fact.steps
    return steps


def rounds_of(stack: Stack, event: str, study: str) -> set[int]:
    return {int(entry.facts["round"]) for entry in stack.journal.events(event, study=study)}


@pytest.mark.parametrize("study", list(STUDIES))
def test_a_study_goes_on_to_the_same_end(stack: Stack, study: str, tmp_path: Path) -> None:
    stack.publish(study, text=STUDIES[study], rounds=ROUNDS, local_steps=LOCAL_STEPS)
    stack.wait_for_offer(study, *SITES, timeout_s=120)
    stack.approve(study, *SITES)
    stack.call("gliofed-server", "launch", stack.coordinator, study, "--no-wait")
    journal = stack.journal
    until(lambda: journal.events("round closed", study=study, round=1), timeout_s=120, what="round")
    stack.call("gliofed-server", "stop", stack.coordinator, study)
    until(lambda: journal.events("study stopped", study=study), timeout_s=120, what="stop")
    end(stack)
    closed = rounds_of(stack, "round closed", study)
    assert len(closed) < ROUNDS, "too late to back up between rounds"
    in_flight = rounds_of(stack, "round opened", study) - closed
    back_up(stack, tmp_path / "backups")

    start(stack)
    undisturbed = finish(stack, study)
    end(stack)

    destroy_and_restore(stack, tmp_path / "backups")
    assert rounds_of(stack, "round closed", study) == closed
    start(stack)
    restored = finish(stack, study)
    if study == "bits":
        assert restored["weights"] == undisturbed["weights"]
    for name in SITES if study == "ledger" else ():
        before, after = undisturbed["spent"][name], restored["spent"][name]
        assert before == {("confirmed", n): LOCAL_STEPS for n in range(1, ROUNDS + 1)}
        assert after - before == {("reserved", n): LOCAL_STEPS for n in in_flight}
        assert after >= before
