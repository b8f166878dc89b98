"""One study at one site: who is trained on, what is charged, on which device."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.imaging.case import Case
from client.imaging.prepared_cache import PreparedCache
from client.imaging.preprocessing import Prepared
from client.privacy import budget_caps
from client.privacy.dp_dice import NoisedDice
from client.segmentation.dice import RegionScores
from client.site.folder import Site
from client.study import reported_metrics, round_training
from common.errors import CaseError, StateError
from common.records.weights import digest
from tests.consortia import tiny_protocol


def test_all_scans_of_a_patient_are_one_patient(site: Site) -> None:
    protocol = tiny_protocol()
    patients = round_training.training_patients(site, protocol)
    cases = round_training.read_split(site, protocol).train
    assert len(patients) == 4
    assert sum(len(scans) for scans in patients.values()) == len(cases)
    assert round_training.training_cases(site, protocol) == len(cases)


def test_an_empty_training_split_is_named(site: Site) -> None:
    with pytest.raises(CaseError, match="training split of north is empty"):
        round_training.training_patients(site, tiny_protocol(study="empty-training-172"))


def test_starting_weights_depend_on_the_seed_alone() -> None:
    first, same, other = (
        round_training.starting_weights(tiny_protocol(seed=seed, rounds=rounds))
        for seed, rounds in ((1, 2), (1, 5), (2, 2))
    )
    assert digest(first) == digest(same) != digest(other)


def test_training_without_privacy_repeats_itself(site: Site) -> None:
    protocol = tiny_protocol(privacy={"mode": "none"})
    path = site.folder / "site.toml"
    path.write_text(path.read_text().replace("privacy = false", "privacy = true"))
    site = Site.open(site.folder)
    weights = round_training.starting_weights(protocol)
    told: list[tuple[int, int]] = []
    updates = [
        round_training.train_round(
            site, protocol, weights, round_number=number, progress=lambda *d: told.append(d)
        ).update
        for number in (1, 1, 2)
    ]
    assert digest(updates[0]) == digest(updates[1]) != digest(updates[2])
    assert told[:2] == [(1, 2), (2, 2)]


def test_scores_have_only_the_regions_that_were_scored() -> None:
    assert round_training.mean_dice(RegionScores()) == {}
    assert round_training.mean_dice(RegionScores((10**9, 0, 0), (2, 1, 0))) == {
        "WT": 0.5,
        "TC": 0.0,
    }


def test_an_unreadable_patient_costs_the_round_nothing(
    make_site: Callable[..., Site], own_cohort: Path
) -> None:
    protocol = tiny_protocol(privacy={"sampling_rate": 1.0, "max_epsilon": 10.0})
    site = make_site("south", own_cohort)
    for case in round_training.read_split(site, protocol).train:
        case.images["t1n"].path.write_bytes(b"no image")
    weights = round_training.starting_weights(protocol)
    trained = round_training.train_round(site, protocol, weights, round_number=1)
    assert trained.update
    assert budget_caps.privacy_spent(site, protocol).steps == 2


FAULTS = {
    "the disk fails": OSError(errno.EIO, "Input/output error"),
    "too little memory for one scan": MemoryError(),
    "no room in the cache": StateError("The disk is full.", code="disk-full"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_goes_wrong_with_a_drawn_patient_is_a_zero_contribution(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    protocol = tiny_protocol(privacy={"sampling_rate": 1.0, "max_epsilon": 10.0})
    broken = round_training.read_split(site, protocol).train[0]
    get = PreparedCache.get

    def spoilt(cache: PreparedCache, case: Case) -> Prepared:
        if case.patient == broken.patient:
            raise FAULTS[fault]
        return get(cache, case)

    monkeypatch.setattr(PreparedCache, "get", spoilt)
    before = budget_caps.privacy_spent(site, protocol).steps
    weights = round_training.starting_weights(protocol)
    trained = round_training.train_round(site, protocol, weights, round_number=1)
    assert trained.update
    assert budget_caps.privacy_spent(site, protocol).steps == before + 2
    assert f"A patient's contribution counts as zero. {broken.name}" in caplog.text


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_goes_wrong_with_a_validation_scan_counts_as_a_half(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    protocol = tiny_protocol()
    seen: list[list[dict[str, float | None]]] = []
    kept = round_training.read_split(site, protocol).validation
    assert kept

    def spoilt(_: PreparedCache, case: Case) -> Prepared:
        raise FAULTS[fault]

    def noised(scores: Any, **_: Any) -> NoisedDice:
        seen.append(scores)
        return NoisedDice({}, 0.0)

    monkeypatch.setattr(PreparedCache, "get", spoilt)
    monkeypatch.setattr(reported_metrics, "noised_dice", noised)
    weights = round_training.starting_weights(protocol)
    with budget_caps.open_ledger(site) as ledger:
        before = len(ledger.facts())
    reported_metrics.noised_validation_dice(site, protocol, weights, round_number=1)
    assert seen[0] == [{"WT": None, "TC": None, "ET": None}] * len({c.patient for c in kept})
    with budget_caps.open_ledger(site) as ledger:
        assert len(ledger.facts()) == before + 1
        assert ledger.facts()[-1].state == "confirmed"
    assert kept[0].name in caplog.text


def test_a_missing_ledger_stops_training(site: Site) -> None:
    protocol = tiny_protocol()
    (site.folder / "ledger.sqlite").unlink()
    with pytest.raises(StateError) as caught:
        round_training.train_round(
            site, protocol, round_training.starting_weights(protocol), round_number=1
        )
    assert caught.value.code == "ledger-missing"


def test_the_cache_serves_when_the_scans_are_away(
    make_site: Callable[..., Site], own_cohort: Path, tmp_path: Path
) -> None:
    site = make_site("south", own_cohort)
    patients = round_training.training_patients(site, tiny_protocol())
    first = [scan().image.sum() for scans in patients.values() for scan in scans]
    again = [scan().image.sum() for scans in patients.values() for scan in scans]
    assert first == again
    assert any((site.folder / "cache").iterdir())
    shutil.rmtree(site.folder / "cache")
    assert [scan().image.sum() for scans in patients.values() for scan in scans] == first


def test_a_case_that_lacks_a_sequence_takes_part_where_the_network_learns_to_do_without(
    make_site: Callable[..., Site], own_cohort: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site("south", own_cohort)
    strict = tiny_protocol()
    lenient = tiny_protocol(training={"sequence_dropout": 0.5})
    before = round_training.read_split(site, strict)
    short, other = before.train[0], before.test[0]
    for case in (short, other):
        case.images["t1n"].path.unlink()

    left = round_training.read_split(site, strict)
    assert [case.name for case in left.train] == [c.name for c in before.train[1:]]
    assert [case.name for case in left.test] == [c.name for c in before.test[1:]]
    assert f"{short.name} lacks t1n" in caplog.text
    kept = round_training.read_split(site, lenient)
    assert [case.name for case in kept.train] == [c.name for c in before.train]
    assert kept.train[0].missing == ("t1n",)

    weights = round_training.starting_weights(lenient)
    trained = round_training.train_round(site, lenient, weights, round_number=1)
    assert all(np.isfinite(array).all() for array in trained.update.values())
    assert round_training.score(site, lenient, weights, kept.test).mean("WT") is not None


def test_where_every_case_lacks_a_sequence_a_study_without_dropout_has_none(
    make_site: Callable[..., Site], own_cohort: Path
) -> None:
    site = make_site("south", own_cohort)
    for path in own_cohort.rglob("*-t2w.nii.gz"):
        path.unlink()
    with pytest.raises(CaseError, match="what the log says that its cases lack") as caught:
        round_training.training_patients(site, tiny_protocol())
    assert caught.value.code == "case-none"
