"""An order is carried out if the coordinator gave it, to this site, and once."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from client.runtime import authentic_orders
from client.runtime.authentic_orders import AuthenticOrders
from client.site.folder import Site
from common.errors import IdentityError, StateError
from common.messages.signatures import new_nonce, nonce_of, signed
from common.messages.wire_format import Report, pack
from common.study.protocol import StudyProtocol
from common.trust.identity import Identity
from server.consortium.provisioning import Consortium
from tests.consortia import copied, order, signed_order

TOUCHING = ["initial", "describe", "train", "evaluate"]


@pytest.mark.parametrize("kind", [*TOUCHING, "offer"])
def test_an_order_of_the_coordinator_is_opened(
    site: Site, consortium: Consortium, protocol: StudyProtocol, kind: Any
) -> None:
    content = signed_order(consortium.identity, site, protocol, kind)
    assert len(AuthenticOrders(site).nonce(content)) == 32


@pytest.mark.parametrize("kind", TOUCHING)
def test_a_recorded_order_is_refused_also_after_a_restart(
    site: Site, consortium: Consortium, protocol: StudyProtocol, kind: Any
) -> None:
    orders = AuthenticOrders(site)
    content = signed_order(consortium.identity, site, protocol, kind)
    again = signed_order(consortium.identity, site, protocol, kind)
    orders.nonce(copied(content))
    for later in (orders, AuthenticOrders(site)):
        with pytest.raises(IdentityError, match="carried out before") as refused:
            later.nonce(copied(content))
        assert refused.value.code == "replayed"
    assert AuthenticOrders(site).nonce(again), "the same order, given anew, is another"


def test_an_unsigned_order_and_one_of_a_stranger_are_refused(
    site: Site, consortium: Consortium, protocol: StudyProtocol, tmp_path: Path
) -> None:
    stranger = Identity.create(tmp_path / "key")
    unsigned = order(consortium.identity, protocol, "train")
    cases = {
        "unsigned": unsigned,
        "signature": signed(unsigned, stranger, kind="order", site=site.name, nonce=new_nonce()),
    }
    for code, content in cases.items():
        with pytest.raises(IdentityError) as refused:
            AuthenticOrders(site).nonce(content)
        assert refused.value.code == code


def test_an_order_for_another_site_is_refused(
    site: Site, consortium: Consortium, protocol: StudyProtocol
) -> None:
    content = order(consortium.identity, protocol, "train")
    elsewhere = signed(
        content, consortium.identity, kind="order", site="another", nonce=new_nonce()
    )
    with pytest.raises(IdentityError, match="another site"):
        AuthenticOrders(site).nonce(elsewhere)


def test_the_sites_own_signature_is_no_coordinators(
    site: Site, consortium: Consortium, protocol: StudyProtocol
) -> None:
    content = order(consortium.identity, protocol, "train")
    own = signed(content, site.identity, kind="order", site=site.name, nonce=new_nonce())
    with pytest.raises(IdentityError):
        AuthenticOrders(site).nonce(own)


def test_the_reply_is_signed_by_the_site_with_the_orders_nonce(site: Site) -> None:
    nonce = new_nonce()
    report = Report(kind="train", study="one", round=1, status="done")
    reply = AuthenticOrders(site).signed(pack(report, None), nonce=nonce)
    assert nonce_of(reply, {site.identity.public}, kind="reply", site=site.name) == nonce


def test_the_book_of_nonces_stays_small(
    site: Site, consortium: Consortium, protocol: StudyProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentic_orders, "_KEPT", 3)
    orders = AuthenticOrders(site)
    contents = [signed_order(consortium.identity, site, protocol, "initial") for _ in range(8)]
    for content in contents:
        orders.nonce(copied(content))
    kept = (site.folder / "flower" / "orders").read_text().split()
    assert 3 <= len(kept) <= 6
    with pytest.raises(IdentityError):
        AuthenticOrders(site).nonce(contents[-1])


def test_a_nonce_that_cannot_be_kept_lets_nothing_be_done(
    site: Site, consortium: Consortium, protocol: StudyProtocol
) -> None:
    content = signed_order(consortium.identity, site, protocol, "train")
    (site.folder / "flower").mkdir(exist_ok=True)
    book = site.folder / "flower" / "orders"
    book.mkdir()
    with pytest.raises(StateError, match="Cannot keep which orders"):
        AuthenticOrders(site).nonce(copied(content))
    book.rmdir()
    AuthenticOrders(site).nonce(content)
    assert stat.S_ISREG(book.stat().st_mode)
