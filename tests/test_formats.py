"""What earlier releases left on disks is opened, and their studies go on."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from client.inference.model import open_model
from client.participation import Participation
from client.site import Site
from client.spending import open_ledger
from server.provisioning import Consortium
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
