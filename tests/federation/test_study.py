"""A whole study in one process: three phantom hospitals, real rounds, a model for the clinic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord

from client.clinic.installed_models import activate, active_model
from client.clinic.released_model import open_model
from client.clinic.segment import segment
from client.networks.registry import NETWORKS
from client.privacy import budget_caps
from client.privacy.mechanism import Mechanism
from client.runtime.order_handler import Participation
from client.site.execution import ExecutionOptions
from client.site.folder import Site
from client.study import round_training
from common.messages.wire_format import Content
from common.records.weights import digest, load, norm
from common.study.protocol import StudyProtocol
from server.consortium.provisioning import Consortium
from server.release.release_folder import release
from server.reporting.study_report import study_report
from tests.cargo import arrays_of, with_arrays
from tests.consortia import (
    STUDY,
    approve,
    edit,
    enrol,
    events,
    found,
    publish,
    rounds,
    tiny_protocol,
)

NAMES = ("north", "south", "west")


class Federation:
    """A coordinator and three hospitals with a published study."""

    def __init__(self, root: Path, cohorts: tuple[Path, ...], **changes: Any) -> None:
        self.consortium: Consortium = found(root / "coordinator")
        self.sites: dict[str, Site] = {
            name: enrol(self.consortium, root / name, name=name, data=data)
            for name, data in zip(NAMES, cohorts, strict=True)
        }
        self.protocol: StudyProtocol = publish(self.consortium, tiny_protocol(**changes))
        self.hospitals: dict[str, Any] = {
            name: Participation.open(site.folder) for name, site in self.sites.items()
        }

    def approve(self, *names: str) -> None:
        for name in names:
            approve(self.sites[name], self.consortium, self.protocol)

    def run(self) -> None:
        consortium = Consortium.open(self.consortium.folder)
        rounds(consortium, STUDY, self.hospitals).run()

    def report(self) -> dict[str, Any]:
        return study_report(
            self.consortium.study(STUDY), self.consortium.journal, admitted=list(NAMES)
        )

    def closed(self) -> list[dict[str, Any]]:
        entries = self.consortium.journal.events("round closed", study=STUDY)
        return [entry.facts for entry in entries]

    def steps(self, name: str) -> int:
        return budget_caps.privacy_spent(self.sites[name], self.protocol).steps


@pytest.fixture
def federation(tmp_path: Path, cohorts: tuple[Path, ...]) -> Federation:
    return Federation(tmp_path, cohorts, aggregation={"quorum": 2})


def test_from_approval_to_a_segmented_patient(
    federation: Federation, cohorts: tuple[Path, ...], tmp_path: Path
) -> None:
    federation.approve("north", "south")
    federation.run()
    closed = federation.closed()
    assert [facts["round"] for facts in closed] == [1, 2]
    assert all(facts["took_part"] == ["north", "south"] for facts in closed)
    for name in ("north", "south"):
        assert federation.steps(name) == 4
        sent = [f for f in events(federation.sites[name], "sent") if f["what"] == "weight update"]
        accepted = [
            entry.facts["update"]
            for entry in federation.consortium.journal.events("reply accepted", site=name)
        ]
        assert [fact["update"] for fact in sent] == accepted
    assert federation.steps("west") == 0
    assert events(federation.sites["west"], "training", "sent") == []
    report = federation.report()
    assert report["state"] == "finished"
    assert report["not_approved"] == ["west"]
    assert "not-approved" in report["declined"]["west"]
    assert set(report["privacy_spent"]) == {"north", "south"}

    # The new weights are the start plus the mean of what the two hospitals sent.
    study = federation.consortium.study(STUDY)
    before = study.load(1, closed[0]["weights"])
    after = study.load(2, closed[1]["weights"])
    changed = norm({name: after[name] - before[name] for name in before})
    assert 0 < changed < 10

    card = release(federation.consortium, STUDY, tmp_path / "model")
    assert (card["sites"], card["never_approved"]) == (["north", "south"], ["west"])
    west = federation.sites["west"]  # who did not train may still use the model
    model = open_model(tmp_path / "model", signer=west.kit.coordinator_key)
    cases = round_training.read_split(west, model.protocol).test
    scores = round_training.mean_dice(
        round_training.score(west, model.protocol, model.weights, cases)
    )
    assert activate(west, model, {"cases": len(cases), "dice": scores}).active
    case = min(path for path in cohorts[2].iterdir() if path.is_dir())
    result = segment(
        case, tmp_path / "out", active_model(west), execution=ExecutionOptions(), trusted=True
    )
    assert result["model"]["weights_sha256"] == closed[1]["weights"]


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"segresnet"}))
def test_another_network_is_another_word_in_the_protocol(
    name: str, tmp_path: Path, cohorts: tuple[Path, ...]
) -> None:
    federation = Federation(
        tmp_path,
        cohorts,
        rounds=1,
        aggregation={"quorum": 2},
        network={"name": name, "size": "tiny"},
    )
    federation.approve("north", "south")
    federation.run()
    assert [facts["took_part"] for facts in federation.closed()] == [["north", "south"]]
    assert federation.steps("north") == federation.steps("south") == 2
    release(federation.consortium, STUDY, tmp_path / "model")
    site = federation.sites["west"]
    model = open_model(tmp_path / "model", signer=site.kit.coordinator_key)
    assert model.protocol.private
    folder = round_training.read_split(site, model.protocol).test[0].images["t1c"].path.parent
    result = segment(
        folder,
        tmp_path / "result",
        model,
        execution=ExecutionOptions(prefetch=0),
        trusted=True,
    )
    assert result["model"]["weights_sha256"] == digest(model.weights)


def test_a_site_over_its_cap_drops_out_and_says_so(federation: Federation) -> None:
    federation.approve(*NAMES)
    west = edit(federation.sites["west"], "max_epsilon = 10.0", "max_epsilon = 8.0")
    patients = frozenset(round_training.training_patients(west, federation.protocol))
    with budget_caps.open_ledger(west) as ledger:
        caps = budget_caps.caps(west, federation.protocol)
        mechanism = Mechanism(2.0, 0.5)
        left = ledger.steps_left(
            study="earlier",
            mechanism=mechanism,
            patients=patients,
            study_cap=caps[0],
            patient_cap=caps[1],
        )
        ledger.reserve(
            study="earlier",
            protocol="0" * 64,
            round_number=1,
            purpose="training",
            patients=patients,
            mechanism=mechanism,
            clipping_norm=1.0,
            steps=left,
            study_cap=caps[0],
            patient_cap=caps[1],
        )
    federation.run()
    # The earlier study spent all that the site allows: no step of this one fits.
    assert [f["dropped"] for f in federation.closed()] == [{"west": "privacy-cap"}] * 2
    assert federation.steps("west") == 0
    assert "privacy budget" in federation.report()["declined"]["west"]
    refused = events(federation.sites["west"], "order refused")
    assert {fact["code"] for fact in refused} == {"privacy-cap"}


def _scaled(content: Content, change: Callable[[np.ndarray], np.ndarray]) -> Content:
    arrays = arrays_of(content)
    name = next(iter(arrays))
    return with_arrays(content, {**arrays, name: change(arrays[name].copy()).astype(np.float32)})


def _with_nan(array: np.ndarray) -> np.ndarray:
    array.flat[0] = np.nan
    return array


def _extra(content: Content) -> Content:
    return with_arrays(content, {**arrays_of(content), "patients": np.zeros(3, np.float32)})


def _fewer(content: Content) -> Content:
    return with_arrays(content, dict(list(arrays_of(content).items())[1:]))


def _talkative(content: Content) -> Content:
    record = content.config_records["gliofed"]
    report = json.loads(str(record["json"]))
    content["gliofed"] = ConfigRecord({"json": json.dumps({**report, "patients": ["Anna"]})})
    return content


def _of_another_round(content: Content) -> Content:
    record = content.config_records["gliofed"]
    report = json.loads(str(record["json"]))
    content["gliofed"] = ConfigRecord({"json": json.dumps({**report, "round": 99})})
    return content


TAMPERED: dict[str, tuple[Callable[[Content], Content], str]] = {
    "NaN": (lambda content: _scaled(content, _with_nan), "update-not-finite"),
    "1e30": (lambda content: _scaled(content, lambda a: np.full_like(a, 1e30)), "update-norm"),
    "wrong shape": (lambda content: _scaled(content, lambda a: a[None]), "update-shape"),
    "extra name": (_extra, "update-name"),
    "missing name": (_fewer, "update-name"),
    "extra field": (_talkative, "update-form"),
    "another round": (_of_another_round, "update-form"),
}


def test_a_tampered_reply_is_left_out(tmp_path: Path, cohorts: tuple[Path, ...]) -> None:
    """In each round another."""
    count = len(TAMPERED)
    changes = {"rounds": count, "evaluate_every": count, "training": {"local_steps": 1}}
    federation = Federation(tmp_path, cohorts, aggregation={"quorum": 2}, **changes)
    federation.approve(*NAMES)
    west = federation.hospitals["west"]
    ways = iter(TAMPERED.values())

    def reply(content: Content) -> Content:
        answered = west.answer(content)
        return next(ways)[0](answered) if "arrays" in answered.array_records else answered

    federation.hospitals["west"] = reply
    federation.run()
    codes = [code for _, code in TAMPERED.values()]
    assert [facts["dropped"] for facts in federation.closed()] == [{"west": code} for code in codes]
    assert all(facts["took_part"] == ["north", "south"] for facts in federation.closed())
    refused = federation.report()["refused_replies"]
    assert [(one["site"], one["code"]) for one in refused] == [("west", code) for code in codes]
    # The hospital's own journal says what it sent and what that cost.
    sent = [f for f in events(federation.sites["west"], "sent") if "update" in f]
    assert len(sent) == federation.steps("west") == count


class Killed(BaseException):
    """The coordinator's process ends here."""


def test_a_coordinator_killed_in_a_round_goes_on_without_new_cost(
    federation: Federation, tmp_path: Path
) -> None:
    federation.approve(*NAMES)
    whole = dict(federation.hospitals)

    def killing(content: Content) -> Content:
        answered: Content = whole["west"].answer(content)
        report = json.loads(str(answered.config_records["gliofed"]["json"]))
        if (report["kind"], report["round"]) == ("train", 2):
            raise Killed
        return answered

    federation.hospitals["west"] = killing
    with pytest.raises(Killed):
        federation.run()
    assert [facts["round"] for facts in federation.closed()] == [1]
    first = {name: digest_of_outbox(federation.sites[name]) for name in NAMES}
    federation.hospitals = {
        name: Participation.open(site.folder) for name, site in federation.sites.items()
    }
    federation.run()
    assert [facts["round"] for facts in federation.closed()] == [1, 2]
    assert federation.closed()[1]["took_part"] == sorted(NAMES)
    for name in NAMES:
        assert federation.steps(name) == 4
        assert len(events(federation.sites[name], "training")) == 2
        assert len(events(federation.sites[name], "order given again")) == 1
        assert digest_of_outbox(federation.sites[name]) == first[name]
    assert len(federation.consortium.journal.events("study resumed")) == 1
    assert len(federation.consortium.journal.events("study finished")) == 1


def digest_of_outbox(site: Site) -> str:
    (kept,) = (site.folder / "outbox" / STUDY).glob("*.safetensors")
    return digest(load(kept))
