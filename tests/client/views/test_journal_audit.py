"""The audit finds every damage at once, and nothing where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from client.site.folder import Site
from client.site.pseudonyms import keep_withdrawal
from client.views.journal_audit import audit
from common.records.journal import GENESIS
from tests.consortia import World

ONE = "1" * 32


def test_a_new_site_is_whole(site: Site) -> None:
    found = audit(site)
    assert found.damage == ()
    assert (found.ledger_facts, found.withdrawn) == (0, 0)
    assert (found.told_head, found.heard_head) == ("", "")
    assert found.head == site.journal.head != GENESIS


def test_what_a_real_study_left_is_whole(world: World) -> None:
    found = audit(world.site)
    assert found.damage == ()
    assert (found.ledger_facts, found.unconfirmed_facts) == (4, 0)  # two rounds of two steps
    sent = world.site.journal.events("sent", "declined")
    assert found.told_head == sent[-1].hash
    assert len(found.entries) == len(list(world.site.journal.entries()))


def flip(site: Site) -> None:
    path = site.folder / "journal.jsonl"
    data = bytearray(path.read_bytes())
    data[data.index(b"\n") + 30] ^= 4
    path.write_bytes(bytes(data))


def cut_ledger(site: Site) -> None:
    (site.folder / "ledger.sqlite").write_bytes(b"no ledger")


def lose_ledger(site: Site) -> None:
    (site.folder / "ledger.sqlite").unlink()


def spoil_withdrawn(site: Site) -> None:
    (site.folder / "withdrawn.json").write_text("{}x")


def forget_withdrawn(site: Site) -> None:
    site.journal.append("patient withdrawn", patient=ONE, by="Dr. Tamm")


def foreign_head(site: Site) -> None:
    site.journal.append("sent", study="x", site_head="f" * 64)


DAMAGE = {
    flip: ("journal-damaged", r"at line 2, bytes \d+ to \d+"),
    cut_ledger: ("ledger-damaged", "ledger"),
    lose_ledger: ("ledger-missing", "does not exist"),
    spoil_withdrawn: ("state", "withdrawn"),
    forget_withdrawn: ("withdrawn", "1 patients"),
    foreign_head: ("journal-fork", "ffffffffffffffff"),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda one: one.__name__)
def test_each_damage_is_found(world: World, damage: Callable[[Site], None]) -> None:
    damage(world.site)
    found = audit(world.site).damage
    code, words = DAMAGE[damage]
    assert [error.code for error in found][:1] == [code]
    with pytest.raises(type(found[0]), match=words):
        raise found[0]
    assert all(error.do for error in found)


def test_all_damage_is_found_at_once(world: World) -> None:
    flip(world.site)
    cut_ledger(world.site)
    spoil_withdrawn(world.site)
    codes = [error.code for error in audit(world.site).damage]
    assert codes == ["journal-damaged", "ledger-damaged", "state"]


def test_an_old_copy_of_the_ledger_is_found(world: World, site: Site) -> None:
    empty = site.folder.parent / "empty.sqlite"
    from client.privacy.ledger import Ledger

    Ledger.create(empty)
    for name in ("ledger.sqlite-wal", "ledger.sqlite-shm"):
        (world.site.folder / name).unlink(missing_ok=True)
    shutil.copy(empty, world.site.folder / "ledger.sqlite")
    assert [error.code for error in audit(world.site).damage] == ["ledger-old"]


def test_withdrawn_patients_are_counted(world: World) -> None:
    forget_withdrawn(world.site)
    keep_withdrawal(world.site, ONE, by="Dr. Tamm")
    found = audit(world.site)
    assert (found.withdrawn, found.damage) == (1, ())
    file = world.site.folder / "withdrawn.json"
    file.write_text(json.dumps({"format": 1, "withdrawn": []}))
    assert [error.code for error in audit(world.site).damage] == ["withdrawn"]


def test_the_head_that_the_coordinator_named_is_told(world: World) -> None:
    head = world.site.journal.head
    world.site.journal.append("sent", study="x", site_head=head)
    found = audit(world.site)
    assert (found.heard_head, found.damage) == (head, ())
