"""A study is never lost: any process may be killed at any moment.

What must hold after each kill: all rounds are closed, once each; whatever left a hospital had been
charged to its ledger before; the journals are whole.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest

from client.privacy.budget_caps import open_ledger
from tests.deployment.stack import Stack, alive, running_stack, until

pytestmark = pytest.mark.slow

ROUNDS: Final = 3
LOCAL_STEPS: Final = 4
SITES: Final = ("north", "south")
SUPERVISOR: Final = {
    "superlink": "server",
    "gateway": "server",
    "executor": "server",
    "supernode": "north",
    "worker": "north",
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A consortium that is up; each test runs a study of its own."""
    with running_stack(tmp_path_factory.mktemp("kill")) as stack:
        for seed, name in enumerate(SITES):
            stack.enrol(name, seed=seed)
        for name in ("server", *SITES):
            stack.start(name)
        yield stack


def launch(stack: Stack, study: str) -> None:
    """Launch a study that both sites approved and wait for its first round to be opened."""
    stack.publish(study, rounds=ROUNDS, local_steps=LOCAL_STEPS)
    stack.wait_for_offer(study, *SITES, timeout_s=120)
    stack.approve(study, *SITES)
    stack.call("gliofed-server", "launch", stack.coordinator, study, "--no-wait")
    until(lambda: opened(stack, study, 1), timeout_s=120, what="first round")


def opened(stack: Stack, study: str, number: int) -> bool:
    return bool(stack.journal.events("round opened", study=study, round=number))


def ended(stack: Stack, study: str) -> str:
    """Return how the study ended, or nothing while it runs."""
    last = stack.journal.events("study finished", "study paused", study=study)
    return last[-1].event if last else ""


def finish(stack: Stack, study: str) -> str:
    """Wait for the end, launching again if the study was paused; say how long it took."""
    began = time.monotonic()
    before = len(steps(stack, study))
    until(lambda: len(steps(stack, study)) > before, timeout_s=300, what="the next step")
    recovered = time.monotonic() - began
    until(lambda: ended(stack, study), timeout_s=300, what=f"end of {study}")
    if ended(stack, study) != "study finished":
        stack.call("gliofed-server", "launch", stack.coordinator, study)
    return f"next step after {recovered:.1f} s, end after {time.monotonic() - began:.1f} s"


def steps(stack: Stack, study: str) -> list[str]:
    """Return what the study has achieved so far."""
    done = ("round closed", "evaluated", "study finished", "study paused")
    return [entry.event for entry in stack.journal.events(*done, study=study)]


def check(stack: Stack, study: str) -> None:
    """Check what must hold of the study whatever was killed."""
    report = stack.report(study)
    assert report["state"] == "finished"
    closed = stack.journal.events("round closed", study=study)
    assert [entry.facts["round"] for entry in closed] == list(range(1, ROUNDS + 1))
    for entry in closed:
        assert entry.facts["took_part"] == sorted(SITES)
    assert list(stack.journal.entries())
    for name in SITES:
        site = stack.opened(name)
        sent = site.journal.events("sent", study=study, what="weight update")
        rounds = {entry.facts["round"] for entry in sent}
        assert rounds == set(range(1, ROUNDS + 1))
        with open_ledger(site) as ledger:
            charged = Counter[int]()
            for fact in ledger.facts(study=study):
                charged[fact.round] += fact.steps
        assert all(charged[number] >= LOCAL_STEPS for number in rounds), charged
        # What the coordinator took is what the hospital wrote down as sent, round by round.
        taken = stack.journal.events("reply accepted", study=study, site=name)
        assert {(e.facts["round"], e.facts["update"]) for e in taken} <= {
            (e.facts["round"], e.facts["update"]) for e in sent
        }


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", list(SUPERVISOR))
def test_any_process_may_be_killed_at_any_moment(
    stack: Stack, kind: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(f"{kind}-{seed}")  # noqa: S311
    study = f"{kind}-{seed}"
    launch(stack, study)
    number, later = draw.randint(1, ROUNDS), draw.uniform(0, 3)
    until(lambda: opened(stack, study, number), timeout_s=120, what=f"round {number}")
    time.sleep(later)
    pid = stack.child(SUPERVISOR[kind], kind)
    assert not ended(stack, study), "too late: choose an earlier moment"
    os.kill(pid, signal.SIGKILL)
    words = finish(stack, study)
    with capsys.disabled():
        sys.stdout.write(f"\n{kind} killed {later:.1f} s into round {number}: {words}\n")
    assert stack.child(SUPERVISOR[kind], kind) != pid
    check(stack, study)


@pytest.mark.parametrize("moment", ["training", "sent"])
def test_a_worker_killed_at_work_is_back_within_seconds(stack: Stack, moment: str) -> None:
    """At "sent" it may die with half of its answer handed to the SuperNode."""
    study = f"worker-{moment}"
    launch(stack, study)
    site = stack.opened("north")
    until(lambda: site.journal.events(moment, study=study, round=2), timeout_s=60, what=moment)
    os.kill(stack.child("north", "worker"), signal.SIGKILL)
    killed = time.monotonic()
    until(
        lambda: stack.journal.events("reply accepted", study=study, round=2, site="north"),
        timeout_s=50,
        what="the answer of the next worker",
    )
    assert time.monotonic() - killed < 50
    finish(stack, study)
    check(stack, study)
    lost = stack.journal.events("order lost", study=study)
    assert {(entry.facts["site"], entry.facts["round"]) for entry in lost} <= {("north", 2)}
    assert lost or moment == "sent"


@pytest.mark.parametrize("name", ["server", "north"])
def test_supervisor_may_be_killed_and_started_again(
    stack: Stack, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = f"supervisor-{name}"
    launch(stack, study)
    until(lambda: opened(stack, study, 2), timeout_s=60, what="second round")
    kinds = [kind for kind, supervisor in SUPERVISOR.items() if supervisor == name]
    pids = [stack.child(name, kind) for kind in kinds]
    stack.kill_supervisor(name)
    until(lambda: not any(map(alive, pids)), timeout_s=5, what="children die with their parent")
    stack.start(name)
    words = finish(stack, study)
    with capsys.disabled():
        sys.stdout.write(f"\nsupervisor of {name} killed in round 2: {words}\n")
    check(stack, study)


@pytest.mark.parametrize("name", ["server", "north"])
def test_supervisor_may_be_stopped_and_started_again_in_the_middle_of_a_round(
    stack: Stack, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = f"restart-{name}"
    launch(stack, study)
    site = stack.opened("north")
    until(lambda: site.journal.events("training", study=study, round=2), timeout_s=60, what="train")
    stack.end_supervisor(name)
    stack.start(name)
    words = finish(stack, study)
    with capsys.disabled():
        sys.stdout.write(f"\n{name} stopped and started in round 2: {words}\n")
    check(stack, study)
    assert not stack.journal.events("round failed", study=study)
