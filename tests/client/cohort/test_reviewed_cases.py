"""A reviewed case is trained on where the policy allows it, and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from client.cohort.case_discovery import Cohort, read_case
from client.cohort.patient_split import position, split
from client.cohort.reviewed_cases import hand_over, reviewed_cases, take_back
from client.cohort.series_decisions import cohort_of
from client.imaging.case import Case, Image
from client.imaging.nifti import read_volume
from client.privacy import budget_caps
from client.runtime.order_handler import Participation
from client.site.folder import Site
from client.site.pseudonyms import patients_key, pseudonym
from client.study import round_training
from client.study.withdrawal import withdraw
from common.errors import CaseError, ConsentError, StateError
from tests.consortia import STUDY, World, answer, approve, edit, events, order, tiny_protocol

OLD, NEW = "train_on_reviews = false", "train_on_reviews = true"


def named(train: bool, *, after: str = "REV", study: str = STUDY) -> str:
    """Return a patient who falls into training in a study, or who does not."""
    names = (f"{after}-{number:05d}" for number in range(1000))
    return next(name for name in names if (position(study, name) < 0.7) is train)


@pytest.fixture
def willing(world: World) -> Site:
    return edit(world.site, OLD, NEW)


def reviewed(site: Site, folder: Path, patient: str) -> tuple[Case, np.ndarray, np.ndarray]:
    """Return a case of a new patient, and a mask: almost a copy of one of the cohort."""
    source = min(path for path in site.data.iterdir() if path.is_dir())
    folder = folder / f"{patient}-000"
    folder.mkdir(parents=True)
    for path in source.glob("*.nii.gz"):
        role = path.name.rpartition("-")[2]
        image = nibabel.load(path)
        data = np.asanyarray(image.dataobj).copy()
        if role != "seg.nii.gz":
            data[0, 0, 0] += 1  # the same voxels would be the same patient
        made = nibabel.Nifti1Image(data, image.affine, image.header)
        nibabel.save(made, folder / f"{patient}-000-{role}")
    mask = read_volume(folder / f"{patient}-000-seg.nii.gz", dtype=np.uint8)
    (folder / f"{patient}-000-seg.nii.gz").unlink()
    return read_case(folder), mask.data, mask.affine


def given(site: Site, folder: Path, patient: str, **changes: object) -> Path:
    case, labels, affine = reviewed(site, folder, patient)
    words = {"decision": "corrected", "review": 1, **changes}
    return hand_over(site, case, labels, affine, **words)  # type: ignore[arg-type]


def test_it_is_in_the_next_round(world: World, willing: Site, tmp_path: Path) -> None:
    protocol = tiny_protocol(study="next")  # all rounds of the other one are done
    approve(willing, world.consortium, protocol)
    patient = named(True, study=protocol.study)
    before = round_training.training_patients(willing, protocol)
    place = given(willing, tmp_path / "clinic", patient)
    hidden = pseudonym(patients_key(willing), patient)
    after = round_training.training_patients(willing, protocol)
    assert set(after) == set(before) | {hidden}
    shutil.rmtree(tmp_path / "clinic")  # the site has its own copy
    report, arrays = answer(
        Participation(willing),
        order(
            world.consortium.identity,
            protocol,
            "train",
            number=1,
            weights=round_training.starting_weights(protocol),
        ),
    )
    assert arrays, report
    with budget_caps.open_ledger(willing) as ledger:
        assert hidden in ledger.patients(), "it was charged as any other patient"
    assert [one["case"] for one in events(willing, "review taken")] == [place.name]
    left = report.model_dump_json() + json.dumps(events(willing, "sent"), default=str)
    for word in (patient, place.name, "reviewed"):
        assert word not in left
    assert patient not in willing.journal.path.read_text()
    assert patient not in place.name


def test_without_the_policy_nothing_is_copied_or_used(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConsentError, match="does not train on reviewed") as caught:
        given(world.site, tmp_path / "a", named(True))
    assert "train_on_reviews" in caught.value.do
    assert not (world.site.folder / "reviewed").exists()
    site = edit(world.site, OLD, NEW)
    given(site, tmp_path / "b", named(True))
    assert len(reviewed_cases(site)) == 1
    closed = edit(site, NEW, OLD)
    assert reviewed_cases(closed) == ()
    assert all(not case.reviewed for case in cohort_of(closed).cases)


def test_a_rejected_case_and_one_of_a_withdrawn_patient_are_refused(
    willing: Site, tmp_path: Path
) -> None:
    with pytest.raises(CaseError) as caught:
        given(willing, tmp_path / "a", named(True), decision="rejected")
    assert caught.value.code == "case-rejected"
    patient = named(True)
    given(willing, tmp_path / "b", patient)
    done = withdraw(willing, patient, by="Dr. Tamm")
    assert (done.in_cohort, done.reviewed_removed) == (True, 1)
    assert reviewed_cases(willing) == ()
    with pytest.raises(CaseError) as caught:
        given(willing, tmp_path / "c", patient)
    assert caught.value.code == "withdrawn"


def test_a_later_review_takes_the_place_of_the_earlier(willing: Site, tmp_path: Path) -> None:
    patient = named(True)
    case, labels, affine = reviewed(willing, tmp_path / "a", patient)
    hand_over(willing, case, labels, affine, decision="accepted", review=1)
    labels = np.where(labels == 3, 1, labels).astype(np.uint8)
    hand_over(willing, case, labels, affine, decision="corrected", review=2)
    (found,) = reviewed_cases(willing)
    assert found.label is not None
    assert np.array_equal(read_volume(found.label, dtype=np.uint8).data, labels)
    assert len(list((willing.folder / "reviewed").iterdir())) == 1
    assert take_back(willing, case)
    assert not take_back(willing, case)
    assert reviewed_cases(willing) == ()


def test_a_disk_that_fills_leaves_the_earlier(
    willing: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, labels, affine = reviewed(willing, tmp_path / "a", named(True))
    place = hand_over(willing, case, labels, affine, decision="accepted", review=1)
    before = {path.name: path.read_bytes() for path in place.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("common.records.atomic_files.os.fsync", full)
    with pytest.raises(StateError, match="disk is full"):
        hand_over(willing, case, 0 * labels, affine, decision="corrected", review=2)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_a_damaged_one_is_refused(willing: Site, tmp_path: Path) -> None:
    place = given(willing, tmp_path / "a", named(True))
    (place / "case.json").write_text('{"format": 2}')
    with pytest.raises(StateError) as caught:
        cohort_of(willing)
    assert caught.value.code == "reviewed"


def test_the_hospitals_own_mask_stays(willing: Site, tmp_path: Path) -> None:
    own = next(case for case in cohort_of(willing).labelled)
    labels = read_volume(own.label or Path(), dtype=np.uint8)
    hand_over(willing, own, 0 * labels.data, labels.affine, decision="accepted", review=1)
    found = cohort_of(willing)
    assert own in found.cases
    assert not any(case.reviewed for case in found.cases)


def made(patient: str, *, reviewed: bool, session: str = "") -> Case:
    image = Image(Path("t1c.nii.gz"))
    return Case(patient, session, {"t1c": image}, Path("seg.nii.gz"), {}, reviewed=reviewed)


SPLITS = {
    "trains": (True, False, 1),
    "trains beside own scans": (True, True, 2),
    "a patient of no split trains": (False, False, 1),
    "a patient who is measured is left out": (False, True, 0),
}


@pytest.mark.parametrize("name", SPLITS)
def test_it_is_never_measured_against(name: str) -> None:
    train, own, expected = SPLITS[name]
    patient = named(train)
    cases = [made(patient, reviewed=True, session="002")]
    if own:
        cases.append(made(patient, reviewed=False, session="001"))
    parts = split(Cohort("", tuple(cases), ()), STUDY)
    assert len(parts.train) == expected
    assert not [case for case in (*parts.validation, *parts.test) if case.reviewed]
