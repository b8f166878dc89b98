"""What a site does with an order, from the signature to the reply, on phantoms."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from client.privacy import accountant, budget_caps
from client.privacy.accountant import epsilon
from client.privacy.dp_histograms import noised_statistics
from client.privacy.mechanism import UNPROTECTED, Fact, Mechanism
from client.runtime.order_handler import Participation
from client.site.folder import Site
from client.site.pseudonyms import patients_key, pseudonym
from client.study import reported_metrics, round_training
from client.study.consent import check_order
from client.study.round_state import Trained
from client.study.withdrawal import withdraw
from client.views.budget import budget, patients_now
from common.errors import CaseError, ConsentError, UpdateError
from common.messages.compression import plain
from common.messages.wire_format import Content, Report, pack
from common.records.weights import Arrays, digest, norm
from common.study.protocol import APPROVAL, StudyProtocol
from common.trust.identity import Identity, Statement
from server.consortium.provisioning import Consortium
from tests.consortia import STUDY, answer, edit, events, order, tiny_protocol

OPEN = {"privacy": {"mode": "none"}}
SECRET = "patient Anna Tamm, born 1961"


class Hospital:
    """A joined site, its answers, and the coordinator who gives the orders."""

    def __init__(self, site: Site, coordinator: Identity) -> None:
        self.site = site
        self.coordinator = coordinator
        self.participation = Participation.open(site.folder)

    def ask(
        self, study: StudyProtocol, kind: Any, /, *, signer: Identity | None = None, **changes: Any
    ) -> tuple[Report, Arrays]:
        content = order(signer or self.coordinator, study, kind, **changes)
        return answer(self.participation, content)

    def approve(self, protocol: StudyProtocol) -> None:
        """Let the site see the study, and a person approve it."""
        self.ask(protocol, "offer")
        self.site.decide(protocol.study, "approve", by="Dr. Tamm")

    def train(
        self, protocol: StudyProtocol, *, number: int = 1, weights: Arrays | None = None
    ) -> tuple[Report, Arrays]:
        weights = weights or round_training.starting_weights(protocol)
        return self.ask(protocol, "train", number=number, weights=weights)

    def facts(self) -> tuple[Fact, ...]:
        with budget_caps.open_ledger(self.site) as ledger:
            return ledger.facts()


def sent_data(site: Site) -> list[Any]:
    """Return what left beside approvals and refusals."""
    return [f for f in events(site, "sent") if f["what"] != "the signed approval"]


@pytest.fixture
def hospital(site: Site, consortium: Consortium) -> Hospital:
    return Hospital(site, consortium.identity)


@pytest.fixture
def approving(hospital: Hospital, protocol: StudyProtocol) -> Hospital:
    hospital.approve(protocol)
    return hospital


def test_an_offer_waits_for_a_person(hospital: Hospital, protocol: StudyProtocol) -> None:
    report, arrays = hospital.ask(protocol, "offer")
    assert (report.status, report.code, report.approval) == ("pending", "not-approved", "")
    assert arrays == {}
    hospital.site.decide(STUDY, "approve", by="Dr. Tamm")
    report, _ = hospital.ask(protocol, "offer")
    assert report.status == "done"
    body = Statement.loads(report.approval).opened(
        kind=APPROVAL, signer=hospital.site.identity.public
    )
    assert (body["protocol"], body["decision"]) == (protocol.digest, "approve")


def test_a_refused_offer_says_why_and_is_journalled_once(
    hospital: Hospital, protocol: StudyProtocol
) -> None:
    hospital.ask(protocol, "offer")
    hospital.site.decide(STUDY, "refuse", by="Dr. Tamm", why="ethics board")
    for _ in range(5):
        report, _ = hospital.ask(protocol, "offer")
        assert (report.status, report.code) == ("refused", "refused-by-site")
        assert "ethics board" in report.reason
    assert len(events(hospital.site, "order refused")) == 1
    hospital.train(protocol)
    assert len(events(hospital.site, "order refused")) == 2


@pytest.mark.parametrize("kind", ["initial", "train", "evaluate"])
def test_nothing_is_done_before_a_person_approved(
    hospital: Hospital, protocol: StudyProtocol, kind: str
) -> None:
    weights = round_training.starting_weights(protocol)
    report, arrays = hospital.ask(protocol, kind, weights=weights)
    assert (report.status, report.code) == ("refused", "not-approved")
    assert arrays == {}
    assert hospital.facts() == ()
    assert not (hospital.site.folder / "cache").exists()


def test_a_decision_taken_back_counts_at_once(approving: Hospital, protocol: StudyProtocol) -> None:
    approving.site.decide(STUDY, "refuse", by="Dr. Tamm", why="no")
    report, arrays = approving.train(protocol)
    assert (report.code, arrays, approving.facts()) == ("refused-by-site", {}, ())


def test_starting_weights_are_those_of_the_seed(
    approving: Hospital, protocol: StudyProtocol
) -> None:
    report, arrays = approving.ask(protocol, "initial")
    assert report.status == "done"
    assert digest(arrays) == digest(round_training.starting_weights(protocol))


def test_training_is_charged_recorded_and_kept(
    approving: Hospital, protocol: StudyProtocol
) -> None:
    weights = round_training.starting_weights(protocol)
    report, update = approving.train(protocol, weights=weights)
    assert (report.status, report.code, report.reason) == ("done", "", "")
    assert report.case_count == "1-9"
    assert {name: a.shape for name, a in update.items()} == {
        name: a.shape for name, a in weights.items()
    }
    facts = approving.facts()
    assert [(f.study, f.round, f.steps, f.state) for f in facts] == [
        (STUDY, 1, 1, "confirmed"),
        (STUDY, 1, 1, "confirmed"),
    ]
    assert {f.mechanism for f in facts} == {Mechanism(2.0, 0.5)}
    assert {f.protocol for f in facts} == {protocol.digest}
    spent = report.privacy_spent
    assert spent is not None
    assert (spent.steps, spent.delta) == (2, 1e-3)
    assert 0 < spent.epsilon < 8
    (sent,) = sent_data(approving.site)
    assert sent["what"] == "weight update"
    assert sent["to"] == "Northern Consortium, 127.0.0.1:4433"
    assert sent["update"] == digest(update)
    message = report.model_dump_json(exclude_defaults=True)
    assert sent["bytes"] == len(plain(update)) + len(message)
    assert sent["norm"] == pytest.approx(norm(update), abs=1e-5)
    assert sent["private"] is True
    assert sent["case_count"] == "1-9"
    assert sent["privacy_spent"]["steps"] == 2


def test_the_first_round_starts_from_the_weights_that_were_approved(hospital: Hospital) -> None:
    own = round_training.starting_weights(tiny_protocol())
    other = {name: value + 1 for name, value in own.items()}
    protocol = tiny_protocol(initial_sha256=digest(own))
    hospital.approve(protocol)
    report, arrays = hospital.train(protocol, weights=other)
    assert (report.status, report.code, arrays, hospital.facts()) == ("refused", "initial", {}, ())
    assert digest(own)[:16] in report.reason
    assert hospital.train(protocol, weights=own)[0].status == "done"
    assert hospital.train(protocol, number=2, weights=other)[0].status == "done"


def test_the_same_order_again_costs_nothing(approving: Hospital, protocol: StudyProtocol) -> None:
    _, first = approving.train(protocol)
    approving.participation = Participation.open(approving.site.folder)  # as after a restart
    report, again = approving.train(protocol)
    assert digest(again) == digest(first)
    assert report.status == "done"
    assert len(approving.facts()) == 2
    assert len(events(approving.site, "order given again")) == 1
    assert [s["update"] for s in events(approving.site, "sent")] == [digest(first)] * 2


def test_another_round_is_new_training_and_replaces_what_was_kept(
    approving: Hospital, protocol: StudyProtocol
) -> None:
    _, first = approving.train(protocol)
    _, second = approving.train(protocol, number=2)
    assert digest(first) != digest(second)
    assert len(approving.facts()) == 4
    kept = list((approving.site.folder / "outbox" / STUDY).iterdir())
    assert {path.name[:5] for path in kept} == {"0002-"}


def test_a_study_ends_where_its_budget_ends(hospital: Hospital) -> None:
    protocol = tiny_protocol(privacy={"max_epsilon": 3.0}, rounds=100)
    hospital.approve(protocol)
    weights = round_training.starting_weights(protocol)
    for number in range(1, 100):
        report, arrays = hospital.train(protocol, number=number, weights=weights)
        if report.status != "done":
            break
        assert report.privacy_spent is not None
        assert report.privacy_spent.epsilon <= 3.0
    assert (report.status, report.code, arrays) == ("refused", "privacy-cap", {})
    assert number > 2
    assert f"privacy budget of study {STUDY}" in report.reason
    assert events(hospital.site, "order refused")[-1]["code"] == "privacy-cap"


def test_a_round_that_does_not_fit_whole_spends_nothing(hospital: Hospital) -> None:
    protocol = tiny_protocol(privacy={"max_epsilon": 3.0}, training={"local_steps": 50})
    hospital.approve(protocol)
    report, _ = hospital.train(protocol)
    assert report.code == "privacy-cap"
    assert hospital.facts() == ()


def test_a_patients_cap_counts_over_all_studies(hospital: Hospital) -> None:
    hospital.site = edit(hospital.site, "max_epsilon = 10.0", "max_epsilon = 2.5")
    changes: dict[str, Any] = {
        "rounds": 9,
        "privacy": {"max_epsilon": 2.5},
        "training": {"local_steps": 2},
    }
    both = [tiny_protocol(**changes), tiny_protocol(study="another-one", **changes)]
    codes: list[list[str]] = [[], []]
    for number in range(1, 10):
        for place, protocol in enumerate(both):
            hospital.approve(protocol)
            codes[place].append(hospital.train(protocol, number=number)[0].code)
    assert [found[0] for found in codes] == ["", ""]
    assert [found[-1] for found in codes] == ["privacy-cap"] * 2
    facts = hospital.facts()
    assert {fact.study for fact in facts} == {protocol.study for protocol in both}
    with budget_caps.open_ledger(hospital.site) as ledger:
        shared = ledger.patients(study=both[0].study) & ledger.patients(study=both[1].study)
        assert shared
        for patient in ledger.patients():
            own = [(fact.mechanism, fact.steps) for fact in ledger.facts(patient=patient)]
            assert accountant.epsilon(own, 1e-3) <= 2.5


@pytest.mark.parametrize(
    ("delta", "set_to", "code"),
    [
        (1e-3, '"auto"', ""),
        (2e-3, '"auto"', "policy-delta"),
        (2e-3, "0.002", ""),
        (1e-3, "0.0009", "policy-delta"),
    ],
)
def test_a_delta_above_the_hospitals_cap_is_refused(
    hospital: Hospital, delta: float, set_to: str, code: str
) -> None:
    hospital.site = edit(hospital.site, 'max_delta = "auto"', f"max_delta = {set_to}")
    protocol = tiny_protocol(privacy={"delta": delta})
    hospital.approve(protocol)
    report, _ = hospital.train(protocol)
    assert report.code == code
    assert bool(hospital.facts()) is (code == "")


def test_no_setting_allows_a_delta_of_one_over_the_patients(hospital: Hospital) -> None:
    hospital.site = edit(hospital.site, 'max_delta = "auto"', "max_delta = 0.09")
    protocol = tiny_protocol(privacy={"delta": 0.09})
    protocol = protocol.model_copy(
        update={"privacy": protocol.privacy.model_copy(update={"delta": 0.25})}
    )
    with pytest.raises(ConsentError) as caught:
        round_training.train_round(
            hospital.site, protocol, round_training.starting_weights(protocol), round_number=1
        )
    assert caught.value.code == "policy-delta"
    assert hospital.facts() == ()


def test_without_privacy_only_if_both_say_so(hospital: Hospital) -> None:
    protocol = tiny_protocol(**OPEN)
    hospital.approve(protocol)
    report, arrays = hospital.train(protocol)
    assert (report.code, arrays) == ("policy-privacy", {})
    with pytest.raises(ConsentError):
        round_training.train_round(
            hospital.site, protocol, round_training.starting_weights(protocol), round_number=1
        )
    hospital.site = edit(hospital.site, "privacy = false", "privacy = true")
    report, arrays = hospital.train(protocol)
    assert (report.status, report.privacy_spent) == ("done", None)
    assert arrays
    (fact,) = hospital.facts()
    assert (fact.mechanism, fact.steps, fact.state) == (UNPROTECTED, 2, "confirmed")
    (sent,) = events(hospital.site, "sent")
    assert sent["private"] is False


def test_permission_to_drop_privacy_changes_nothing_in_a_private_study(
    approving: Hospital, protocol: StudyProtocol
) -> None:
    approving.site = edit(approving.site, "privacy = false", "privacy = true")
    report, _ = approving.train(protocol)
    assert report.privacy_spent is not None
    assert len(approving.facts()) == 2


@pytest.mark.parametrize("who", ["site", "study"])
def test_either_side_may_keep_reports_back(hospital: Hospital, who: str) -> None:
    if who == "site":
        line = 'reports = ["case_count", "privacy_spent", "withdrawals"]'
        hospital.site = edit(hospital.site, line, "reports = []")
        hospital.site = edit(hospital.site, 'dice = "exact"', 'dice = "never"')
        protocol = tiny_protocol()
    else:
        protocol = tiny_protocol(reports=[])
    hospital.approve(protocol)
    report, update = hospital.train(protocol)
    assert (report.case_count, report.privacy_spent) == (None, None)
    (sent,) = sent_data(hospital.site)
    assert set(sent) & {"case_count", "privacy_spent"} == set()
    report, _ = hospital.ask(
        protocol, "evaluate", number=1, weights=round_training.starting_weights(protocol)
    )
    assert (report.status, report.dice) == ("done", None)
    assert len(sent_data(hospital.site)) == 1
    assert update


def test_validation_scores_leave_and_are_recorded(
    approving: Hospital, protocol: StudyProtocol
) -> None:
    weights = round_training.starting_weights(protocol)
    approving.train(protocol)
    report, arrays = approving.ask(protocol, "evaluate", number=1, weights=weights)
    assert arrays == {}
    assert report.dice is not None
    assert set(report.dice) == {"WT", "TC", "ET"}
    sent = sent_data(approving.site)[-1]
    assert sent["what"] == "exact Dice of the validation patients"
    assert sent["dice"] == report.dice


def test_one_round_is_scored_for_one_model_only(
    approving: Hospital, protocol: StudyProtocol
) -> None:
    weights = round_training.starting_weights(protocol)
    approving.train(protocol)
    for _ in range(2):  # the same order again is answered again
        assert approving.ask(protocol, "evaluate", number=1, weights=weights)[0].status == "done"
    other = {name: array + 1 for name, array in weights.items()}
    report, _ = approving.ask(protocol, "evaluate", number=1, weights=other)
    assert (report.status, report.code, report.dice) == ("refused", "evaluated-already", None)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_no_round_after_the_last(approving: Hospital, protocol: StudyProtocol, kind: Any) -> None:
    weights = round_training.starting_weights(protocol)
    number = protocol.rounds + 1
    report, arrays = approving.ask(protocol, kind, number=number, weights=weights)
    assert (report.status, report.code, arrays) == ("refused", "rounds", {})


def test_an_update_that_fails_its_checks_does_not_leave(
    approving: Hospital, protocol: StudyProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = round_training.starting_weights(protocol)
    spoilt = {name: np.full_like(array, np.nan) for name, array in weights.items()}
    monkeypatch.setattr(round_training, "train_round", lambda *_, **__: Trained(spoilt))
    report, arrays = approving.ask(protocol, "train", number=1, weights=weights)
    assert (report.status, report.code, arrays) == ("failed", "update-not-finite", {})
    assert not sent_data(approving.site)


def test_no_validation_patient_no_score(hospital: Hospital) -> None:
    # In a study of this name none of the six patients is drawn for validation.
    protocol = tiny_protocol(study="empty-validation-0")
    split = round_training.read_split(hospital.site, protocol)
    assert split.patients["validation"] == 0
    hospital.approve(protocol)
    weights = round_training.starting_weights(protocol)
    hospital.train(protocol)
    report, _ = hospital.ask(protocol, "evaluate", number=1, weights=weights)
    assert (report.status, report.dice) == ("done", None)
    assert [fact["order"] for fact in sent_data(hospital.site)] == ["train"]


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_weights_must_be_those_that_the_order_names(
    approving: Hospital, protocol: StudyProtocol, kind: str
) -> None:
    weights = round_training.starting_weights(protocol)
    report, arrays = approving.ask(
        protocol, kind, number=1, weights=weights, weights_sha256="0" * 64
    )
    assert (report.status, report.code, report.reason) == ("failed", "weights", "")
    assert arrays == {}
    assert approving.facts() == ()


def test_a_protocol_signed_by_another_key_is_refused(
    hospital: Hospital, protocol: StudyProtocol, tmp_path: Path
) -> None:
    stranger = Identity.create(tmp_path / "stranger.key")
    for kind in ("offer", "train"):
        report, _ = hospital.ask(protocol, kind, signer=stranger)
        assert (report.status, report.code) == ("refused", "identity")
    assert hospital.site.study_names() == []
    refused = events(hospital.site, "order refused")
    assert [fact["order"] for fact in refused] == ["offer", "train"]


def test_a_changed_protocol_is_refused(approving: Hospital) -> None:
    report, _ = approving.train(tiny_protocol(privacy={"max_epsilon": 9.0}))
    assert (report.status, report.code) == ("refused", "protocol-changed")


def test_an_order_for_another_study_than_its_protocol(
    approving: Hospital, protocol: StudyProtocol
) -> None:
    report, _ = approving.ask(protocol, "initial", study="another-one")
    assert (report.status, report.code) == ("refused", "mismatch")


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '{"kind": 1}'])
def test_a_protocol_that_is_none(hospital: Hospital, protocol: StudyProtocol, text: str) -> None:
    report, _ = hospital.ask(protocol, "offer", protocol=text)
    assert (report.status, report.code) == ("refused", "identity")


def test_outside_its_hours_a_site_refuses(approving: Hospital, protocol: StudyProtocol) -> None:
    approving.site = edit(approving.site, "00:00-24:00", "00:00-00:00")
    report, _ = approving.train(protocol)
    assert (report.status, report.code) == ("refused", "policy-hours")
    assert [fact["code"] for fact in events(approving.site, "order refused")] == ["policy-hours"]
    assert approving.facts() == ()


def test_hours_are_read_on_the_hospitals_clock(
    approving: Hospital, protocol: StudyProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Night(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Night:
            assert tz is None
            return cls(2030, 5, 1, 3, 0)

    approving.site = edit(approving.site, "00:00-24:00", "20:00-06:00")
    monkeypatch.setattr("client.runtime.order_handler.dt.datetime", Night)
    seen: list[dt.datetime] = []

    def check(*args: Any, **values: Any) -> None:
        seen.append(values["now"])
        check_order(*args, **values)

    monkeypatch.setattr("client.runtime.order_handler.check_order", check)
    # The journal reads the real clock.
    monkeypatch.setattr(Participation, "_record", lambda *_, **__: None)
    monkeypatch.setattr(
        "client.runtime.order_handler.let_out",
        lambda _, __, ___, reply: pack(reply.report, reply.body),
    )
    report, _ = approving.ask(protocol, "initial")
    assert report.status == "done"
    assert seen[0].hour == 3


def test_wrong_settings_become_a_code(approving: Hospital, protocol: StudyProtocol) -> None:
    path = approving.site.folder / "site.toml"
    path.write_text(path.read_text().replace("threads = 0", "threads = -1"))
    report, _ = approving.train(protocol)
    assert (report.status, report.code, report.reason) == ("failed", "state", "")


def test_an_unforeseen_failure_leaves_only_a_code_and_its_text_is_in_the_log_alone(
    approving: Hospital,
    protocol: StudyProtocol,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> Arrays:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(round_training, "train_round", fail)
    content = order(
        approving.coordinator,
        protocol,
        "train",
        number=1,
        weights=round_training.starting_weights(protocol),
    )
    reply = approving.participation.answer(content)
    assert SECRET not in str(reply)
    report = Report.model_validate_json(str(reply.config_records["gliofed"]["json"]))
    assert (report.status, report.code, report.reason) == ("failed", "internal", "")
    assert list(reply.array_records) == []
    (failed,) = events(approving.site, "order failed")
    assert (failed["code"], failed["error"]) == ("internal", "RuntimeError")
    assert SECRET not in approving.site.journal.path.read_text()
    assert SECRET in caplog.text


def test_words_about_a_case_never_leave_and_are_not_journalled(
    approving: Hospital,
    protocol: StudyProtocol,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> Arrays:
        raise CaseError(f"{SECRET} has no t1n.", do=SECRET, code="case-grid")

    monkeypatch.setattr(round_training, "train_round", fail)
    reply, _ = approving.train(protocol)
    assert (reply.status, reply.code) == ("failed", "case-grid")
    assert SECRET not in reply.model_dump_json()
    assert "gliofed-site check" in events(approving.site, "order refused")[0]["reason"]
    assert SECRET not in approving.site.journal.path.read_text()
    assert SECRET in caplog.text


def test_an_empty_cohort_leaves_as_a_code(
    make_site: Callable[..., Site], consortium: Consortium, tmp_path: Path, protocol: StudyProtocol
) -> None:
    (tmp_path / "nothing").mkdir()
    site = make_site("south", tmp_path / "nothing")
    hospital = Hospital(site, consortium.identity)
    hospital.approve(protocol)
    report, _ = hospital.train(protocol)
    assert (report.status, report.code, report.reason) == ("failed", "case-none", "")
    assert hospital.facts() == ()


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({}),
        RecordDict({"gliofed": ConfigRecord({"json": "{}"})}),
        RecordDict({"gliofed": ConfigRecord({"json": "?"}), "more": ConfigRecord({})}),
    ],
)
def test_what_is_no_order_cannot_be_answered(hospital: Hospital, content: Content) -> None:
    with pytest.raises(UpdateError):
        hospital.participation.answer(content)


def test_scores_leave_with_noise_once_a_round_and_are_charged(hospital: Hospital) -> None:
    protocol = tiny_protocol(privacy={"dice_noise_multiplier": 3.0})
    hospital.site = edit(hospital.site, 'dice = "exact"', 'dice = "noised"')
    hospital.approve(protocol)
    weights = round_training.starting_weights(protocol)
    patients = reported_metrics.validation_patients(hospital.site, protocol)
    exact = reported_metrics.validation_dice(hospital.site, protocol, weights, patients)
    hospital.train(protocol)
    trained = len(hospital.facts())
    said = [hospital.ask(protocol, "evaluate", number=1, weights=weights)[0] for _ in range(2)]
    assert said[0].dice is not None
    assert said[0].dice != exact
    assert said[0].dice_noise is not None
    assert said[0].dice == said[1].dice  # the same noise: averaging answers does not help
    (fact,) = hospital.facts()[trained:]
    assert (fact.purpose, fact.mechanism, fact.steps) == ("metrics", Mechanism(3.0, 1.0), 1)
    (*_, sent, _) = sent_data(hospital.site)
    assert sent["what"] == "Dice of the validation patients, with noise"
    hospital.train(protocol, number=2)
    other, _ = hospital.ask(protocol, "evaluate", number=2, weights=weights)
    assert other.dice is not None
    assert len(hospital.facts()) == 2 * trained + 2


def test_noised_scores_end_with_the_budget(hospital: Hospital) -> None:
    protocol = tiny_protocol(privacy={"dice_noise_multiplier": 0.5, "max_epsilon": 2.0})
    hospital.site = edit(hospital.site, 'dice = "exact"', 'dice = "noised"')
    hospital.approve(protocol)
    weights = round_training.starting_weights(protocol)
    hospital.train(protocol)
    trained = hospital.facts()
    report, _ = hospital.ask(protocol, "evaluate", number=1, weights=weights)
    assert (report.status, report.code, report.dice) == ("refused", "privacy-cap", None)
    assert hospital.facts() == trained


HISTOGRAMS = {"about": ["volumes", "spacing"], "noise_multiplier": 4.0}


@pytest.fixture
def describing(hospital: Hospital) -> Hospital:
    hospital.site = edit(hospital.site, '"withdrawals"]', '"withdrawals", "statistics"]')
    return hospital


def test_histograms_leave_once_with_noise_and_are_charged(describing: Hospital) -> None:
    protocol = tiny_protocol(statistics=HISTOGRAMS)
    describing.approve(protocol)
    said = []
    for _ in range(2):
        said.append(describing.ask(protocol, "describe", number=0)[0].statistics)
        describing.participation = Participation.open(describing.site.folder)
    assert said[0] is not None
    assert set(said[0]) == set(protocol.statistics.histograms)
    assert said[0] == said[1]  # the same noise: averaging answers does not help
    (fact,) = describing.facts()
    assert (fact.purpose, fact.mechanism) == ("statistics", Mechanism(4.0, 1.0))
    assert (fact.round, fact.steps, fact.state) == (0, 1, "confirmed")
    (sent, _) = sent_data(describing.site)
    assert sent["what"] == "histograms of the training patients, with noise (volumes, spacing)"
    report, _ = describing.train(protocol)
    assert report.privacy_spent is not None
    assert report.privacy_spent.steps == 2
    taken = [(Mechanism(2.0, 0.5), 2), (Mechanism(4.0, 1.0), 1)]
    assert report.privacy_spent.epsilon == pytest.approx(epsilon(taken, 1e-3), abs=1e-3)


@pytest.mark.parametrize(("asked", "allowed"), [(True, False), (False, True)])
def test_histograms_leave_only_if_both_sides_want_them(
    hospital: Hospital, asked: bool, allowed: bool
) -> None:
    if allowed:
        hospital.site = edit(hospital.site, '"withdrawals"]', '"withdrawals", "statistics"]')
    protocol = tiny_protocol(**({"statistics": HISTOGRAMS} if asked else {}))
    hospital.approve(protocol)
    report, _ = hospital.ask(protocol, "describe", number=0)
    assert (report.status, report.statistics) == ("done", None)
    assert hospital.facts() == ()
    assert sent_data(hospital.site) == []


def test_histograms_end_with_the_budget(describing: Hospital) -> None:
    protocol = tiny_protocol(
        privacy={"max_epsilon": 1.0}, statistics={**HISTOGRAMS, "noise_multiplier": 0.5}
    )
    describing.approve(protocol)
    report, _ = describing.ask(protocol, "describe", number=0)
    assert (report.status, report.code, report.statistics) == ("refused", "privacy-cap", None)
    assert describing.facts() == ()


def test_a_patient_whose_scans_cannot_be_read_adds_nothing_and_is_charged(
    make_site: Callable[..., Site], own_cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = tiny_protocol(statistics=HISTOGRAMS)
    site = edit(make_site("south", own_cohort), '"withdrawals"]', '"withdrawals", "statistics"]')
    broken, *_ = cases = round_training.read_split(site, protocol).train
    broken.images["t1n"].path.write_bytes(b"no image")
    seen: list[Any] = []

    def counted(vectors: Any, options: Any) -> Any:
        seen.extend(vectors)
        return noised_statistics(seen, options)

    monkeypatch.setattr(reported_metrics, "noised_statistics", counted)
    reported_metrics.noised_cohort_statistics(site, protocol)
    patients = {case.patient for case in cases}
    assert len(seen) == len(patients)
    assert [vector.any() for vector in seen].count(False) == 1
    with budget_caps.open_ledger(site) as ledger:
        assert len(ledger.patients()) == len(patients)


def test_heads_of_both_journals_travel(approving: Hospital, protocol: StudyProtocol) -> None:
    weights = round_training.starting_weights(protocol)
    heads = ["1" * 64, "2" * 64]
    first, _ = approving.ask(
        protocol, "train", number=1, weights=weights, coordinator_head=heads[0]
    )
    assert first.site_head == approving.site.journal.head
    assert first.coordinator_head == ""  # the offers of this test carried none
    second, _ = approving.ask(
        protocol,
        "train",
        number=2,
        weights=weights,
        coordinator_head=heads[1],
        site_head=first.site_head,
    )
    assert second.coordinator_head == heads[0]
    assert second.site_head not in {first.site_head, ""}


@pytest.mark.parametrize("kind", ["offer", "train", "evaluate"])
def test_a_journal_put_back_from_an_old_copy_stops_the_site(
    approving: Hospital, protocol: StudyProtocol, kind: Any
) -> None:
    path = approving.site.folder / "journal.jsonl"
    old = path.read_bytes()
    weights = round_training.starting_weights(protocol)
    report, _ = approving.train(protocol)
    path.write_bytes(old)
    for _ in range(2):  # what the site says of it does not become its history
        again, arrays = approving.ask(
            protocol, kind, number=2, weights=weights, site_head=report.site_head
        )
        assert (again.status, again.code, arrays) == ("refused", "journal-fork", {})
        assert again.site_head == ""


def test_a_ledger_put_back_from_an_old_copy_stops_training(
    approving: Hospital, protocol: StudyProtocol
) -> None:
    path = approving.site.folder / "ledger.sqlite"
    old = path.read_bytes()
    approving.train(protocol)
    path.write_bytes(old)
    report, arrays = approving.train(protocol, number=2)
    assert (report.status, report.code, report.reason, arrays) == ("failed", "ledger-old", "", {})


def test_answers_wait_for_a_multiple_of_the_time(
    hospital: Hospital, protocol: StudyProtocol
) -> None:
    hospital.site = edit(hospital.site, "answer_every_s = 0.0", "answer_every_s = 100.0")
    waited: list[float] = []
    hospital.participation = Participation(hospital.site, pause=waited.append)
    hospital.approve(protocol)
    assert waited == []
    hospital.train(protocol)
    assert len(waited) == 1
    assert 0 < waited[0] < 100


def test_a_patient_without_budget_is_left_out_and_the_others_go_on(
    approving: Hospital, protocol: StudyProtocol
) -> None:
    site = approving.site
    names = sorted(round_training.training_patients(site, protocol))
    spent = frozenset(names[:1])
    cap = budget_caps.caps(site, protocol)[1]
    with budget_caps.open_ledger(site) as ledger:
        wanted = budget_caps.mechanism(protocol)
        room = ledger.steps_left(
            study="earlier", mechanism=wanted, patients=spent, study_cap=cap, patient_cap=cap
        )
        ledger.reserve(
            study="earlier",
            protocol="0" * 64,
            round_number=1,
            purpose="training",
            patients=spent,
            mechanism=wanted,
            clipping_norm=1.0,
            steps=room - 1,
            study_cap=cap,
            patient_cap=cap,
        )
    report, update = approving.train(protocol)
    assert (report.status, bool(update)) == ("done", True)
    (left_out,) = events(site, "patients left out")
    assert left_out["patients"] == 1
    assert not set(names) & set(str(left_out).split("'"))
    with budget_caps.open_ledger(site) as ledger:
        assert ledger.patients(study=protocol.study) == frozenset(names[1:])


def test_who_has_withdrawn_is_in_no_part_and_the_rounds_are_said(
    approving: Hospital, protocol: StudyProtocol
) -> None:
    site = approving.site
    first, _ = approving.train(protocol)
    assert first.withdrawn == ()
    case = round_training.read_split(site, protocol).train[0]
    withdraw(site, case.patient, by="Dr. Tamm")
    parts = round_training.read_split(site, protocol)
    everyone = {one.patient for part in (parts.train, parts.validation, parts.test) for one in part}
    assert case.patient not in everyone
    report, _ = approving.train(protocol, number=2)
    assert report.withdrawn == (1,)
    hidden = pseudonym(patients_key(site), case.patient)
    with budget_caps.open_ledger(site) as ledger:
        assert {f.round for f in ledger.facts(patient=hidden)} == {1}
    text = (site.folder / "journal.jsonl").read_text()
    assert case.patient not in text


def test_who_was_trained_on_without_privacy_has_no_room_afterwards(hospital: Hospital) -> None:
    hospital.site = edit(hospital.site, "privacy = false", "privacy = true")
    bare, private = tiny_protocol(study="bare", **OPEN), tiny_protocol()
    for protocol in (bare, private):
        hospital.approve(protocol)
    hospital.train(bare)
    open_steps = len(hospital.facts())
    shared = patients_now(hospital.site, private) & patients_now(hospital.site, bare)
    assert shared
    hospital.train(private)
    with budget_caps.open_ledger(hospital.site) as ledger:
        for one in shared:
            assert [fact.study for fact in ledger.facts(patient=one)] == ["bare"]
    assert open_steps == 1
    found = budget(hospital.site)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["all_studies"]["epsilon_spent"] == "infinity"
    by_name = {one["study"]: one for one in found["studies"]}
    assert by_name["bare"]["epsilon_spent"] == "infinity"


def test_no_refusal_says_what_patients_have_spent(hospital: Hospital) -> None:
    line = 'reports = ["case_count", "privacy_spent", "withdrawals"]'
    hospital.site = edit(hospital.site, line, "reports = []")
    other = tiny_protocol(study="other")
    long = tiny_protocol(training={"local_steps": 500})
    for protocol in (other, long):
        hospital.approve(protocol)
    said = []
    for number in (1, 2):
        said.append(hospital.train(long)[0])
        hospital.train(other, number=number)
    said.append(hospital.train(long)[0])
    assert {(one.status, one.code) for one in said} == {("refused", "privacy-cap")}
    assert len({one.reason for one in said}) == 1
