"""gliofed-site series: what was taken for what, a person's word, and that it is remembered."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from client.cohort import series_decisions
from client.cohort.case_discovery import read_case
from client.commands import clinic
from client.commands import site as site_commands
from client.runtime.order_handler import Participation
from client.site.folder import Site
from client.study import round_training
from client.study.withdrawal import withdraw
from client.views.cohort_check import check_site
from common.errors import CaseError, StateError
from common.study.protocol import PreprocessingOptions
from server.consortium.provisioning import Consortium
from tests.consortia import World, answer, approve, order, tiny_protocol
from tests.scanners import DATE, PATIENT, SEQUENCES, oblique, voxels, write_series, write_study

Run = Callable[..., Any]


@pytest.fixture
def site_command(command: Run) -> Run:
    return functools.partial(command, site_commands.main)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A study whose contrast-enhanced T1 nobody can tell: it is called like the one without."""
    folder = write_study(tmp_path / "scans" / "patient" / "study", skip=(5,))
    write_series(folder / "5", 5, "T1 SE tra", **SEQUENCES[2][2])
    return tmp_path / "scans"


@pytest.fixture
def scanned(make_site: Callable[..., Site], scans: Path) -> Site:
    return make_site("south", scans)


def used(found: Any) -> dict[str, str]:
    return {one["taken_for"]: one["series"] for one in found[0]["series"] if one["used"]}


def test_every_series_is_listed_with_its_reason(site_command: Run, scanned: Site) -> None:
    said = site_command("series", scanned.folder)
    assert said.code == 0
    assert "patient/study" in said.out
    assert "localizer" in said.out
    assert "no series for t1c" in said.err
    found = site_command("series", scanned.folder, "--json").json
    assert found[0]["missing"] == ["t1c"]
    assert [one["series"] for one in found[0]["series"]] == ["1", "2", "3", "4", "5"]
    assert all(one["why"] for one in found[0]["series"])
    assert PATIENT not in json.dumps(found)
    assert site_command("series", scanned.folder, "patient/study").code == 15


def test_a_persons_word_is_remembered_and_forgotten(site_command: Run, scanned: Site) -> None:
    with pytest.raises(CaseError) as caught:
        series_decisions.cohort_of(scanned)
    assert "--set t1c=SERIES" in str(caught.value)
    said = site_command("series", scanned.folder, "patient/study", "--set", "t1c=5", "--json")
    assert said.code == 0
    assert used(said.json) == {"t1n": "2", "t2w": "3", "t2f": "4", "t1c": "5"}
    (case,) = series_decisions.cohort_of(scanned).cases
    assert case.images["t1c"].series == "5"
    assert check_site(scanned, PreprocessingOptions(spacing_mm=6.0))["cases"] == 1

    again = site_command("series", scanned.folder, "patient/study", "--set", "t1c=2", "--json")
    assert again.code == 15  # series 2 is no longer the T1 without contrast, 5 is again one
    assert used(again.json)["t1c"] == "2"
    site_command("series", scanned.folder, "patient/study", "--set", "t1n=5")
    assert series_decisions.cohort_of(scanned).cases[0].images["t1n"].series == "5"
    said = site_command("series", scanned.folder, "patient/study", "--forget")
    assert said.code == 15
    with pytest.raises(CaseError):
        series_decisions.cohort_of(scanned)


def test_a_series_can_be_left_out(site_command: Run, scanned: Site) -> None:
    said = site_command(
        "series", scanned.folder, "patient/study", "--set", "none=2", "--set", "t1c=5", "--json"
    )
    assert said.json[0]["missing"] == ["t1n"]
    assert "person left it out" in said.json[0]["series"][1]["why"]
    assert said.json[0]["usable"]
    assert said.code == 0, "nothing else in the study could be the T1"
    assert series_decisions.cohort_of(scanned).cases[0].missing == ("t1n",)


def test_a_decision_holds_wherever_the_files_are_moved(scanned: Site, scans: Path) -> None:
    series_decisions.decide(scanned, series_decisions.judged(scanned)[0], [("t1c", "5")])
    (scans / "patient").rename(scans / "elsewhere")
    assert series_decisions.cohort_of(scanned).cases[0].images["t1c"].series == "5"


def test_what_is_remembered_names_nobody(scanned: Site) -> None:
    study = series_decisions.judged(scanned)[0]
    series_decisions.decide(scanned, study, [("t1c", "5")])
    uid = study.study.series[-1].uid
    for path in (scanned.folder / "series.json", scanned.journal.path):
        text = path.read_text()
        assert not [
            name for name in (uid, study.study.uid, PATIENT, DATE, "SE tra") if name in text
        ]
    assert (scanned.folder / "series.json").stat().st_mode & 0o077 == 0
    assert "series decided" in scanned.journal.path.read_text()


def test_a_damaged_memory_is_refused(scanned: Site) -> None:
    series_decisions.decide(scanned, series_decisions.judged(scanned)[0], [("t1c", "5")])
    path = scanned.folder / "series.json"
    path.write_text(path.read_text().replace("t1c", "t9x"))
    with pytest.raises(StateError) as caught:
        series_decisions.cohort_of(scanned)
    assert caught.value.code == "series"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--set", "t1c=5"), 2),
        (("patient/study", "--set", "t1x=5"), 2),
        (("patient/study", "--set", "t1c"), 2),
        (("patient/study", "--set", "t1c=5", "--set", "t1c=2"), 2),
        (("patient/study", "--set", "t1c=99"), 15),
        (("nowhere",), 15),
    ],
)
def test_a_wrong_word_is_named(
    site_command: Run, scanned: Site, arguments: tuple[str, ...], code: int
) -> None:
    said = site_command("series", scanned.folder, *arguments)
    assert said.code == code
    assert said.err
    assert not (scanned.folder / "series.json").exists()


def test_no_word_makes_a_volume_of_a_series_with_a_gap(scanned: Site, scans: Path) -> None:
    write_series(
        scans / "patient" / "study" / "6",
        6,
        "T1 KM",
        spoil=lambda index, dataset: None if index == 5 else dataset,
        **SEQUENCES[5][2],
    )
    with pytest.raises(CaseError, match="lacks 1 of the slices in its middle") as caught:
        series_decisions.decide(scanned, series_decisions.judged(scanned)[0], [("t1c", "6")])
    assert caught.value.code == "case-slices"


def test_a_word_outweighs_a_hint_at_missing_slices(scanned: Site, scans: Path) -> None:
    study = scans / "patient" / "study"
    write_series(
        study / "6",
        6,
        "T1 KM",
        spoil=lambda index, dataset: None if index == 0 else dataset,
        **SEQUENCES[5][2],
    )
    assert series_decisions.judged(scanned)[0].choice.missing == ("t1c",)
    series_decisions.decide(scanned, series_decisions.judged(scanned)[0], [("t1c", "6")])
    (case,) = series_decisions.cohort_of(scanned).cases
    assert case.images["t1c"].series == "6"
    assert "begins with image 2" in case.notes[0]


def test_a_clinician_says_it_once(command: Run, world: World, scans: Path, tmp_path: Path) -> None:
    run = functools.partial(command, clinic.main, "segment", scans / "patient")
    model = ("--model", world.release)
    said = run("--out", tmp_path / "a", *model)
    assert (said.code, "--series t1c=SERIES" in said.err) == (15, True)
    said = run("--out", tmp_path / "b", *model, "--series", "t1c=5", "--json")
    assert said.code == 0
    assert {name: one["series"] for name, one in said.json["inputs"].items()} == {
        "t1n": "2",
        "t1c": "5",
        "t2w": "3",
        "t2f": "4",
    }
    assert len({one["sha256"] for one in said.json["inputs"].values()}) == 4
    assert run("--out", tmp_path / "c", *model, "--series", "t1c").code == 2
    assert run("--out", tmp_path / "d", *model, "--series", "t1c=77").code == 15


def test_what_is_said_once_goes_before_what_is_remembered(scanned: Site, scans: Path) -> None:
    series_decisions.decide(scanned, series_decisions.judged(scanned)[0], [("t1c", "5")])
    decide = series_decisions.for_once(
        [("t1c", "2"), ("t1n", "5")], series_decisions.decisions(scanned)
    )
    case = read_case(scans / "patient", decide=decide)
    assert (case.images["t1c"].series, case.images["t1n"].series) == ("2", "5")


def test_a_site_with_dicom_trains_and_a_patient_withdraws(
    make_site: Callable[..., Site], consortium: Consortium, tmp_path: Path
) -> None:
    """From what the scanner wrote to an update; the journal names neither patient nor study."""
    for number in range(6):
        folder = tmp_path / "many" / f"{number}"
        write_study(folder, patient=f"Patient-{number}", study=f"1.5.{number}", seed=number)
        mask = np.zeros(voxels().shape, np.uint8)
        mask[7:10, 6:9, 5:8] = 3
        nib.save(nib.Nifti1Image(mask, oblique()), folder / "seg.nii.gz")
    site, protocol = make_site("south", tmp_path / "many"), tiny_protocol()
    approve(site, consortium, protocol)
    weights = round_training.starting_weights(protocol)
    content = order(consortium.identity, protocol, "train", number=1, weights=weights)
    report, _ = answer(Participation(site), content)
    assert (report.status, report.code) == ("done", "")
    trained = [case.patient for case in round_training.read_split(site, protocol).train]
    done = withdraw(site, trained[0], by="Dr. Tamm")
    assert done.in_cohort
    assert trained[0] not in [
        case.patient for case in round_training.read_split(site, protocol).train
    ]
    journal = site.journal.path.read_text()
    assert not [name for name in ("Patient-", "1.5.", DATE) if name in journal]
