"""gliofed-site, command by command: what it says, its JSON, its exit codes."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client import rehearsal
from client.cohort.case_discovery import read_cohort
from client.cohort.patient_split import Split
from client.commands import site as site_commands
from client.phantoms.cohort import write_cohort
from client.runtime.order_handler import Participation
from client.site.folder import Site
from client.study import round_training
from common.errors import StateError
from common.records.atomic_files import held
from common.records.weights import load, load_metadata, save
from common.study.amendment import amended
from common.study.protocol import StudyProtocol
from common.study.segmentation_options import PostprocessingOptions
from common.trust.identity import fingerprint
from server.consortium import provisioning
from server.consortium.provisioning import Consortium
from tests import raw_heads
from tests.consortia import STUDY, World, answer, approve, edit, order, tiny_protocol, toml

Run = Callable[..., Any]


@pytest.fixture
def site_command(command: Run) -> Run:
    return functools.partial(command, site_commands.main)


def offer(site: Site, consortium: Consortium, protocol: StudyProtocol) -> None:
    answer(Participation(site), order(consortium.identity, protocol, "offer"))


def test_request_and_join(site_command: Run, consortium: Consortium, tmp_path: Path) -> None:
    folder = tmp_path / "north"
    made = site_command("request", folder, "--name", "north", "--data", tmp_path / "scans")
    site = Site.open(folder)
    assert made.code == 0
    assert fingerprint(site.identity.public) in made.out
    assert site.data == tmp_path / "scans"
    kit = tmp_path / "kit.json"
    provisioning.admit(consortium, folder / "request.json", kit)
    own = fingerprint(consortium.identity.public)
    assert own in site_command("join", folder, kit).out
    heard = site_command("join", folder, kit, "--coordinator", own)
    assert (heard.code, heard.out.strip()) == (0, "Joined Northern Consortium at 127.0.0.1:4433.")
    wrong = site_command("join", folder, kit, "--coordinator", "0000")
    assert wrong.code == 11
    assert "What to do:" in wrong.err
    again = site_command("request", folder, "--name", "north")
    assert again.code == 10
    assert again.err.startswith("Error:")


def test_studies_are_listed_decided_and_refused(
    site_command: Run, site: Site, consortium: Consortium
) -> None:
    assert "No study was offered yet" in site_command("studies", site.folder).out
    assert site_command("studies", site.folder, "--json").json == []
    offer(site, consortium, tiny_protocol())
    offer(site, consortium, tiny_protocol(study="greedy", privacy={"max_epsilon": 99.0}))
    offer(site, consortium, tiny_protocol(study="bare", privacy={"mode": "none"}))
    rows = {row["study"]: row for row in site_command("studies", site.folder, "--json").json}
    assert rows[STUDY]["privacy"] == "epsilon 1.62, at most 8 (delta 0.001)"
    assert (rows[STUDY]["decision"], rows[STUDY]["policy"]) == ("open", "allowed")
    assert rows["bare"]["privacy"] == "NONE"
    assert rows["greedy"]["policy"].startswith("refused: ")
    table = site_command("studies", site.folder).out
    assert all(name in table for name in rows)

    def approving(study: str, by: str = "Dr. Tamm") -> Any:
        read = ("--digest", rows[study]["protocol"][:8])
        return site_command("approve", site.folder, study, *read, "--by", by)

    assert approving(STUDY).out.startswith(f"Dr. Tamm approved {STUDY}")
    assert approving("greedy").code == approving("bare").code == 13
    nobody = approving(STUDY, by="")
    assert (nobody.code, "needs a person's name" in nobody.err) == (13, True)
    said = site_command("refuse", site.folder, STUDY, "--by", "Dr. Tamm", "--why", "no time")
    assert said.out.strip() == f"Dr. Tamm refused {STUDY}: no time"
    rows = {row["study"]: row for row in site_command("studies", site.folder, "--json").json}
    assert rows[STUDY]["decision"] == "refuse by Dr. Tamm"
    assert site_command("refuse", site.folder, "none", "--by", "x", "--why", "y").code == 10


def test_approving_a_study_without_privacy_is_said_aloud(
    site_command: Run, site: Site, consortium: Consortium
) -> None:
    edit(site, "privacy = false", "privacy = true")
    offer(site, consortium, tiny_protocol(study="bare", privacy={"mode": "none"}))
    read = ("--digest", site.protocol("bare").digest)
    said = site_command("approve", site.folder, "bare", *read, "--by", "Dr. Tamm")
    assert (said.code, "WITHOUT" in said.err) == (0, True)
    assert "infinite epsilon" in said.err


def test_an_approval_names_the_protocol_that_was_read(
    site_command: Run, site: Site, consortium: Consortium
) -> None:
    first = tiny_protocol()
    offer(site, consortium, first)
    planned = site_command("plan", site.folder, STUDY)
    assert first.digest in planned.out
    printed = re.findall(r"--digest ([0-9a-f]+)", planned.out)[-1]
    later = amended(first, tiny_protocol(rounds=40, evaluate_every=1))
    offer(site, consortium, later)  # it arrives while the first is being read
    for read in (printed, printed[:8], first.digest, later.digest[:7], "", "z" * 64):
        said = site_command("approve", site.folder, STUDY, "--digest", read, "--by", "Dr. Tamm")
        assert (said.code, "gliofed-site plan DIR" in said.err) == (13, True), read
        assert later.digest[:8] not in said.err  # nobody copies what was not read
    assert site_command("approve", site.folder, STUDY, "--by", "Dr. Tamm").code == 13
    assert site.decision(STUDY) is None
    read = f" {later.digest[:8].upper()} "
    said = site_command("approve", site.folder, STUDY, "--digest", read, "--by", "Dr. Tamm")
    assert (said.code, "rounds was 2, is 40" in said.out) == (0, True)
    decided = site.decision(STUDY)
    assert decided is not None
    assert decided[0].protocol == later.digest


@pytest.mark.parametrize(("delta", "set_to", "code"), [(2e-3, "", 13), (2e-3, "0.002", 0)])
def test_a_study_of_a_large_delta_is_not_approved(
    site_command: Run, site: Site, consortium: Consortium, delta: float, set_to: str, code: int
) -> None:
    if set_to:
        edit(site, 'max_delta = "auto"', f"max_delta = {set_to}")
    protocol = tiny_protocol(privacy={"delta": delta})
    offer(site, consortium, protocol)
    read = ("--digest", protocol.digest[:8], "--by", "Dr. Tamm")
    said = site_command("approve", site.folder, STUDY, *read)
    assert (said.code, "delta 0.002" in said.err) == (code, code != 0)
    assert (site.decision(STUDY) is None) is (code != 0)


def test_check(site_command: Run, make_site: Callable[..., Site], own_cohort: Path) -> None:
    site = make_site("south", own_cohort)
    case = read_cohort(own_cohort).cases[0]
    case.images["t2w"].path.write_bytes(b"cut")
    said = site_command("check", site.folder, "--workers", 1, "--spacing-mm", 6)
    assert said.code == 0
    assert "Refused" in said.out
    assert case.name in said.out
    found = site_command("check", site.folder, "--workers", 1, "--spacing-mm", 6, "--json").json
    assert found["refused"][0]["case"] == case.name
    assert site_command("check", site.folder, "--workers", 1, "--spacing-mm", 60).code == 2


def test_check_writes_a_page_and_is_strict_if_asked(
    site_command: Run, make_site: Callable[..., Site], own_cohort: Path, tmp_path: Path
) -> None:
    site = make_site("south", own_cohort)
    asked = ("check", site.folder, "--spacing-mm", 6, "--workers", 1)
    said = site_command(*asked, "--report", tmp_path / "report", "--json").json
    assert said["report"] == str(tmp_path / "report" / "quality.html")
    assert len(said["measures"]) == said["cases"]
    page = (tmp_path / "report" / "quality.html").read_text()
    assert all(one["name"] in page for one in said["measures"])
    shown = site_command(*asked, "--report", tmp_path / "report")
    assert "must not leave the hospital" in shown.out
    read_cohort(own_cohort).cases[0].images["t2w"].path.write_bytes(b"cut")
    assert site_command(*asked).code == 0
    strict = site_command(*asked, "--strict")
    assert (strict.code, "1 cases were refused" in strict.err) == (15, True)
    assert site_command(*asked, "--strict", "--json").code == 15


def test_check_names_what_a_case_lacks_and_fails_on_it_only_if_strict(
    site_command: Run, make_site: Callable[..., Site], own_cohort: Path
) -> None:
    site = make_site("south", own_cohort)
    case = read_cohort(own_cohort).cases[0]
    case.images["t1n"].path.unlink()
    asked = ("check", site.folder, "--spacing-mm", 6, "--workers", 1)
    said = site_command(*asked)
    assert (said.code, "t1n is missing" in said.out, "Refused" in said.out) == (0, True, False)
    assert "cases that lack sequences" in said.out
    assert site_command(*asked, "--strict").code == 15


def test_check_prepares_raw_heads_where_it_is_told_to(
    site_command: Run,
    make_site: Callable[..., Site],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = raw_heads.head()
    raw_heads.know_brain(monkeypatch, made)
    raw_heads.know_motions(monkeypatch, made)
    raw_heads.write(tmp_path / "raw", made)
    site = make_site("south", tmp_path / "raw")
    found = site_command("check", site.folder, "--spacing-mm", 6, "--json").json
    assert found["refused"][0]["code"] == "case-grid"
    found = site_command("check", site.folder, "--spacing-mm", 6, "--raw", "--json").json
    assert (found["cases"], found["refused"]) == (1, [])


def test_check_without_a_usable_case_fails_in_one_document(
    site_command: Run, make_site: Callable[..., Site], own_cohort: Path
) -> None:
    site = make_site("south", own_cohort)
    for case in read_cohort(own_cohort).cases:
        case.images["t2w"].path.write_bytes(b"cut")
    said = site_command("check", site.folder, "--workers", 1, "--spacing-mm", 6, "--json")
    assert (said.code, said.json["cases"]) == (15, 0)
    assert said.json["refused"]
    said = site_command("check", site.folder, "--workers", 1, "--spacing-mm", 6)
    assert (said.code, "None of the cases" in said.err) == (15, True)


def test_errors_are_json_for_programs(site_command: Run, tmp_path: Path) -> None:
    said = site_command("studies", tmp_path, "--json")
    assert said.code == 10
    assert set(said.json) == {"error", "message", "do"}
    assert said.json["error"] == "state"
    assert site_command("no-such-command").code == 2


def test_run_keeps_the_two_processes(
    site_command: Run, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Quiet:
        def __init__(self, children: Any, *, told: Callable[[str, str, str], None]) -> None:
            seen.extend(child.name for child in children)
            assert all(str(site.folder) in " ".join(child.command) for child in children)
            self._told = told

        def run(self, *, on_tick: object) -> None:
            assert on_tick is None
            self._told("worker", "started", "1")

        def stop(self) -> None: ...

    monkeypatch.setattr(site_commands, "Supervisor", Quiet)
    monkeypatch.setattr(site_commands, "stop_on_signals", lambda _: None)
    said = site_command("run", site.folder)
    assert seen == ["supernode", "worker"]
    assert "north connects to 127.0.0.1:4433" in said.out
    assert "worker started (1)" in said.out


def test_run_before_join(site_command: Run, tmp_path: Path) -> None:
    site_command("request", tmp_path / "north", "--name", "north")
    said = site_command("run", tmp_path / "north")
    assert (said.code, "has not joined" in said.err) == (10, True)


def test_budget_and_audit(
    site_command: Run, site: Site, consortium: Consortium, protocol: StudyProtocol
) -> None:
    approve(site, consortium, protocol)
    offer(site, consortium, tiny_protocol(study="bare", privacy={"mode": "none"}))
    weights = round_training.starting_weights(protocol)
    for kind in ("train", "evaluate"):
        content = order(consortium.identity, protocol, kind, number=1, weights=weights)
        answer(Participation(site), content)
    said = site_command("budget", site.folder)
    assert "WITHOUT PRIVACY" in said.out
    assert "all studies" in said.out
    found = site_command("budget", site.folder, "--json").json
    assert found["all_studies"]["steps_spent"] == 2

    said = site_command("audit", site.folder)
    assert "What left this hospital" in said.out
    assert "weight update" in said.out
    assert "The journal is whole" in said.out
    found = site_command("audit", site.folder, "--all", "--json").json
    assert [one["what"] for one in found["left"]] == [
        "weight update",
        "exact Dice of the validation patients",
    ]
    assert found["head"] == site.journal.head
    assert found["entries"] == len(found["shown"])

    path = site.folder / "journal.jsonl"
    path.write_text(path.read_text().replace("Dr. Tamm", "Dr. Nobody"))
    said = site_command("audit", site.folder)
    assert (said.code, "damaged or was changed" in said.err) == (10, True)


def test_install(site_command: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cohort with enough patients, then one whose parts have one patient each."""
    few = round_training.read_split(world.site, world.model().protocol)
    many = Split(few.train[:1], few.train[1:], few.train[1:])  # of four patients
    monkeypatch.setattr(round_training, "read_split", lambda *_: many)
    said = site_command("install", world.site.folder, world.releases[0])
    assert (said.code, "verified, installed and active" in said.out) == (0, True)
    assert "calibrated on 3 validation patients" in said.out
    path = world.site.folder / "models" / "active.json"
    active = json.loads(path.read_text())
    active["scores"]["dice"] = {"WT": 1.0, "TC": 1.0, "ET": 1.0}
    path.write_text(json.dumps(active))
    said = site_command("install", world.site.folder, world.releases[1])
    assert (said.code, "not active: the active model scores better" in said.err) == (0, True)
    found = site_command("install", world.site.folder, world.releases[1], "--json").json
    assert (found["active"], found["patients"]) == (False, 3)
    assert found["model"]["version"] == "1.0.2"
    assert found["calibration"]["patients"] == 3
    assert set(found["calibration"]["temperatures"]) == {"WT", "TC", "ET"}
    before = found["calibration"]["calibration_error"]["before"]
    assert found["calibration"]["calibration_error"]["after"]["WT"] <= before["WT"]

    monkeypatch.setattr(round_training, "read_split", lambda *_: few)
    said = site_command("install", world.site.folder, world.releases[1])
    assert "not active: it was scored on one patient of this site, and it takes 3" in said.err
    assert "are not calibrated: that takes 3 validation patients, and this site has 1" in said.out
    said = site_command("install", world.site.folder, world.releases[1], "--activate")
    assert "active." in said.out
    assert "how well it does here is not known" in said.err
    (world.release / "card.md").write_text("")
    assert site_command("install", world.site.folder, world.release).code == 18


@pytest.fixture
def small_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "write_cohort", functools.partial(write_cohort, size=24))
    small = rehearsal.MEASURED.model_copy(update={"crop_size": (16, 16, 16)})
    monkeypatch.setattr(rehearsal, "MEASURED", small)


@pytest.mark.usefixtures("small_phantoms")
def test_rehearse(site_command: Run, site: Site, tmp_path: Path) -> None:
    said = site_command("rehearse", site.folder, "--patients", 2)
    assert (said.code, "One private step on" in said.out) == (0, True)
    found = site_command("rehearse", tmp_path / "new", "--patients", 2, "--json").json
    assert found["folder"] == str(tmp_path / "new" / "rehearsal")
    assert site_command("rehearse", site.folder, "--patients", 0).code == 2


def test_phantoms(site_command: Run, tmp_path: Path) -> None:
    said = site_command("phantoms", tmp_path / "p", "--patients", 1, "--size", 24)
    assert "1 synthetic patients" in said.out
    assert len(read_cohort(tmp_path / "p").cases) >= 1
    assert site_command("phantoms", tmp_path / "q", "--profile", "none").code == 2
    assert site_command("phantoms", tmp_path / "q", "--size", 3).code == 15


@pytest.mark.usefixtures("small_phantoms")
def test_pretrain_and_train_alone_and_evaluate(
    site_command: Run, site: Site, consortium: Consortium, tmp_path: Path
) -> None:
    protocol = tiny_protocol()
    draft = tmp_path / "draft.toml"
    draft.write_text(toml(protocol))
    start = tmp_path / "start.safetensors"
    said = site_command(
        "pretrain",
        draft,
        "--out",
        start,
        "--work",
        tmp_path / "work",
        "--patients",
        8,
        "--steps",
        3,
    )
    assert (said.code, "Dice on phantoms held out" in said.out) == (0, True)
    assert load_metadata(start)["steps"] == "3"
    offer(site, consortium, protocol)
    alone = tmp_path / "alone.safetensors"
    said = site_command("train-alone", site.folder, STUDY, "--initial", start, "--out", alone)
    assert (said.code, "keep it here" in said.out) == (0, True)
    assert load(alone).keys() == load(start).keys()
    both = ("--weights", start, "--weights", alone)
    said = site_command("evaluate", site.folder, STUDY, *both)
    assert (said.code, "Dice on the test patients of north" in said.out) == (0, True)
    found = site_command("evaluate", site.folder, STUDY, *both, "--json").json
    assert [one["weights"] for one in found] == [str(start), str(alone)]
    assert all(set(one["dice"]) == {"WT", "TC", "ET"} for one in found)
    full = site_command("evaluate", site.folder, STUDY, *both, "--full", "--together", "--json")
    assert [one["weights"] for one in full.json] == [str(start), str(alone), "together"]
    assert [one["dice"] for one in full.json[:2]] == [one["dice"] for one in found]
    assert full.json[2]["scores"]["WT"].keys() >= {"hd95_mm", "lesion_dice", "surface_dice"}
    said = site_command("evaluate", site.folder, STUDY, *both, "--full")
    assert (said.code, "surface Dice" in said.out) == (0, True)
    asked = ("try-postprocessing", site.folder, STUDY, "--weights", alone)
    said = site_command(*asked)
    assert (said.code, "[postprocessing]" in said.out) == (0, True)
    tried = site_command(*asked, "--by", "dice", "--json").json
    assert (tried["by"], tried["cases"], set(tried["chosen"])) == (
        "dice",
        1,
        set(PostprocessingOptions.model_fields),
    )
    assert site_command(*asked, "--by", "luck").code == 2
    assert [e.event for e in site.journal.entries() if e.event == "sent"] == []


def test_evaluate_scores_what_is_the_sites_own(
    site_command: Run, site: Site, consortium: Consortium, tmp_path: Path
) -> None:
    protocol = tiny_protocol(training={"personal_lambda": 0.1})
    approve(site, consortium, protocol)
    weights = round_training.starting_weights(protocol)
    start = tmp_path / "start.safetensors"
    save(start, weights, {})
    asked = ("evaluate", site.folder, STUDY, "--weights", start, "--own", "--json")
    none = site_command(*asked)
    assert (none.code, none.json["error"]) == (10, "own")
    answer(
        Participation(site),
        order(consortium.identity, protocol, "train", number=1, weights=weights),
    )
    assert [one["weights"] for one in site_command(*asked).json] == [str(start), "personal model"]


def test_evaluate_names_weights_of_another_network(
    site_command: Run, site: Site, consortium: Consortium, tmp_path: Path
) -> None:
    offer(site, consortium, tiny_protocol())
    other = round_training.starting_weights(tiny_protocol(network={"size": "base"}))
    save(tmp_path / "other.safetensors", other, {})
    said = site_command("evaluate", site.folder, STUDY, "--weights", tmp_path / "other.safetensors")
    assert said.code == 18


def test_health_tells_whether_the_site_runs(site_command: Run, site: Site) -> None:
    stopped = site_command("health", site.folder)
    assert stopped.code == StateError.exit_code
    assert "does not run" in stopped.err
    with held(site.lock, what="it runs"):
        assert "runs" in site_command("health", site.folder).out
