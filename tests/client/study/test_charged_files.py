"""What waits to leave is bound to the ledger: one that was put back lets nothing leave unpaid."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.privacy.budget_caps import open_ledger
from client.runtime import order_handler
from client.site.folder import Site
from client.study import charged_files, round_training
from client.views.journal_audit import audit
from common.errors import StateError
from server.consortium.provisioning import Consortium
from tests.client.runtime.test_order_handler import Hospital
from tests.client.views.test_budget import charge
from tests.consortia import STUDY, edit, events, tiny_protocol

PATIENT = "a" * 32


class KilledError(BaseException):
    pass


@pytest.fixture
def hospital(site: Site, consortium: Consortium) -> Hospital:
    return Hospital(site, consortium.identity)


def copy_ledger(site: Site, to: Path) -> None:
    shutil.copy(site.folder / "ledger.sqlite", to)


def put_back(site: Site, copy: Path) -> None:
    for path in site.folder.glob("ledger.sqlite*"):
        path.unlink()
    shutil.copy(copy, site.folder / "ledger.sqlite")


def kill_before_sending(hospital: Hospital, act: Callable[[], Any]) -> None:
    """Let the site's process die when all is kept and nothing was journalled as sent."""

    def die(*_: object) -> None:
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_handler, "let_out", die)
        with pytest.raises(KilledError):
            act()


def test_a_kept_update_of_a_ledger_that_was_put_back_does_not_leave(
    hospital: Hospital, tmp_path: Path
) -> None:
    protocol = tiny_protocol(rounds=5)
    hospital.approve(protocol)
    hospital.train(protocol)
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    copy_ledger(hospital.site, old)
    kill_before_sending(hospital, lambda: hospital.train(protocol, number=2))
    copy_ledger(hospital.site, new)
    put_back(hospital.site, old)
    hospital = Hospital(hospital.site, hospital.coordinator)
    for _ in range(2):
        report, update = hospital.train(protocol, number=2)
        assert (report.status, report.code, report.reason, update) == (
            "failed",
            "ledger-old",
            "",
            {},
        )
    (damage,) = audit(hospital.site).damage
    assert damage.code == "ledger-old"
    assert "outbox" in damage.message
    assert hospital.train(protocol, number=3)[0].code == "ledger-old"
    put_back(hospital.site, new)
    report, update = hospital.train(protocol, number=2)
    assert (report.status, bool(update)) == ("done", True)
    assert len(hospital.facts()) == 4  # it was kept, and cost nothing again
    assert audit(hospital.site).damage == ()


@pytest.mark.parametrize("kind", ["evaluate", "describe"])
def test_noised_answers_of_a_ledger_that_was_put_back_do_not_leave(
    hospital: Hospital, tmp_path: Path, kind: str
) -> None:
    edit(hospital.site, 'dice = "exact"', 'dice = "noised"')
    hospital.site = edit(hospital.site, '"withdrawals"]', '"withdrawals", "statistics"]')
    about = {"about": ["volumes"], "noise_multiplier": 8.0}
    protocol = tiny_protocol(statistics=about)
    hospital.approve(protocol)
    weights = round_training.starting_weights(protocol)
    hospital.train(protocol, weights=weights)
    order = {"number": 1, "weights": weights} if kind == "evaluate" else {"number": 0}
    copy_ledger(hospital.site, tmp_path / "old.sqlite")
    kill_before_sending(hospital, lambda: hospital.ask(protocol, kind, **order))
    put_back(hospital.site, tmp_path / "old.sqlite")
    report, _ = hospital.ask(protocol, kind, **order)
    assert (report.status, report.code) == ("failed", "ledger-old")
    assert [one.code for one in audit(hospital.site).damage] == ["ledger-old"]


def test_the_ledgers_head_is_in_every_answer(hospital: Hospital) -> None:
    protocol = tiny_protocol()
    hospital.approve(protocol)
    weights = round_training.starting_weights(protocol)
    heads = [
        hospital.train(protocol)[0].ledger_head,
        hospital.ask(protocol, "evaluate", number=1, weights=weights)[0].ledger_head,
        hospital.ask(protocol, "train", number=3, weights=weights)[0].ledger_head,  # refused
    ]
    with open_ledger(hospital.site) as ledger:
        count, head = ledger.head
    assert heads == [head] * 3
    said = events(hospital.site, "sent", "declined")[-3:]
    assert [(fact["ledger_facts"], fact["ledger_head"]) for fact in said] == [(count, head)] * 3


def test_a_ledger_older_than_a_refusal_is_refused(hospital: Hospital, tmp_path: Path) -> None:
    protocol = tiny_protocol()
    hospital.approve(protocol)
    copy_ledger(hospital.site, tmp_path / "old.sqlite")
    charge(hospital.site, protocol, [PATIENT])
    hospital.ask(protocol, "train", number=9, weights=round_training.starting_weights(protocol))
    put_back(hospital.site, tmp_path / "old.sqlite")
    with pytest.raises(StateError) as caught:
        open_ledger(hospital.site)
    assert caught.value.code == "ledger-old"


@pytest.fixture
def path(site: Site) -> Path:
    return site.folder / "outbox" / STUDY / "0001.safetensors"


def test_what_was_written_is_read(site: Site, path: Path) -> None:
    assert charged_files.read(site, path) is None
    charged_files.write(site, path, b"update")
    charge(site, tiny_protocol(), [PATIENT])  # what is charged later does not matter
    assert charged_files.read(site, path) == b"update"


@pytest.mark.parametrize("fault", ["no note", "another file"])
def test_a_file_without_its_note_is_of_use_only_if_it_left_before(
    site: Site, path: Path, fault: str
) -> None:
    charged_files.write(site, path, b"update")
    if fault == "no note":  # as gliofed 0.1.0 left it
        path.with_suffix(".ledger").unlink()
    else:
        path.write_bytes(b"other")
    data = path.read_bytes()
    assert charged_files.read(site, path) is None
    assert charged_files.read(site, path, left=True) == data


def test_a_note_alone_is_no_damage(site: Site, path: Path) -> None:
    path.parent.mkdir(parents=True)
    note = {"facts": 7, "head": "f" * 64, "sha256": "0" * 64}
    path.with_suffix(".ledger").write_text(json.dumps(note))
    assert audit(site).damage == ()
    path.write_bytes(b"update")
    assert [one.code for one in audit(site).damage] == ["ledger-old"]
