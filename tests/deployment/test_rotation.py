"""Every key and certificate is renewed while a study runs over real processes."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deployment.stack import Stack, running_stack, until

pytestmark = pytest.mark.slow
SITES = ("north", "south")
ROUNDS = 10


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with running_stack(tmp_path) as stack:
        for seed, name in enumerate(SITES):
            stack.enrol(name, seed=seed)
        stack.publish("pilot", rounds=ROUNDS, local_steps=20)
        for name in ("server", *SITES):
            stack.start(name)
        stack.wait_for_offer("pilot", *SITES)
        stack.approve("pilot", *SITES)
        stack.call("gliofed-server", "launch", stack.coordinator, "pilot", "--no-wait")
        yield stack


def keys(stack: Stack) -> dict[str, bytes]:
    """Return everything that is to be renewed."""
    paths = [
        stack.coordinator / name
        for name in ("keys/coordinator.key", "keys/ca.key", "keys/server.key", "server.crt")
    ]
    for name in SITES:
        paths += [stack.site(name) / "keys" / key for key in ("identity.key", "node.key")]
        paths.append(stack.site(name) / "ca.crt")
    return {str(path): path.read_bytes() for path in paths}


def test_every_key_is_renewed_and_no_round_is_lost(stack: Stack) -> None:
    journal, before = stack.journal, keys(stack)
    until(lambda: journal.events("round closed"), timeout_s=120, what="a round")
    server = ("--by", "Ada")
    stack.call("gliofed-server", "rotate-certificate", stack.coordinator, *server)
    stack.call("gliofed-server", "rotate-key", stack.coordinator, *server)
    for name in SITES:
        stack.call("gliofed-site", "rotate-keys", stack.site(name), "--by", "Bo")
    stack.call("gliofed-server", "rotate-ca", stack.coordinator, "--wait", *server)
    until(lambda: len(journal.events("old node key ended")) == 2, timeout_s=120, what="new keys")
    closed = len(journal.events("round closed"))
    assert closed < ROUNDS, "the study was over before everything was renewed"
    until(lambda: journal.events("study finished"), timeout_s=240, what="end of the study")
    rounds = journal.events("round closed")
    assert [e.facts["round"] for e in rounds] == list(range(1, ROUNDS + 1))
    assert all(e.facts["took_part"] == list(SITES) for e in rounds)
    assert not journal.events("round failed", "study paused")
    now = keys(stack)
    assert not {path for path, value in before.items() if now[path] == value}
    for name in SITES:
        assert stack.opened(name).coordinators.keys == {stack.consortium.identity.public}
        assert (stack.site(name) / "ca.crt").read_bytes().count(b"BEGIN") <= 2
    trust = ssl.create_default_context(cafile=str(stack.coordinator / "ca.crt"))
    with httpx.Client(base_url=f"https://{stack.consortium.address}", verify=trust) as door:
        assert door.get("/").status_code == 404, (
            "the gateway serves the new authority's certificate"
        )


def test_a_revoked_sites_next_message_is_refused(stack: Stack) -> None:
    journal = stack.journal
    until(lambda: journal.events("round closed"), timeout_s=120, what="a round")
    stack.call(
        "gliofed-server",
        "revoke-site",
        stack.coordinator,
        "south",
        "--by",
        "Ada",
        "--why",
        "stolen",
    )
    log = stack.site("south") / "flower" / "log" / "supernode.log"
    until(lambda: "403" in log.read_text(), timeout_s=60, what="refusal")
    after = len(journal.events("round closed"))
    assert not journal.events("reply accepted", site="south", round=after + 2)
