"""Both sides are backed up, destroyed and restored between rounds: the study goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.commands import backup
from client.commands import site as site_commands
from client.privacy.budget_caps import open_ledger
from client.runtime.order_handler import Participation
from client.site import stop
from client.site.folder import Site
from client.study import restore_reconciliation
from common.backup import folder_backup
from common.errors import ConsentError, FederationError, GliofedError, StateError
from common.messages.wire_format import Content, unpack_order
from common.records.atomic_files import held
from common.records.weights import Arrays, digest
from server.commands import backup as server_keeping
from server.consortium.provisioning import Consortium
from tests import consortia
from tests.consortia import STUDY, events

PASSPHRASE = b"correct horse battery"


class _OffError(Exception):
    """A machine is switched off."""


def until(site: Site, kind: str, number: int) -> Callable[[Content], Content]:
    """Return a hospital that is switched off when it is ordered ``kind`` of round ``number``."""
    hospital = Participation(site)

    def answer(content: Content) -> Content:
        order, _ = unpack_order(consortia.copied(content))
        if (order.kind, order.round) == (kind, number):
            raise _OffError
        return hospital.answer(content)

    return answer


def run_until(consortium: Consortium, site: Site, kind: str, number: int) -> None:
    with pytest.raises(_OffError):
        consortia.rounds(consortium, STUDY, {"north": until(site, kind, number)}).run()


def go_on(consortium: Consortium, site: Site) -> None:
    consortia.rounds(consortium, STUDY, {"north": Participation(site)}).run()


def steps(site: Site) -> list[tuple[str, int, int, str]]:
    with open_ledger(site) as ledger:
        return [(fact.purpose, fact.round, fact.steps, fact.state) for fact in ledger.facts()]


def final(consortium: Consortium) -> Arrays:
    closed = consortium.journal.events("round closed")[-1].facts
    return consortium.study(STUDY).load(int(closed["round"]), str(closed["weights"]))


@pytest.fixture
def begun(consortium: Consortium, site: Site) -> tuple[Consortium, Site]:
    """A study without noise, so that two runs end with the same bits, after its first round."""
    site = consortia.edit(site, "allow_without_privacy = false", "allow_without_privacy = true")
    protocol = consortia.publish(
        consortium, consortia.tiny_protocol(rounds=3, privacy={"mode": "none"})
    )
    consortia.approve(site, consortium, protocol)
    run_until(consortium, site, "evaluate", 1)
    return consortium, site


@pytest.fixture
def private(consortium: Consortium, site: Site) -> tuple[Consortium, Site]:
    protocol = consortia.publish(consortium, consortia.tiny_protocol(rounds=3))
    consortia.approve(site, consortium, protocol)
    run_until(consortium, site, "evaluate", 1)
    return consortium, site


def saved(consortium: Consortium, site: Site, to: Path) -> tuple[Path, Path]:
    folder_backup.write(server_keeping.source(consortium), to / "c.backup", passphrase=PASSPHRASE)
    folder_backup.write(backup.source(site), to / "s.backup", passphrase=None)
    return to / "c.backup", to / "s.backup"


def test_both_sides_restored_between_rounds_end_as_if_nothing_had_happened(
    private: tuple[Consortium, Site], tmp_path: Path
) -> None:
    consortium, site = private
    ours, theirs = saved(consortium, site, tmp_path)
    before = steps(site)
    shutil.rmtree(consortium.folder)
    shutil.rmtree(site.folder)
    consortium = server_keeping.restore(ours, tmp_path / "c2", passphrase=PASSPHRASE)
    site = backup.restore(theirs, tmp_path / "s2", data=site.data)
    assert steps(site) == before
    go_on(consortium, site)
    assert [e.facts["round"] for e in consortium.journal.events("round closed")] == [1, 2, 3]
    assert consortium.journal.events("study finished")
    assert [s for s in steps(site) if s[3] == "reserved"] == [], "nothing was charged twice"
    assert sum(s[2] for s in steps(site)) == 3 * 2
    (settled,) = events(site, restore_reconciliation.SETTLED)
    assert settled["charged"] == []
    assert restore_reconciliation.pending(site) is None
    assert not list(site.folder.rglob("*.key.*"))
    assert (site.folder / "keys" / "identity.key").stat().st_mode & 0o777 == 0o600


def test_what_a_site_spent_after_its_backup_is_charged_when_it_is_restored(
    private: tuple[Consortium, Site], tmp_path: Path
) -> None:
    consortium, site = private
    _, theirs = saved(consortium, site, tmp_path)
    run_until(consortium, site, "train", 3)
    with open_ledger(site) as ledger:
        true = ledger.spent(1e-5).epsilon
    shutil.rmtree(site.folder)
    site = backup.restore(theirs, tmp_path / "s2", data=site.data)
    with open_ledger(site) as ledger:
        assert ledger.spent(1e-5).epsilon < true, "the backup does not know"
    go_on(consortium, site)
    assert consortium.journal.events("study finished")
    assert consortium.journal.events("site declined")[-1].facts["code"] == "restored"
    spent = [s for s in steps(site) if s[0] == "training"]
    # Round 3 was given before the disk was lost, and may have been answered: it counts twice.
    assert [(n, s) for _, n, s, state in spent if state == "reserved"] == [(2, 2), (3, 2)]
    with open_ledger(site) as ledger:
        assert ledger.spent(1e-5).epsilon >= true
    assert events(site, restore_reconciliation.SETTLED)[0]["lost_head"]


def test_a_site_moves_and_its_old_folder_works_no_more(
    private: tuple[Consortium, Site], tmp_path: Path
) -> None:
    consortium, site = private
    moved = tmp_path / "moving.backup"
    command = ["backup", str(site.folder), "--to", str(moved), "--retire"]
    with held(site.lock, what="it runs"):
        running = CliRunner().invoke(site_commands.app, command)
    assert isinstance(running.exception, StateError)
    assert running.exception.code == "in-use"
    assert not site.retired.exists()
    assert CliRunner().invoke(site_commands.app, command).exit_code == 0
    start = CliRunner().invoke(site_commands.app, ["run", str(site.folder)])
    assert isinstance(start.exception, ConsentError)
    assert "old folder" in start.exception.message
    with pytest.raises(ConsentError) as refused:
        stop.check_not_halted(site)
    assert refused.value.code == stop.RETIRED

    elsewhere = backup.restore(moved, tmp_path / "elsewhere", data=site.data)
    go_on(consortium, elsewhere)
    assert consortium.journal.events("study finished")
    assert sum(s[2] for s in steps(elsewhere)) == 3 * 2
    (settled,) = events(elsewhere, restore_reconciliation.SETTLED)
    assert settled["charged"] == []

    again = tmp_path / "again.backup"
    folder_backup.write(backup.source(site), again, passphrase=None)
    third = backup.restore(again, tmp_path / "third", data=site.data)
    assert not third.retired.exists()


def test_a_person_charges_where_no_account_comes(
    private: tuple[Consortium, Site], tmp_path: Path
) -> None:
    consortium, site = private
    _, theirs = saved(consortium, site, tmp_path)
    site = backup.restore(theirs, tmp_path / "s2", data=site.data)
    with pytest.raises(GliofedError, match="person's name"):
        restore_reconciliation.charge_by_hand(site, {STUDY: 1}, by=" ")
    assert [
        c["steps"] for c in restore_reconciliation.charge_by_hand(site, {STUDY: 1}, by="Dr. Tamm")
    ] == [2]
    with pytest.raises(StateError, match="nothing to settle"):
        restore_reconciliation.charge_by_hand(site, {STUDY: 1}, by="Dr. Tamm")
    go_on(consortium, site)
    assert events(site, restore_reconciliation.SETTLED)[0]["by"] == "Dr. Tamm"
    assert sum(s[2] for s in steps(site)) == 4 * 2


def test_a_restored_coordinator_pauses_when_a_site_knows_more(
    private: tuple[Consortium, Site], tmp_path: Path
) -> None:
    consortium, site = private
    ours, _ = saved(consortium, site, tmp_path)
    run_until(consortium, site, "train", 3)
    before = steps(site)
    shutil.rmtree(consortium.folder)
    consortium = server_keeping.restore(ours, tmp_path / "c2", passphrase=PASSPHRASE)
    with pytest.raises(FederationError, match="rounds were lost") as paused:
        go_on(consortium, site)
    assert paused.value.code == "restored"
    assert steps(site) == before, "no patient was touched"
    server_keeping.accept_loss(consortium.folder, by="Ada", why="no newer backup")
    go_on(consortium, site)
    assert consortium.journal.events("study finished")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-11000], "cut short"),  # beyond the padding of a tar
        (lambda data: data[:700] + bytes([data[700] ^ 1]) + data[701:], "changed|other files"),
        (lambda data: b"x" + data, "no backup that gliofed made"),
        (lambda data: data.replace(b'"format": 1', b'"format": 9', 1), "newer gliofed wrote it"),
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda _: b"", "no backup"),
    ],
)
@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_a_damaged_backup_is_refused_and_nothing_is_written(
    site: Site,
    tmp_path: Path,
    change: Callable[[bytes], bytes],
    words: str,
    passphrase: bytes | None,
) -> None:
    path = tmp_path / "s.backup"
    folder_backup.write(backup.source(site), path, passphrase=passphrase)
    assert folder_backup.verify(path, kind="site", passphrase=passphrase).name == "north"
    path.write_bytes(change(path.read_bytes()))
    if passphrase is not None:
        words += "|passphrase does not open"
    with pytest.raises(GliofedError, match=words):
        backup.restore(path, tmp_path / "s2", data=None, passphrase=passphrase)
    assert not (tmp_path / "s2").exists()
    assert not list(tmp_path.glob(".*restoring"))


def test_what_does_not_fit_is_refused_with_words(
    consortium: Consortium, site: Site, tmp_path: Path
) -> None:
    ours, theirs = saved(consortium, site, tmp_path)
    with pytest.raises(GliofedError, match="passphrase does not open"):
        server_keeping.restore(ours, tmp_path / "n", passphrase=b"wrong horse battery")
    with pytest.raises(GliofedError, match="is encrypted"):
        server_keeping.restore(ours, tmp_path / "n")
    with pytest.raises(GliofedError, match="backup of a site"):
        server_keeping.restore(theirs, tmp_path / "n")
    with pytest.raises(GliofedError, match="signed by"):
        backup.restore(theirs, tmp_path / "n", data=None, signed_by="0000-0000-0000-0000-0000")
    with pytest.raises(GliofedError, match="is not empty"):
        backup.restore(theirs, site.folder, data=None)
    with pytest.raises(GliofedError, match="exists already"):
        folder_backup.write(backup.source(site), theirs, passphrase=None)
    assert not (tmp_path / "n").exists()


def test_no_image_is_in_a_backup(site: Site, tmp_path: Path) -> None:
    (site.folder / "cache").mkdir(exist_ok=True)
    (site.folder / "cache" / "scan.npy").write_bytes(b"image")
    (site.folder / "look").mkdir()
    (site.folder / "look" / "quality.html").write_text("a patient")
    (site.folder / "stopped.json").write_text("{}")
    made = folder_backup.write(backup.source(site), tmp_path / "s.backup", passphrase=None)
    assert {"cache", "look"} <= set(made.left_out)
    assert {"stopped.json", "ledger.sqlite", "keys/patients.key"} <= made.files.keys()
    assert not [name for name in made.files if name.startswith(("cache", "look"))]


def test_a_folder_that_changes_while_it_is_copied_is_copied_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, times = folder_backup._write, []

    def write(*words: object) -> folder_backup.Manifest:
        made = real(*words)  # type: ignore[arg-type]
        times.append(1)
        if len(times) == 1:
            (site.folder / "request.json").write_text("another")
        return made

    monkeypatch.setattr(folder_backup, "_write", write)
    made = folder_backup.write(backup.source(site), tmp_path / "s.backup", passphrase=None)
    assert len(times) == 2
    assert made.files["request.json"].size == len("another")


def test_a_full_disk_leaves_nothing(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.backup"
    folder_backup.write(backup.source(site), path, passphrase=None)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("common.backup.folder_backup.os.fsync", full)
    with pytest.raises(StateError, match="disk is full"):
        backup.restore(path, tmp_path / "s2", data=None)
    monkeypatch.undo()
    monkeypatch.setattr("common.backup.folder_backup._write", full)
    with pytest.raises(StateError, match="disk is full"):
        folder_backup.write(backup.source(site), tmp_path / "other.backup", passphrase=None)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "coordinator",
        "north",
        "north-kit.json",
        "s.backup",
    ]


def test_a_killed_restore_is_begun_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.backup"
    folder_backup.write(backup.source(site), path, passphrase=None)
    (tmp_path / ".s2.restoring" / "keys").mkdir(parents=True)
    (tmp_path / ".s2.restoring" / "keys" / "half").write_text("")
    assert backup.restore(path, tmp_path / "s2", data=tmp_path).data == tmp_path
    assert not (tmp_path / "s2" / "keys" / "half").exists()
    assert not (tmp_path / ".s2.restoring").exists()


def test_without_noise_the_bits_are_those_of_the_undisturbed_run(
    begun: tuple[Consortium, Site], tmp_path: Path
) -> None:
    consortium, site = begun
    ours, theirs = saved(consortium, site, tmp_path)
    go_on(consortium, site)
    undisturbed = digest(final(consortium))
    data = site.data
    shutil.rmtree(consortium.folder)
    shutil.rmtree(site.folder)
    consortium = server_keeping.restore(ours, tmp_path / "c2", passphrase=PASSPHRASE)
    site = backup.restore(theirs, tmp_path / "s2", data=data)
    go_on(consortium, site)
    assert digest(final(consortium)) == undisturbed
