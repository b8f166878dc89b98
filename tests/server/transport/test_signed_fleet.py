"""What another than the admitted site has signed is no answer of that site's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from client.site.folder import Site
from common.messages.reply_limits import reply_limit
from common.messages.signatures import new_nonce, nonce_of, signed
from common.messages.wire_format import Content, Order, Report, pack
from common.study.protocol import MessageOptions
from common.trust.identity import Identity
from server.consortium.provisioning import Consortium
from server.rounds.fleet import Delivery, MemoryFleet
from server.transport.signed_fleet import SignedFleet

REPORT = Report(kind="offer", study="one", round=0, status="pending")
NOTHING = reply_limit(None, MessageOptions())
ORDER = Order(kind="offer", study="one", round=0, protocol="{}")


def collected(
    consortium: Consortium, site: Site, answer: Callable[[Content, str], Content]
) -> Delivery:
    """Return what the coordinator gets where ``answer`` is given the order and its nonce."""

    def reply(_: str, content: Content) -> Content:
        keys = {consortium.identity.public}
        return answer(content, nonce_of(content, keys, kind="order", site=site.name))

    fleet = SignedFleet(
        MemoryFleet({site.name: reply}), lambda: consortium.identity, consortium.sites
    )
    assert fleet.online() == {site.name}
    delivery = fleet.collect(
        fleet.send(site.name, "offer", pack(ORDER, None), ttl_s=60.0, limit=NOTHING)
    )
    assert delivery is not None
    return delivery


def refusal(delivery: Delivery) -> str:
    """Return the code by which the site was refused."""
    assert delivery.content is None
    assert delivery.refused is not None
    return delivery.refused.code


def by(identity: Identity, site: str, nonce: str) -> Content:
    return signed(pack(REPORT, None), identity, kind="reply", site=site, nonce=nonce)


def test_the_sites_own_answer_comes_through(consortium: Consortium, site: Site) -> None:
    delivery = collected(consortium, site, lambda _, nonce: by(site.identity, site.name, nonce))
    assert delivery.failure == ""
    assert delivery.content is not None


def test_a_new_key_of_the_coordinator_signs_from_the_next_order_on(
    consortium: Consortium, site: Site, tmp_path: Path
) -> None:
    signers: list[str] = []
    keys = [consortium.identity, Identity.create(tmp_path / "next")]

    def reply(_: str, content: Content) -> Content:
        nonce = nonce_of(content, {keys[0].public}, kind="order", site=site.name)
        signers.append(keys[0].public)
        return by(site.identity, site.name, nonce)

    fleet = SignedFleet(MemoryFleet({site.name: reply}), lambda: keys[0], consortium.sites)
    for _ in range(2):
        ticket = fleet.send(site.name, "offer", pack(ORDER, None), ttl_s=60.0, limit=NOTHING)
        delivery = fleet.collect(ticket)
        assert delivery is not None
        assert delivery.content is not None
        keys.reverse()
    assert len(set(signers)) == 2


def test_an_impostors_answer_is_refused(consortium: Consortium, site: Site, tmp_path: Path) -> None:
    impostor = Identity.create(tmp_path / "key")
    cases: dict[str, Callable[[Content, str], Content]] = {
        "signature": lambda _, nonce: by(impostor, site.name, nonce),
        "unsigned": lambda _, __: pack(REPORT, None),
        "replayed": lambda _, __: by(site.identity, site.name, new_nonce()),
    }
    for code, answer in cases.items():
        assert refusal(collected(consortium, site, answer)) == code
    order_itself = collected(consortium, site, lambda content, _: content)
    assert refusal(order_itself) == "signature"


def test_an_answer_to_what_was_not_sent_here_is_refused(consortium: Consortium, site: Site) -> None:
    own = by(site.identity, site.name, new_nonce())
    memory = MemoryFleet({site.name: lambda *_: own})
    ticket = memory.send(site.name, "offer", pack(ORDER, None), ttl_s=60.0, limit=NOTHING)
    fleet = SignedFleet(memory, lambda: consortium.identity, consortium.sites)
    delivery = fleet.collect(ticket)
    assert delivery is not None
    assert refusal(delivery) == "signature"


def test_a_site_that_was_revoked_meanwhile_is_not_heard(consortium: Consortium, site: Site) -> None:
    def answer(_: Content, nonce: str) -> Content:
        (consortium.folder / "sites" / f"{site.name}.json").unlink()
        return by(site.identity, site.name, nonce)

    assert refusal(collected(consortium, site, answer)) == "signature"
