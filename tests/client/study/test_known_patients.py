"""A patient is the same to the ledger whatever a file is called or how it was converted."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.cohort.series_decisions import cohort_of
from client.imaging.case import Case
from client.privacy.budget_caps import open_ledger
from client.site.folder import Site
from client.site.pseudonyms import patients_key, pseudonym
from client.study import known_patients
from client.study.known_patients import by_patient, look_up
from client.study.withdrawal import withdraw
from client.views.budget import patients_now
from server.consortium.provisioning import Consortium
from tests.client.runtime.test_order_handler import Hospital
from tests.consortia import PATIENTS, tiny_protocol

Rename = Callable[[Path], None]


@pytest.fixture
def site(make_site: Callable[..., Site], own_cohort: Path) -> Site:
    return make_site("north", own_cohort)


def renamed(root: Path) -> None:
    for folder in sorted(root.iterdir()):
        if folder.is_dir():
            for path in list(folder.iterdir()):
                path.rename(folder / path.name.replace("PHA-0", "PHA-9"))
            folder.rename(root / folder.name.replace("PHA-0", "PHA-9"))


def recompressed(root: Path) -> None:
    for path in root.rglob("*.nii.gz"):
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))


def as_floats(root: Path) -> None:
    for path in root.rglob("*.nii.gz"):
        if "seg" not in path.name:
            image = nib.load(path)
            nib.save(nib.Nifti1Image(image.get_fdata().astype(np.float32), image.affine), path)


def flipped(root: Path) -> None:
    for path in root.rglob("*.nii.gz"):
        image = nib.load(path)
        turned = image.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
        nib.save(turned, path)


def fewer_sequences(root: Path) -> None:
    for path in root.rglob("*-t2w.nii.gz"):
        path.unlink()


CHANGES: dict[str, list[Rename]] = {
    "renamed": [renamed],
    "renamed and recompressed": [recompressed, renamed],
    "renamed and converted": [as_floats, renamed],
    "renamed and flipped": [flipped, renamed],
    "renamed, one sequence taken away": [fewer_sequences, renamed],
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_cohort_is_of_the_same_patients(site: Site, name: str) -> None:
    before = by_patient(site, cohort_of(site).cases)
    for change in CHANGES[name]:
        change(site.data)
    cases = cohort_of(site).cases
    assert {case.patient for case in cases}.isdisjoint(
        case.patient for own in before.values() for case in own
    )
    after = by_patient(site, cases)
    assert set(after) == set(before)
    with open_ledger(site) as ledger:
        assert set(look_up(site, ledger, cases)) == set(before)


def test_a_renamed_cohort_has_no_more_room(site: Site, consortium: Consortium) -> None:
    hospital = Hospital(site, consortium.identity)
    protocol = tiny_protocol(rounds=50, privacy={"max_epsilon": 1.5})
    hospital.approve(protocol)
    codes = [hospital.train(protocol, number=number)[0].code for number in range(1, 4)]
    assert codes[0] == ""
    assert codes[-1] == "privacy-cap"
    exhausted = patients_now(site, protocol)

    def charged() -> list[int]:
        with open_ledger(site) as ledger:
            return [len(ledger.facts(patient=one)) for one in sorted(exhausted)]

    before = charged()
    renamed(site.data)
    # By their new names others are drawn for training, who have room; some of them are the same.
    assert patients_now(site, protocol) & exhausted
    for number in range(3, 9):
        code = hospital.train(protocol, number=number)[0].code
    assert (code, charged()) == ("privacy-cap", before)
    with open_ledger(site) as ledger:
        assert len(ledger.patients()) <= PATIENTS


def _copy(root: Path, case: Case, name: str) -> None:
    source = case.images["t1c"].path.parent
    target = root / source.name.replace(case.patient, name)
    shutil.copytree(source, target)
    for path in list(target.iterdir()):
        path.rename(target / path.name.replace(case.patient, name))
    recompressed(target)  # the same bytes would be refused as a copy


def test_who_stands_in_the_cohort_twice_is_one_patient(site: Site) -> None:
    first, *_ = cohort_of(site).cases
    before = by_patient(site, cohort_of(site).cases)
    _copy(site.data, first, "BraTS-PHA-77777")
    after = by_patient(site, cohort_of(site).cases)
    assert set(after) == set(before)
    own = pseudonym(patients_key(site), first.patient)
    assert len(after[own]) == len(before[own]) + 1


def test_who_withdrew_stays_away_under_another_name(site: Site) -> None:
    first, *_ = cohort_of(site).cases
    before = by_patient(site, cohort_of(site).cases)
    withdraw(site, first.patient, by="Dr. Tamm")
    renamed(site.data)
    after = by_patient(site, cohort_of(site).cases)
    assert set(before) - set(after) == {pseudonym(patients_key(site), first.patient)}


def test_a_scan_is_read_for_it_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = cohort_of(site).cases
    before = by_patient(site, cases)

    def never(*_: object) -> None:
        raise AssertionError("an image was read again")

    monkeypatch.setattr("client.imaging.prepared_cache.read_image", never)
    assert by_patient(site, cases) == before


def test_a_scan_that_cannot_be_read_counts_by_its_name(site: Site) -> None:
    cases = cohort_of(site).cases
    for image in cases[0].images.values():
        image.path.write_bytes(b"cut")
    found = by_patient(site, cases)
    assert len(found) == len({case.patient for case in cases})
    assert pseudonym(patients_key(site), cases[0].patient) in found


def test_the_ledger_holds_keyed_digests_alone(site: Site) -> None:
    by_patient(site, cohort_of(site).cases)
    key = patients_key(site)
    held = (site.folder / "ledger.sqlite").read_bytes()
    for note in (site.folder / "cache" / "voxels").iterdir():
        assert note.read_bytes().strip() not in held
        assert known_patients._keyed(key, note.read_text().strip()).encode() in held
