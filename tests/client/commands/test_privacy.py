"""The oversight commands: what they say, their JSON, their exit codes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.cohort.case_discovery import read_cohort
from client.cohort.patient_split import split
from client.commands.privacy import app
from client.privacy import audit
from client.privacy.audit import AuditResult, Estimate, Trial
from client.study.withdrawal import LIMITS
from common import console
from common.study.protocol import PROTOCOL
from tests.consortia import STUDY, World, edit, events, tiny_protocol, toml

Run = Callable[..., Any]


@pytest.fixture
def oversight(command: Run) -> Run:
    return functools.partial(command, lambda: console.run(app))


def trained(world: World) -> str:
    """Return the name of a patient whom the study trained on."""
    return split(read_cohort(world.site.data), STUDY).train[0].patient


def test_budget(oversight: Run, world: World, tmp_path: Path) -> None:
    site, consortium = world.site, world.consortium
    bare = tiny_protocol(study="bare", privacy={"mode": "none"})
    site.keep_protocol(consortium.identity.sign(PROTOCOL, bare.model_dump(mode="json")))
    said = oversight("budget", site.folder)
    for words in ("WITHOUT PRIVACY", "all studies", "4 of 4", "spent the most is", "add or remove"):
        assert words in said.out
    found = oversight("budget", site.folder, "--json").json
    assert found["all_studies"]["steps_spent"] == 4
    assert found["all_studies"]["worst_patient"] in said.out
    picture = tmp_path / "budget.png"
    said = oversight("budget", site.folder, "--plot", picture)
    assert (said.code, f"Wrote {picture}" in said.out) == (0, True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert oversight("budget", site.folder, "--plot", tmp_path / "budget.pdf").code == 10


def test_plan_of_a_file_and_of_an_offered_study(
    oversight: Run, world: World, tmp_path: Path
) -> None:
    draft = tmp_path / "draft.toml"
    draft.write_text(toml(tiny_protocol(study="next-one", rounds=8)))
    said = oversight("plan", world.site.folder, draft)
    assert said.code == 0
    for words in (
        "What next-one would cost each patient",
        "5 patients have room for all 8 rounds",
        "weight update",
        "not covered by epsilon",
        "The site's policy allows it",
        "times the clipping norm",
    ):
        assert words in said.out
    found = oversight("plan", world.site.folder, STUDY, "--json").json
    assert (found["study"], found["privacy"]["rounds_done"]) == (STUDY, 2)
    missing = oversight("plan", world.site.folder, "no-such-study")
    assert (missing.code, "No study named" in missing.err) == (10, True)
    assert oversight("plan", world.site.folder, tmp_path / "none.toml").code == 12


@pytest.mark.parametrize(
    ("changes", "cap", "words"),
    [
        ({"privacy": {"mode": "none"}}, 10, "TRAINS WITHOUT DIFFERENTIAL PRIVACY"),
        ({"privacy": {"mode": "none"}}, 10, "policy refuses it"),
        ({"rounds": 50}, 3, "have room up to round"),
        ({"privacy": {"max_epsilon": 0.5}}, 0.6, "no room for a round more"),
    ],
)
def test_a_plan_warns(
    oversight: Run, world: World, tmp_path: Path, changes: Any, cap: float, words: str
) -> None:
    site = edit(world.site, "max_epsilon = 10.0", f"max_epsilon = {cap:.1f}")
    draft = tmp_path / "draft.toml"
    draft.write_text(toml(tiny_protocol(study="next-one", **changes)))
    said = oversight("plan", site.folder, draft)
    assert (said.code, words in said.err) == (0, True)


def test_outbox(oversight: Run, world: World) -> None:
    said = oversight("outbox", world.site.folder)
    assert "weight update: differentially private" in said.out
    assert "Northern Consortium, 127.0.0.1" in said.out
    found = oversight("outbox", world.site.folder, "--json").json
    assert len(found) == len(events(world.site, "sent", "declined"))
    assert oversight("outbox", world.site.folder, "--study", "other", "--json").json == []
    assert oversight("outbox", world.site.folder, "--since", "2999-01-01", "--json").json == []
    assert oversight("outbox", world.site.folder, "--since", "yesterday").code == 2


def test_withdraw(oversight: Run, world: World) -> None:
    patient = trained(world)
    said = oversight("withdraw", world.site.folder, patient, "--by", "Dr. Tamm")
    assert said.code == 0
    assert f"{STUDY}" in said.out
    assert "1, 2" in said.out
    assert "Weights that have left stay" in said.out
    assert patient not in said.out
    again = oversight("withdraw", world.site.folder, patient, "--by", "Dr. Saar")
    assert "withdrew already" in again.out
    assert "Dr. Tamm" in again.out
    found = oversight("withdraw", world.site.folder, patient, "--by", "x", "--json").json
    assert found["lineage"][0]["training"] == [1, 2]
    assert (found["again"], found["limits"]) == (True, list(LIMITS))
    unknown = oversight("withdraw", world.site.folder, "Nobody", "--by", "Dr. Tamm", "--json")
    assert (unknown.code, unknown.json["error"]) == (15, "patient-unknown")
    assert oversight("withdraw", world.site.folder, patient).code == 2


def test_audit(oversight: Run, world: World) -> None:
    said = oversight("audit", world.site.folder)
    for words in ("What left this hospital", "weight update", "The journal is whole", "The ledger"):
        assert words in said.out
    found = oversight("audit", world.site.folder, "--all", "--json").json
    assert "weight update" in [one["what"] for one in found["left"]]
    assert found["head"] == world.site.journal.head
    assert found["entries"] == len(found["shown"])
    assert (found["whole"], found["ledger_facts"]) == (True, 4)

    path = world.site.folder / "journal.jsonl"
    path.write_text(path.read_text().replace("Dr. Tamm", "Dr. Nobody"))
    (world.site.folder / "withdrawn.json").write_text("{")
    said = oversight("audit", world.site.folder)
    assert said.code == 10
    assert "damaged or was changed at line" in said.err
    assert "list of withdrawn patients" in said.err
    found = oversight("audit", world.site.folder, "--json")
    assert (found.code, found.json["error"]) == (10, "journal-damaged")


def result(lower_bound: float) -> AuditResult:
    trial = Trial(
        name="noise and clipping",
        lower_bound=lower_bound,
        upper_bound=2.5,
        delta=1e-5,
        confidence=0.95,
        canaries=32_768,
        guesses=1638,
        correct=1200,
        noise_multiplier=2.0,
        sampling_rate=1.0,
        steps=1,
        clipping_norm=1.0,
        noise=Estimate(2.01, 0.01, 2.0),
        share=Estimate(1.0, 0.02, 1.0),
    )
    return AuditResult((trial,), 0.95, 2, 30.0)


@pytest.mark.parametrize(("lower_bound", "passed"), [(1.5, True), (4.0, False)])
def test_audit_privacy_says_what_was_found(
    oversight: Run,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    lower_bound: float,
    passed: bool,
) -> None:
    asked: list[dict[str, Any]] = []

    def pretend(**options: Any) -> AuditResult:
        asked.append(options)
        return result(lower_bound)

    monkeypatch.setattr(audit, "audit_privacy", pretend)
    said = oversight("audit-privacy", world.site.folder)
    assert said.code == (0 if passed else 14)
    assert f"{lower_bound:.3f}" in said.out
    assert "2.500" in said.out
    assert ("no proof of privacy" in said.out) == passed
    assert ("less privacy than the ledger says" in said.err) == (not passed)
    one = oversight("audit-privacy", world.site.folder, "--study", STUDY, "--json")
    assert (one.code, one.json["passed"]) == (0 if passed else 14, passed)
    assert asked[1]["privacy"] == world.site.protocol(STUDY).privacy
    first, second = events(world.site, "privacy audited")
    assert (first["study"], second["study"], first["passed"]) == ("", STUDY, passed)
    assert first["trials"][0]["lower_bound"] == lower_bound
    json.dumps(first)


def test_audit_privacy_refuses_too_few_canaries(oversight: Run, world: World) -> None:
    said = oversight("audit-privacy", world.site.folder, "--canaries", 8)
    assert (said.code, "cannot tell right from wrong" in said.err) == (14, True)
    assert events(world.site, "privacy audited") == []
