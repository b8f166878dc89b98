"""Who withdrew is used no more, and every round and model that saw the patient is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from client.cohort.case_discovery import read_cohort
from client.cohort.patient_split import split
from client.imaging.prepared_cache import PreparedCache
from client.site.folder import Site
from client.site.pseudonyms import patients_key, pseudonym, withdrawn
from client.study import round_training
from client.study.withdrawal import Descendant, StudyLineage, withdraw
from common.errors import CaseError, ConsentError, StateError
from common.records.atomic_files import held
from common.study.protocol import StudyProtocol
from tests.consortia import STUDY, World, edit, events

BY = "Dr. Tamm"


def install(world: World) -> None:
    """Put both releases where `gliofed-site install` puts them; the second is active."""
    folder = world.site.folder / "models"
    for number, release in enumerate(world.releases, start=1):
        shutil.copytree(release, folder / f"{STUDY}-1.0.{number}")
    (folder / "active.json").write_text(json.dumps({"folder": f"{STUDY}-1.0.2", "scores": {}}))


def names(site: Site, part: str) -> list[str]:
    """Return the patients of one part of the study's split, whoever withdrew."""
    cases = getattr(split(read_cohort(site.data), STUDY), part)
    return sorted({case.patient for case in cases})


def prepared(site: Site) -> int:
    return len(list(site.folder.rglob("*.prepared")))


def prepare_everybody(site: Site) -> None:
    """Training prepares who is drawn; who that was is chance."""
    cache = PreparedCache(site.folder / "cache", site.protocol(STUDY).preprocessing)
    for case in read_cohort(site.data).cases:
        cache.get(case)


def test_a_trained_patient_is_out_and_the_lineage_is_told(world: World) -> None:
    site, patient = world.site, names(world.site, "train")[0]
    install(world)
    prepare_everybody(site)
    before = round_training.training_patients(site, site.protocol(STUDY))
    cached = prepared(site)
    done = withdraw(site, patient, by=BY)

    hidden = pseudonym(patients_key(site), patient)
    assert (done.patient, done.again, done.in_cohort, done.running) == (hidden, False, True, False)
    assert withdrawn(site) == {hidden}
    after = round_training.training_patients(site, site.protocol(STUDY))
    assert set(after) == set(before) - {hidden}
    assert done.lineage == (StudyLineage(STUDY, training=(1, 2)),)
    assert done.models == (
        Descendant(f"{STUDY}-1.0.1", active=False, certain=True),
        Descendant(f"{STUDY}-1.0.2", active=True, certain=True),
    )
    scans = sum(case.patient == patient for case in read_cohort(site.data).cases)
    assert done.prepared_removed == cached - prepared(site) == scans > 0


def test_the_journal_says_it_without_the_name(world: World) -> None:
    site, patient = world.site, names(world.site, "train")[0]
    done = withdraw(site, patient, by=BY)
    (fact,) = events(site, "patient withdrawn")
    assert (fact["patient"], fact["by"]) == (done.patient, BY)
    assert fact["lineage"][0]["training"] == [1, 2]
    for path in ("journal.jsonl", "withdrawn.json"):
        assert patient not in (site.folder / path).read_text()


def test_a_second_withdrawal_says_since_when(world: World) -> None:
    site, patient = world.site, names(world.site, "train")[0]
    first = withdraw(site, patient, by=BY)
    second = withdraw(site, patient, by="Dr. Saar")
    assert (second.again, second.since, second.by) == (True, first.since, BY)
    assert (second.lineage, second.prepared_removed) == (first.lineage, 0)
    assert len(events(site, "patient withdrawn")) == 1


def test_a_patient_of_the_test_part_was_seen_by_nobody(world: World) -> None:
    install(world)
    done = withdraw(world.site, names(world.site, "test")[0], by=BY)
    assert (done.lineage, done.models) == ((), ())
    assert not round_training.read_split(world.site, world.site.protocol(STUDY)).test


def test_exact_dice_that_left_are_named(world: World) -> None:
    install(world)
    done = withdraw(world.site, names(world.site, "validation")[0], by=BY)
    assert done.lineage == (StudyLineage(STUDY, maybe_metrics=(1, 2)),)
    assert done.models == ()  # the model learned nothing from a score


@pytest.mark.parametrize("trains", [True, False])
def test_training_without_privacy_is_named_though_no_ledger_knows(
    world: World, trains: bool
) -> None:
    site, patient = world.site, names(world.site, "test")[0]
    cohort = read_cohort(site.data)

    def trained(study: str) -> bool:
        return patient in {case.patient for case in split(cohort, study).train}

    study = next(name for n in range(99) if trained(name := f"bare-{n}") == trains)
    site.journal.append("training", study=study, round=3, order="train", base="")
    expected = (StudyLineage(study, maybe_training=(3,)),) if trains else ()
    assert withdraw(site, patient, by=BY).lineage == expected


def test_a_patient_who_left_the_cohort_is_found_in_the_ledger(
    world: World, tmp_path: Path, own_cohort: Path
) -> None:
    site, patient = world.site, names(world.site, "train")[0]
    prepare_everybody(site)
    for case in read_cohort(own_cohort).cases:
        if case.patient == patient:
            shutil.rmtree(next(iter(case.images.values())).path.parent)
    site = edit(site, json.dumps(str(site.data)), json.dumps(str(own_cohort)))
    done = withdraw(site, patient, by=BY)
    assert (done.in_cohort, done.patient in withdrawn(site)) == (False, True)
    # Nobody knows any more in which part of the study the patient was.
    assert done.lineage == (StudyLineage(STUDY, training=(1, 2), maybe_metrics=(1, 2)),)
    # What nobody can tell apart goes: the copy's files are remembered under other names.
    assert done.prepared_removed >= 1


def test_an_empty_cohort_hinders_nobody(world: World, tmp_path: Path) -> None:
    site, patient = world.site, names(world.site, "train")[0]
    empty = tmp_path / "empty"
    empty.mkdir()
    site = edit(site, json.dumps(str(site.data)), json.dumps(str(empty)))
    assert prepared(site) > 0
    assert withdraw(site, patient, by=BY).lineage[0].training == (1, 2)
    assert prepared(site) == 0


def test_a_model_that_cannot_be_verified_counts_as_perhaps(world: World) -> None:
    install(world)
    (world.site.folder / "models" / f"{STUDY}-1.0.2" / "weights.safetensors").write_bytes(b"")
    done = withdraw(world.site, names(world.site, "test")[0], by=BY)
    assert done.models == (Descendant(f"{STUDY}-1.0.2", active=True, certain=False),)


def test_a_running_site_is_said_so(world: World) -> None:
    patient = names(world.site, "train")[0]
    with held(world.site.lock, what="test"):
        assert withdraw(world.site, patient, by=BY).running


@pytest.mark.parametrize("patient", ["Nobody", "", " "])
def test_an_unknown_patient_changes_nothing(world: World, patient: str) -> None:
    before = list(world.site.journal.entries())
    with pytest.raises(CaseError) as caught:
        withdraw(world.site, patient, by=BY)
    assert caught.value.code == "patient-unknown"
    assert "gliofed-site check" in caught.value.do
    assert list(world.site.journal.entries()) == before
    assert withdrawn(world.site) == frozenset()


@pytest.mark.parametrize("by", ["", "  ", "x" * 201])
def test_a_withdrawal_needs_a_person(world: World, by: str) -> None:
    with pytest.raises(ConsentError, match="person's name"):
        withdraw(world.site, names(world.site, "train")[0], by=by)
    assert withdrawn(world.site) == frozenset()


def test_nobody_is_withdrawn_when_the_journal_cannot_say_it(world: World) -> None:
    path = world.site.folder / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Tamm", b"Saar"))
    with pytest.raises(StateError, match="damaged"):
        withdraw(world.site, names(world.site, "train")[0], by=BY)
    assert withdrawn(world.site) == frozenset()


def test_a_site_that_never_trained(make_site: Callable[..., Site], protocol: StudyProtocol) -> None:
    site = make_site("south")
    done = withdraw(site, names(site, "train")[0], by=BY)
    assert (done.lineage, done.models, done.prepared_removed) == ((), (), 0)
