"""A site whose study asks for more than the mean: what it keeps, what it sends, what it pays."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.networks.registry import build, load_arrays, trainable_names
from client.privacy import budget_caps
from client.site.folder import Site
from client.study import round_training
from client.study.round_state import Kept
from client.training.crops import draw_patient
from client.training.drift_correction import next_control
from client.training.losses import dice_bce
from common import versions
from common.messages.wire_format import CONTROL, Report, unpack_report
from common.records import journal
from common.records.atomic_files import unwritable
from common.records.weights import Arrays, digest, load, load_metadata, save
from common.study.protocol import StudyProtocol
from server.consortium.provisioning import Consortium
from tests.client.runtime.test_order_handler import Hospital, sent_data
from tests.consortia import STUDY, edit, events, order, tiny_protocol

PLAIN_SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.05}
OPEN = {"privacy": {"mode": "none"}}


@pytest.fixture
def hospital(site: Site, consortium: Consortium) -> Hospital:
    site = edit(site, "privacy = false", "privacy = true")
    return Hospital(site, consortium.identity)


def started(hospital: Hospital, **changes: Any) -> tuple[StudyProtocol, Arrays]:
    protocol = tiny_protocol(**changes)
    hospital.approve(protocol)
    return protocol, round_training.starting_weights(protocol)


def own(hospital: Hospital, kind: Any) -> Arrays:
    return Kept(hospital.site, STUDY).own(kind)


def controlled(
    hospital: Hospital,
    protocol: StudyProtocol,
    weights: Arrays,
    control: Arrays,
    *,
    number: int,
    folded: int,
) -> tuple[Report, Arrays]:
    named = {CONTROL + name: value for name, value in control.items()}
    content = order(
        hospital.coordinator,
        protocol,
        "train",
        number=number,
        weights={**weights, **named},
        weights_sha256=digest(weights),
        folded_round=folded,
    )
    return unpack_report(
        hospital.participation.answer(content),
        template=round_training.update_shapes(protocol, weights),
        max_norm=1e6,
        options=protocol.messages,
    )


SCAFFOLD: dict[str, Any] = {"training": PLAIN_SGD, "aggregation": {"rule": "scaffold"}, "rounds": 9}


@pytest.mark.parametrize(
    ("privacy", "messages"),
    [({"mode": "none"}, {}), ({"max_epsilon": 8.0}, {"encoding": "int8", "top_share": 0.5})],
)
def test_a_control_variate_follows_the_updates_that_counted(
    hospital: Hospital, privacy: Any, messages: Any
) -> None:
    protocol, weights = started(hospital, **SCAFFOLD, privacy=privacy, messages=messages)
    rng = np.random.default_rng(0)
    expected: Arrays = {}
    folded = 0
    place = hospital.site.folder / "studies" / STUDY / "control.safetensors"
    for number, counts in enumerate((True, False, True), start=1):
        c = {
            name: rng.normal(0, 1e-3, array.shape).astype(np.float32)
            for name, array in weights.items()
        }
        control = {} if number == 1 else c
        arguments = (protocol, weights, control)
        hospital.participation = type(hospital.participation).open(hospital.site.folder)
        _, update = controlled(hospital, *arguments, number=number, folded=folded)
        assert digest(update) == sent_data(hospital.site)[-1]["update"]
        assert {n: v.tobytes() for n, v in own(hospital, "control").items()} == {
            n: v.tobytes() for n, v in expected.items()
        }
        if counts:
            expected = next_control(expected, control, update, steps=2, learning_rate=0.05)
            folded = number
    report, _ = controlled(hospital, protocol, weights, {}, number=4, folded=folded)
    assert report.status == "done"
    assert load_metadata(place)["round"] == "3"
    for name, value in own(hospital, "control").items():
        assert np.array_equal(value, expected[name])


def test_a_step_follows_the_correction(hospital: Hospital) -> None:
    protocol, weights = started(hospital, **SCAFFOLD, **OPEN)
    c = {name: np.full_like(value, 0.25) for name, value in weights.items()}
    updates = {
        one: round_training.train_round(
            hospital.site, protocol, weights, round_number=1, control=c if one else {}
        ).update
        for one in (False, True)
    }
    name = "body.conv_final.2.conv.bias"
    # Two steps of r c, beside what they change in the second gradient.
    assert np.allclose(updates[False][name] - updates[True][name], 2 * 0.05 * 0.25, atol=2e-3)


def test_a_control_variate_that_does_not_fit_is_refused_before_any_patient(
    hospital: Hospital,
) -> None:
    protocol, weights = started(hospital, **SCAFFOLD)
    short = dict(list(weights.items())[1:])
    bad = {**weights, "body.conv_final.2.conv.bias": np.zeros(4, np.float32)}
    for control, folded, code in (
        (short, 0, "update-name"),
        (bad, 0, "update-shape"),
        (weights, 1, "control"),
    ):
        report, arrays = controlled(hospital, protocol, weights, control, number=1, folded=folded)
        assert (report.status, report.code, arrays) == ("failed", code, {})
    assert hospital.facts() == ()
    assert events(hospital.site, "training") == []


def test_a_control_variate_is_for_scaffold_alone(hospital: Hospital) -> None:
    protocol, weights = started(hospital)
    report, _ = controlled(hospital, protocol, weights, weights, number=1, folded=0)
    assert (report.status, report.code) == ("failed", "update-name")
    assert hospital.facts() == ()


def everything_that_left(hospital: Hospital) -> set[str]:
    """Return the names of all arrays that the outbox holds and that updates brought."""
    folder = hospital.site.folder / "outbox" / STUDY
    return {name for path in folder.glob("*.safetensors") for name in load(path)}


@pytest.mark.parametrize("privacy", [{"mode": "none"}, {"max_epsilon": 8.0}])
def test_local_layers_stay_and_are_gone_on_with(hospital: Hospital, privacy: Any) -> None:
    protocol, weights = started(hospital, training={"local": ["norms"]}, privacy=privacy)
    local = set(trainable_names(build(protocol.network, seed=0), ("norms",)))
    seen = []
    for number in (1, 2):
        report, update = hospital.train(protocol, number=number, weights=weights)
        assert report.status == "done"
        assert set(update) == set(weights) - local == everything_that_left(hospital)
        assert not any(name in report.model_dump_json() for name in local)
        seen.append(own(hospital, "local"))
        assert set(seen[-1]) == local
        (sent,) = [f for f in sent_data(hospital.site) if f["round"] == number]
        assert sent["arrays"] == len(update)
    assert all(not np.array_equal(seen[0][n], weights[n]) for n in local)
    used = round_training.with_local_layers(hospital.site, protocol, weights)
    assert all(np.array_equal(used[n], seen[1][n] if n in local else weights[n]) for n in weights)
    # The second round began where the first ended, not at the global values.
    if privacy == OPEN["privacy"]:
        rate, steps = protocol.training.learning_rate, protocol.training.local_steps
        reach = 1.05 * rate * steps  # of Adam in one round
        assert max(np.abs(seen[1][n] - weights[n]).max() for n in local) > reach
        assert max(np.abs(seen[1][n] - seen[0][n]).max() for n in local) < reach


def test_scores_of_a_site_are_with_its_own_layers(hospital: Hospital) -> None:
    protocol, weights = started(
        hospital, training={"local": ["norms"], "learning_rate": 0.5}, **OPEN
    )
    hospital.train(protocol, weights=weights)
    cases = round_training.read_split(hospital.site, protocol).validation
    used = {**weights, **own(hospital, "local")}
    expected = round_training.mean_dice(round_training.score(hospital.site, protocol, used, cases))
    report, _ = hospital.ask(protocol, "evaluate", number=1, weights=weights)
    assert report.dice == expected
    assert expected != round_training.mean_dice(
        round_training.score(hospital.site, protocol, weights, cases)
    )


def loss(protocol: StudyProtocol, site: Site, weights: Arrays) -> float:
    """Return the mean loss on the site's training patients."""
    network = build(protocol.network, seed=0)
    load_arrays(network, weights)
    total = 0.0
    for place, patient in enumerate(round_training.training_patients(site, protocol).values()):
        images, regions = draw_patient(patient, protocol.training, np.random.default_rng(place))
        with torch.no_grad():
            total += float(dice_bce(network(images), regions).mean())
    return total


def apart(one: Arrays, other: Arrays) -> float:
    return float(np.sqrt(sum(((one[n] - other[n]) ** 2).sum() for n in one)))


def test_a_personal_model_learns_from_its_own_data_and_stays(hospital: Hospital) -> None:
    training = {"local_steps": 5, "learning_rate": 5e-3, "personal_lambda": 0.05}
    protocol, weights = started(hospital, training=training, rounds=3, **OPEN)
    losses = [loss(protocol, hospital.site, weights)]
    for number in (1, 2, 3):
        report, update = hospital.train(protocol, number=number, weights=weights)
        personal = own(hospital, "personal")
        losses.append(loss(protocol, hospital.site, personal))
        assert set(personal) == set(weights)
        moved = {name: personal[name] - weights[name] for name in weights}
        assert digest(moved) not in report.model_dump_json() + str(events(hospital.site))
        assert apart(moved, update) > 0.01 * apart(weights, personal)
        for path in (hospital.site.folder / "outbox" / STUDY).glob("*.safetensors"):
            assert digest(load(path)) == digest(update)
    assert losses[3] < losses[1] < losses[0]
    assert losses[3] < 0.97 * losses[0]


def test_the_pull_of_a_personal_model_is_to_the_global_weights(hospital: Hospital) -> None:
    distances = []
    for strength in (0.01, 10.0):
        protocol = tiny_protocol(
            training={**PLAIN_SGD, "local_steps": 8, "personal_lambda": strength}, **OPEN
        )
        weights = round_training.starting_weights(protocol)
        shutil.rmtree(hospital.site.folder / "studies", ignore_errors=True)
        kept = Kept(hospital.site, STUDY)
        far = {name: value + np.float32(0.05) for name, value in weights.items()}
        place = hospital.site.folder / "studies" / STUDY / "personal.safetensors"
        save(place, far, {})
        assert digest(kept.own("personal")) == digest(far)
        trained = round_training.train_round(hospital.site, protocol, weights, round_number=1)
        distances.append(apart(trained.personal, weights))
    assert distances[1] < 0.1 * distances[0]


def test_the_steps_of_a_personal_model_are_charged(hospital: Hospital) -> None:
    protocol, weights = started(hospital, training={"personal_lambda": 0.1})
    report, _ = hospital.train(protocol, weights=weights)
    assert report.privacy_spent is not None
    assert report.privacy_spent.steps == 4
    assert [fact.state for fact in hospital.facts()] == ["confirmed"] * 4
    assert {fact.purpose for fact in hospital.facts()} == {"training"}


def test_a_round_needs_room_for_both_models(hospital: Hospital) -> None:
    protocol = tiny_protocol(privacy={"max_epsilon": 3.0}, training={"personal_lambda": 0.1})
    patients = frozenset(round_training.training_patients(hospital.site, protocol))
    study_cap, patient_cap = budget_caps.caps(hospital.site, protocol)
    with budget_caps.open_ledger(hospital.site) as ledger:
        room = ledger.steps_left(
            study=protocol.study,
            mechanism=budget_caps.mechanism(protocol),
            patients=patients,
            study_cap=study_cap,
            patient_cap=patient_cap,
        )
    steps = room // 2 + 1  # fits once, not twice
    changes = {"personal_lambda": 0.1, "local_steps": steps}
    protocol, weights = started(hospital, privacy={"max_epsilon": 3.0}, training=changes)
    report, _ = hospital.train(protocol, weights=weights)
    assert (report.status, report.code) == ("refused", "privacy-cap")
    assert hospital.facts() == ()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_journal_on_a_full_disk_gives_a_bare_code(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, weights = started(hospital)
    before = hospital.site.journal.events()
    with monkeypatch.context() as patch:
        patch.setattr(journal, "_write", full)
        report, arrays = hospital.train(protocol, weights=weights)
    assert arrays == {}
    bare = Report(
        kind="train",
        study=STUDY,
        round=1,
        status="failed",
        code="journal-write",
        version=versions.own(),
    )
    assert report == bare
    assert hospital.site.journal.events() == before
    assert hospital.facts() == ()  # not even tried
    report, arrays = hospital.train(protocol, weights=weights)
    assert (report.status, bool(arrays)) == ("done", True)


def test_an_update_that_cannot_be_journalled_waits_for_the_next_order(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, weights = started(hospital)
    write = journal._write

    def full_for_sent(file: Any, data: bytes) -> None:
        if b'"event":"sent"' in data or b'"event":"order' in data or b'"declined"' in data:
            full()
        write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_write", full_for_sent)
        report, arrays = hospital.train(protocol, weights=weights)
    assert (report.status, report.code, arrays) == ("failed", "journal-write", {})
    assert len(hospital.facts()) == 2
    report, arrays = hospital.train(protocol, weights=weights)
    assert (report.status, bool(arrays)) == ("done", True)
    assert len(hospital.facts()) == 2  # the kept update, at no further cost


def test_a_damaged_journal_gives_a_bare_code(hospital: Hospital) -> None:
    protocol, weights = started(hospital)
    path = hospital.site.folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0].replace(b"site made", b"site mode"), *lines[1:]]))
    damaged = path.read_bytes()
    for kind in ("offer", "train", "evaluate"):
        report, arrays = hospital.ask(protocol, kind, number=1, weights=weights)
        assert (report.status, report.code, arrays) == ("failed", "journal-damaged", {})
        assert (report.site_head, report.coordinator_head, report.reason) == ("", "", "")
    assert path.read_bytes().startswith(damaged)
    assert list(hospital.site.folder.glob("outbox/*/*")) == []


def test_a_full_outbox_is_a_code_and_the_worker_lives(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, weights = started(hospital)

    def refuse(path: Path, *_: object) -> None:
        raise unwritable(path, OSError(errno.ENOSPC, "No space left on device"))

    with monkeypatch.context() as patch:
        patch.setattr("client.study.charged_files.write_bytes", refuse)
        report, arrays = hospital.train(protocol, weights=weights)
    assert (report.status, report.code, report.reason, arrays) == ("failed", "disk-full", "", {})
    assert sent_data(hospital.site) == []
    report, _ = hospital.train(protocol, weights=weights)
    assert report.status == "done"


def test_a_disk_without_room_costs_no_privacy(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, weights = started(hospital)
    with monkeypatch.context() as patch:
        usage = type("Usage", (), {"free": 10_000})()
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        report, _ = hospital.train(protocol, weights=weights)
    assert (report.status, report.code) == ("failed", "disk-full")
    assert hospital.facts() == ()
