"""What earlier releases left on disks is opened, and their studies go on."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from client.clinic.released_model import open_model
from client.privacy.budget_caps import open_ledger
from client.runtime.order_handler import Participation
from client.site.folder import Site
from common.errors import StateError
from common.records import format_versions
from common.records.journal import Journal, _sealed
from common.study.protocol import RELEASE
from common.trust.identity import Statement
from server.consortium.provisioning import Consortium
from tests import consortia

ARCHIVES = sorted(Path(__file__).parent.glob("fixtures/formats/*.tar.xz"))


def test_there_are_fixtures() -> None:
    assert ARCHIVES


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_a_study_of_an_earlier_release_goes_on(archive: Path, tmp_path: Path, cohort: Path) -> None:
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    settings = tmp_path / "north" / "site.toml"
    lines = settings.read_text().splitlines()
    settings.write_text(
        "\n".join(f'data = "{cohort}"' if line.startswith("data =") else line for line in lines)
    )
    consortium, site = Consortium.open(tmp_path / "coordinator"), Site.open(tmp_path / "north")
    (study,) = consortium.studies()
    assert len(consortium.journal.events("round closed")) == 1
    with open_ledger(site) as ledger:
        before = sum(fact.steps for fact in ledger.facts())
    assert before
    consortia.rounds(consortium, study.protocol.study, {"north": Participation(site)}).run()
    rounds = [entry.facts["round"] for entry in consortium.journal.events("round closed")]
    assert rounds == [1, 2]
    with open_ledger(site) as ledger:
        assert sum(fact.steps for fact in ledger.facts()) > before
    released = open_model(tmp_path / "release", signer=site.coordinators)
    assert released.card["round"] == 1


def _fixture(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVES[-1]) as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path


def _newer_settings(root: Path) -> None:
    path = root / "north" / "site.toml"
    path.write_text("format = 2\n" + path.read_text())


def _newer_consortium(root: Path) -> None:
    path = root / "coordinator" / "consortium.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3}))


def _newer_journal(root: Path) -> None:
    path = root / "coordinator" / "journal.jsonl"
    last = list(Journal(path).entries())[-1]
    record = {
        "format": 2,
        "n": last.number + 1,
        "time": last.time,
        "event": "something new",
        "facts": {},
        "previous": last.hash,
    }
    with path.open("ab") as file:
        file.write(_sealed(record) + b"\n")


def _newer_release(root: Path) -> None:
    path = root / "release" / "release.json"
    coordinator = Consortium.open(root / "coordinator").identity
    body = Statement.load(path, what="release").opened(kind=RELEASE, signer=coordinator.public)
    path.write_text(coordinator.sign(RELEASE, {**body, "format": 2}).dumps())


NEWER: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    "site settings": (_newer_settings, lambda root: Site.open(root / "north")),
    "consortium": (_newer_consortium, lambda root: Consortium.open(root / "coordinator")),
    "journal": (
        _newer_journal,
        lambda root: Consortium.open(root / "coordinator").journal.events("study finished"),
    ),
    "journal's end": (
        _newer_journal,
        lambda root: Consortium.open(root / "coordinator").journal.append("x"),
    ),
    "model": (_newer_release, lambda root: open_model(root / "release")),
}


@pytest.mark.parametrize("kind", NEWER)
def test_what_a_newer_release_wrote_is_refused_and_left_as_it_is(kind: str, tmp_path: Path) -> None:
    root = _fixture(tmp_path)
    change, opened = NEWER[kind]
    change(root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(StateError, match="install that version or later") as refused:
        opened(root)
    assert refused.value.code == "format-newer"
    assert {path: path.read_bytes() for path in before} == before


def test_files_of_an_older_format_are_migrated_as_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _fixture(tmp_path)
    consortium = Consortium.open(root / "coordinator")
    monkeypatch.setitem(format_versions.NEWEST, "consortium", 4)
    steps = {
        **format_versions.MIGRATIONS["consortium"],
        2: lambda old: {**old, "name": old["name"] + " two"},
        3: lambda old: {**old, "name": old["name"] + " three"},
    }
    monkeypatch.setitem(format_versions.MIGRATIONS, "consortium", steps)
    migrated = Consortium.open(root / "coordinator")
    assert migrated.settings.name == consortium.settings.name + " two three"
