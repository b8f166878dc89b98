from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from common.errors import FederationError, GliofedError, ModelError, PrivacyError, StateError
from common.records.atomic_files import held
from common.records.weights import digest, load, save
from common.study.network_shapes import shapes
from common.study.protocol import NetworkOptions
from common.trust.identity import Identity, fingerprint
from server.commands import coordinator
from server.consortium.provisioning import Consortium
from server.rounds import study_scheduler
from server.rounds.study_scheduler import run_study
from tests import faulty_doors
from tests.certificates import expired, expiring
from tests.server.consortium.test_provisioning import handshake

Run = Callable[..., Result]


def words(result: Result) -> str:
    """What a command printed, on one line."""
    return " ".join(result.output.split())


@pytest.fixture
def run() -> Run:
    runner = CliRunner()

    def invoke(*arguments: Any, fails: type[BaseException] | None = None) -> Result:
        result = runner.invoke(coordinator.app, [str(a) for a in arguments])
        if fails is None:
            assert result.exit_code == 0, (result.output, result.exception)
        else:
            assert isinstance(result.exception, fails), (result.output, result.exception)
        return result

    return invoke


@pytest.fixture
def folder(world: Any) -> Path:
    path: Path = world.consortium.folder
    return path


@pytest.fixture
def served(folder: Path, world: Any) -> Any:
    """Whether somebody serves the consortium is not asked."""
    with held(Consortium.open(folder).lock, what="it is served"):
        yield


def finish(world: Any) -> None:
    study = world.consortium.study("demo")
    study.want("running")
    run_study(world.consortium, study, world.fleet)


def test_init(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    result = run("init", folder, "--name", "Gliomas", "--host", "fed.example.org", "--port", "9443")
    consortium = Consortium.open(folder)
    assert "Founded Gliomas. Hospitals will connect to fed.example.org:9443." in words(result)
    assert fingerprint(consortium.identity.public) in words(result)


@pytest.mark.parametrize("missing", ["--name", "--host", "--port"])
def test_init_needs_all_that_hospitals_need(run: Run, tmp_path: Path, missing: str) -> None:
    options = {"--name": "x", "--host": "localhost", "--port": "1"}
    del options[missing]
    arguments = [part for option in options.items() for part in option]
    assert run("init", tmp_path / "new", *arguments, fails=SystemExit).exit_code == 2


def test_admit(run: Run, world: Any, folder: Path) -> None:
    identity = Identity.create(world.folder / "a.key")
    request = world.request("a", identity)
    result = run("admit", folder, request, "--out", world.folder / "a.kit")
    assert fingerprint(identity.public) in words(result)
    assert (world.folder / "a.kit").exists()


@pytest.mark.parametrize(("mode", "warned"), [('"patient-dp"', False), ('"none"', True)])
def test_study(run: Run, world: Any, folder: Path, mode: str, warned: bool) -> None:
    result = run("study", folder, world.protocol_file(privacy__mode=mode))
    digest = world.consortium.study("demo").protocol.digest
    assert f"Published demo, protocol {digest[:16]}." in words(result)
    assert ("WITHOUT differential privacy" in words(result)) is warned


def test_serve(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    class Fake:
        def __init__(self, children: Any, *, told: Callable[[str, str, str], None]) -> None:
            started.extend(child.name for child in children)
            self.told = told

        def run(self, *, on_tick: Callable[[], None]) -> None:
            on_tick()
            self.told("gateway", "started", "7")

    monkeypatch.setattr(coordinator, "Supervisor", Fake)
    monkeypatch.setattr(coordinator, "stop_on_signals", lambda _supervisor: None)
    monkeypatch.setattr(coordinator.coordinator_supervisor, "probe", lambda _consortium, **_: None)
    (folder / "server.crt").write_bytes(expiring(folder, days=7))
    result = run("serve", folder)
    assert started == ["superlink", "gateway", "executor"]
    assert "Serving Gliomas at localhost:9443" in words(result)
    assert "gateway started (7)" in words(result)
    assert "good for 6 days" in words(result)


def test_serve_starts_nothing_where_it_cannot_listen(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator.coordinator_supervisor, "_DYING_S", 0.0)
    with faulty_doors.listening() as listener:
        port = str(listener.getsockname()[1])
        folder = tmp_path / "c"
        listen = ("--listen", port)
        where = ("--host", "localhost", "--port", "443")
        result = run("init", folder, "--name", "G", *where, *listen)
        assert "let port 443 of localhost be forwarded to it" in words(result)
        run("serve", folder, fails=StateError)
    assert not (folder / "flower" / "hub").exists()


def test_address_shows_and_changes_what_hospitals_call(run: Run, world: Any, folder: Path) -> None:
    world.join("a")
    shown = words(run("address", folder))
    assert "Hospitals call localhost:9443; the gateway listens at 127.0.0.1:9443." in shown
    assert run("address", folder, "--port", "443", fails=SystemExit).exit_code == 2
    said = words(run("address", folder, "--listen", "127.0.0.1:8443", "--by", "Ada"))
    assert "localhost:9443; the gateway listens at 127.0.0.1:8443." in said
    assert "Keep the way" not in said
    said = words(run("address", folder, "--host", "FL.example.org", "--port", "443", "--by", "Ada"))
    assert "Hospitals call fl.example.org:443; the gateway listens at 127.0.0.1:8443." in said
    assert "Keep the way by localhost:9443 open until these sites" in said
    consortium = Consortium.open(folder)
    assert consortium.sites.without_kit() == {"a"}
    for name in ("localhost", "fl.example.org"):
        handshake(consortium, name)
    run("rotate-certificate", folder, "--by", "Ada")
    for name in ("localhost", "fl.example.org"):
        handshake(consortium, name)
    told = [facts["address"] for facts in world.events("address changed")]
    assert told == ["localhost:9443", "fl.example.org:443"]
    assert world.events("address changed")[-1]["listening"] == "127.0.0.1:8443"


def test_status_warns_of_a_certificate_that_ends(run: Run, folder: Path) -> None:
    assert "certificate" not in words(run("status", folder))
    (folder / "server.crt").write_bytes(expiring(folder, days=7))
    assert "good for 6 days" in words(run("status", folder))
    (folder / "server.crt").write_bytes(expired(folder))
    assert "rotate-certificate" in words(run("status", folder))


def test_serving_twice_is_refused(run: Run, folder: Path, served: None) -> None:
    run("serve", folder, fails=GliofedError)


def test_launch_without_waiting(run: Run, world: Any, folder: Path, served: None) -> None:
    world.publish()
    run("launch", folder, "demo", "--no-wait")
    assert world.consortium.study("demo").wanted == "running"
    assert world.names()[-1] == "study launched"


def test_launch_says_that_nobody_serves(run: Run, world: Any, folder: Path) -> None:
    world.publish()
    assert "Nothing serves this consortium" in words(run("launch", folder, "demo", "--no-wait"))


def weights_file(world: Any, file: str, value: float = 0.0, **network: Any) -> Path:
    """Write weights of a network: what a coordinator would give."""
    options = NetworkOptions(**network)
    path: Path = world.folder / f"{file}.safetensors"
    save(path, {n: np.full(s, value, np.float32) for n, s in shapes(options).items()}, {})
    return path


def test_a_study_with_starting_weights(run: Run, world: Any, folder: Path, served: None) -> None:
    world.join("a", "b", step=0.1)
    initial = weights_file(world, "initial", 4.0)
    said = words(run("study", folder, world.protocol_file(), "--initial", initial))
    study = world.consortium.study("demo")
    named = study.protocol.initial_sha256
    assert named == digest(load(initial))
    assert f"It starts from the weights {named[:16]}." in said
    run("study", folder, world.protocol_file(), "--initial", initial)  # is published, and stays so
    run("launch", folder, "demo", "--no-wait")
    finish(world)
    (started,) = world.events("study started")
    assert (started["source"], started["weights"]) == ("study --initial", named)
    result = run("launch", folder, "demo", "--no-wait", "--initial", initial)
    assert "starting weights stay" in words(result)
    assert "demo is finished" in words(result)
    assert study.wanted == "finished"


BAD = {
    "absent": lambda world: world.folder / "absent.safetensors",
    "nonsense": lambda world: world.protocol_file("nonsense"),
    "dynunet": lambda world: weights_file(world, "w", name="dynunet", size="tiny"),
    "nan": lambda world: weights_file(world, "w", np.nan),
}


@pytest.mark.parametrize("command", ["study", "launch"])
@pytest.mark.parametrize("bad", BAD)
def test_wrong_starting_weights_are_refused_at_once(
    run: Run, world: Any, folder: Path, command: str, bad: str
) -> None:
    path = BAD[bad](world)
    if command == "study":
        run("study", folder, world.protocol_file(), "--initial", path, fails=ModelError)
        assert world.consortium.studies() == []
        assert world.names() == []
        return
    study = world.publish()
    run("launch", folder, "demo", "--no-wait", "--initial", path, fails=ModelError)
    assert study.wanted == "published"


def test_launch_takes_the_signed_weights_only(run: Run, world: Any, folder: Path) -> None:
    good, other = weights_file(world, "good"), weights_file(world, "other", 1.0)
    run("study", folder, world.protocol_file(), "--initial", good)
    study = world.consortium.study("demo")
    launch = ("launch", folder, "demo", "--no-wait")
    refused = run(*launch, "--initial", other, fails=StateError)
    assert "are not those that the protocol of demo names" in str(refused.exception)
    study.initial.unlink()
    lost = run(*launch, fails=StateError)
    assert "`gliofed-server launch --initial FILE` puts them back" in str(lost.exception)
    save(study.initial, load(other), {})
    run(*launch, fails=StateError)
    assert study.wanted == "published"
    run(*launch, "--initial", good)
    assert study.wanted == "running"
    assert digest(load(study.initial)) == study.protocol.initial_sha256


def test_a_study_without_starting_weights_is_launched_without(
    run: Run, world: Any, folder: Path
) -> None:
    study = world.publish()
    given = weights_file(world, "w")
    refused = run("launch", folder, "demo", "--no-wait", "--initial", given, fails=StateError)
    assert "gliofed-server study DIR PROTOCOL.toml --initial FILE" in str(refused.exception)
    assert (study.wanted, study.initial.exists()) == ("published", False)


def in_background(world: Any) -> threading.Thread:
    """Run the study as soon as it is wanted, as the executor would."""

    def work() -> None:
        study = world.consortium.study("demo")
        for _ in range(400):
            if study.wanted == "running":
                run_study(world.consortium, study, world.fleet)
                return
            threading.Event().wait(0.02)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        threading.Event().wait(0.02)

    class Time:
        pass

    Time.sleep = staticmethod(sleep)  # type: ignore[attr-defined]
    monkeypatch.setattr(coordinator, "time", Time)


def test_launch_follows_a_study_to_its_end(
    run: Run, world: Any, folder: Path, served: None, quick: None
) -> None:
    world.join("a", "b")
    world.publish(privacy__mode='"none"')
    thread = in_background(world)
    result = run("launch", folder, "demo")
    thread.join()
    for part in ("study launched", "round opened: round 1", "round closed: round 2", "finished"):
        assert part in words(result)
    assert "WITHOUT differential privacy" in words(result)


def test_launch_fails_with_what_paused_the_study(
    run: Run,
    world: Any,
    folder: Path,
    served: None,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # By the clock of the tests: three failed rounds pause in earnest else.
    monkeypatch.setattr(study_scheduler, "_rounds", lambda *_: world.rounds())
    world.join("a", "b")
    world.publish()
    world.rounds().offer({})
    world.hospitals["b"].refuses = PrivacyError("no")
    thread = in_background(world)
    result = run("launch", folder, "demo", fails=FederationError)
    thread.join()
    assert "missed its quorum 3 times" in str(result.exception)


def test_a_study_that_ends_before_it_is_followed_is_seen(
    run: Run, world: Any, folder: Path, served: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.join("a", "b")
    world.publish()
    original = coordinator._follow

    def late(*arguments: Any, **options: Any) -> None:
        finish(world)
        original(*arguments, **options)

    monkeypatch.setattr(coordinator, "_follow", late)
    assert "study finished" in words(run("launch", folder, "demo"))


def test_stop(run: Run, world: Any, folder: Path) -> None:
    world.join("a", "b")
    study = world.publish()
    study.want("running")
    assert "demo stops" in words(run("stop", folder, "demo"))
    assert study.wanted == "stopped"
    finish(world)
    run("stop", folder, "demo", fails=GliofedError)


def test_status_tells_everything(run: Run, world: Any, folder: Path) -> None:
    world.join("a", "b", "c")
    world.join("d", approves=False)
    world.publish()
    world.rounds().offer({})
    world.hospitals["c"].refuses = PrivacyError("The budget is spent.", code="privacy-cap")
    finish(world)
    result = words(run("status", folder))
    for part in (
        "Gliomas at localhost:9443; sites: a, b, c, d",
        "state finished, rounds 2/2, approved by a, b, c",
        "c declined: The budget is spent.",
        "d declined: not-approved",
        "Rounds",
        "c (privacy-cap)",
        "Dice on the sites' validation patients",
        "0.250",
        "Privacy spent per patient",
        "2.000",
    ):
        assert part in result
    assert "WITHOUT" not in result


def test_status_of_a_paused_study_without_privacy(run: Run, world: Any, folder: Path) -> None:
    world.join("a")
    world.publish(privacy__mode='"none"')
    with suppress(FederationError):
        world.consortium.study("demo").want("stopped")
        world.consortium.journal.append(
            "study paused", study="demo", code="quorum", reason="Too few."
        )
    result = words(run("status", folder, "demo"))
    assert "WITHOUT differential privacy" in result
    assert "state paused, rounds 0/2, approved by nobody yet" in result
    assert "Too few." in result


def test_status_of_an_empty_consortium(run: Run, folder: Path) -> None:
    assert "sites: none yet" in words(run("status", folder))


def test_status_as_json(run: Run, world: Any, folder: Path) -> None:
    world.join("a", "b")
    world.publish()
    finish(world)
    for arguments in ((), ("demo",)):
        value = json.loads(run("status", folder, *arguments, "--json").stdout)
        assert value["consortium"] == "Gliomas"
        assert value["sites"] == ["a", "b"]
        assert [study["state"] for study in value["studies"]] == ["finished"]


def test_release(run: Run, world: Any, folder: Path, tmp_path: Path) -> None:
    world.join("a", "b")
    world.publish()
    finish(world)
    result = run("release", folder, "demo", "--out", tmp_path / "model", "--round", "1")
    assert "Released demo 1.0.1 (round 1)" in words(result)
    assert (tmp_path / "model" / "release.json").exists()


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    result = run(fails=SystemExit)
    commands = "init admit study serve launch stop status report suspend restore release simulate"
    for command in commands.split():
        assert command in result.output


FAILURES: list[tuple[list[str], int, str]] = [
    (["status", "nowhere"], 10, "state"),
    (["status", "HERE", "absent"], 10, "state"),
    (["admit", "HERE", "nothing.json", "--out", "kit"], 10, "state"),
    (["admit", "HERE", "statement.json", "--out", "kit"], 11, "identity"),
    (["study", "HERE", "nothing.toml"], 12, "protocol"),
    (["launch", "HERE", "absent", "--no-wait"], 10, "state"),
    (["stop", "HERE", "absent"], 10, "state"),
    (["release", "HERE", "absent", "--out", "model"], 10, "state"),
    (["report", "HERE", "absent"], 10, "state"),
    (["suspend", "HERE", "absent", "--by", "x", "--why", "y"], 10, "no-site"),
    (["restore", "HERE", "absent", "--by", "x"], 10, "not-suspended"),
    (["simulate", "nothing.toml", "--sites", "3", "--parameters", "9"], 12, "protocol"),
    (["init", "HERE", "--name", "x", "--host", "localhost", "--port", "1"], 10, "state"),
    (["init", "new", "--name", "x", "--host", "localhost", "--port", "0"], 10, "state"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    FAILURES,
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_failures_end_with_their_exit_code(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "statement.json").write_text("{}")
    given = [str(folder) if argument == "HERE" else argument for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["gliofed-server", *given])
    with pytest.raises(SystemExit) as caught:
        coordinator.main()
    assert caught.value.code == code
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: ")
    assert "What to do: " in printed.err
    assert "Traceback" not in printed.err
    assert said


def test_a_failure_is_json_where_json_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gliofed-server", "status", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as caught:
        coordinator.main()
    assert caught.value.code == 10
    assert json.loads(capsys.readouterr().out)["error"] == "state"


def test_status_names_who_did_not_approve_and_who_is_suspended(
    run: Run, world: Any, folder: Path
) -> None:
    world.join("a", "b")
    world.join("d", approves=False)
    world.publish()
    finish(world)
    run("suspend", folder, "b", "--by", "Dr. Tamm", "--why", "odd updates")
    result = words(run("status", folder))
    assert "approved by a, b; not by d" in result
    assert "b is suspended: odd updates." in result
    value = json.loads(run("status", folder, "--json").stdout)
    assert value["suspended"] == {"b": "odd updates"}


def test_suspend_and_restore(run: Run, world: Any, folder: Path) -> None:
    world.join("a", "b", "c")
    world.publish()
    world.rounds().offer({})
    out = words(run("suspend", folder, "c", "--by", "Dr. Tamm", "--why", "odd updates"))
    assert "c is out from the next round on" in out
    finish(world)
    assert [e["took_part"] for e in world.events("round closed")] == [["a", "b"]] * 2
    assert "c takes part again" in words(run("restore", folder, "c", "--by", "Dr. Sild"))
    (suspended,) = world.events("site suspended")
    (restored,) = world.events("site restored")
    assert suspended == {"site": "c", "by": "Dr. Tamm", "why": "odd updates"}
    assert restored == {"site": "c", "by": "Dr. Sild"}
    assert world.consortium.sites.suspended() == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ("suspend", "z", "--by", "x", "--why", "y"),
        ("restore", "z", "--by", "x"),
        ("restore", "a", "--by", "x"),
    ],
)
def test_only_sites_that_are_there_are_suspended_or_restored(
    run: Run, world: Any, folder: Path, arguments: tuple[str, ...]
) -> None:
    world.join("a")
    command, *rest = arguments
    run(command, folder, *rest, fails=GliofedError)
    assert not world.events("site suspended", "site restored")


@pytest.mark.parametrize("missing", ["--by", "--why"])
def test_a_suspension_has_a_name_and_a_reason(run: Run, folder: Path, missing: str) -> None:
    options = {"--by": "x", "--why": "y"}
    del options[missing]
    given = [part for option in options.items() for part in option]
    assert run("suspend", folder, "a", *given, fails=SystemExit).exit_code == 2


def test_report_on_the_terminal(run: Run, world: Any, folder: Path) -> None:
    world.join("a", "b")
    world.join("d", approves=False)
    world.publish()
    finish(world)
    result = words(run("report", folder, "demo"))
    assert "Study demo is finished: 2 of 2 rounds closed. Admitted but never approved: d." in result
    assert "## Fairness" in result


def test_report_into_a_folder(run: Run, world: Any, folder: Path, tmp_path: Path) -> None:
    world.join("a", "b")
    world.publish()
    finish(world)
    out = tmp_path / "new" / "report"
    result = words(run("report", folder, "demo", "--out", out))
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o600}
    assert "Every admitted site took part in every closed round. Written to" in result
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "![Curves of the study](report.png)" in (out / "report.md").read_text()
    kept = json.loads((out / "report.json").read_text())
    said = json.loads(run("report", folder, "demo", "--out", out, "--json").stdout)
    assert kept == said
    assert [one["state"] for one in said["attempts"]] == ["closed", "closed"]
