from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import IdentityError
from common.trust.coordinator_charter import CHARTER, Charter, followed, parse_charter
from common.trust.identity import Identity, Statement


@pytest.fixture
def ada(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / "ada.key")


@pytest.fixture
def bo(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / "bo.key")


def two(ada: Identity, bo: Identity) -> Charter:
    return Charter.first(ada.public).follower({"ada": ada.public, "bo": bo.public}, needed=2)


def signed(charter: Charter, *by: Identity) -> Statement:
    first, *others = by
    statement = first.sign(CHARTER, charter.model_dump(mode="json"))
    for one in others:
        statement = statement.cosigned(one)
    return Statement.loads(statement.dumps())


def test_one_signature_is_too_few_for_two(ada: Identity, bo: Identity, tmp_path: Path) -> None:
    charter, stranger = two(ada, bo), Identity.create(tmp_path / "stranger.key")
    alone = ada.sign("thing", {"a": 1})
    for few in (alone, alone.cosigned(ada), alone.cosigned(stranger)):
        with pytest.raises(IdentityError, match="1 of the 2") as refused:
            charter.opened(few, kind="thing")
        assert refused.value.code == "signatures"
    assert charter.opened(alone.cosigned(bo), kind="thing") == {"a": 1}
    with pytest.raises(IdentityError, match="none of the consortium's coordinators"):
        charter.opened(stranger.sign("thing", {}).cosigned(ada).cosigned(bo), kind="thing")


def test_a_cosignature_is_of_the_body_it_came_with(ada: Identity, bo: Identity) -> None:
    good = ada.sign("thing", {"a": 1}).cosigned(bo)
    forged = Statement(
        "thing", {"a": 2}, ada.public, ada.sign("thing", {"a": 2}).signature, good.cosignatures
    )
    assert forged.signers() == {ada.public}
    with pytest.raises(IdentityError):
        two(ada, bo).opened(forged, kind="thing")


def test_an_old_key_hands_over_to_a_new_one(ada: Identity, bo: Identity) -> None:
    first = Charter.first(ada.public)
    following = first.follower({"coordinator": bo.public}, needed=1)
    assert followed(first, [signed(following, bo, ada)]) == [following]
    assert followed(following, [signed(following, bo, ada)]) == [], "it is known already"
    with pytest.raises(IdentityError):
        followed(first, [signed(following, bo)])  # nobody before it signed


def test_nobody_lowers_the_number_alone(ada: Identity, bo: Identity) -> None:
    charter = two(ada, bo)
    lower = charter.follower({"ada": ada.public}, needed=1)
    with pytest.raises(IdentityError, match="1 of the 2"):
        followed(charter, [signed(lower, ada)])
    assert followed(charter, [signed(lower, ada, bo)]) == [lower]


def test_a_chain_has_no_gap_and_no_second_past(ada: Identity, bo: Identity) -> None:
    first, second = Charter.first(ada.public), two(ada, bo)
    third = second.follower({"ada": ada.public, "bo": bo.public}, needed=1)
    chain = [signed(second, ada), signed(third, ada, bo)]
    assert followed(first, chain) == [second, third]
    with pytest.raises(IdentityError, match="does not follow"):
        followed(first, chain[1:])
    other = Charter.first(bo.public).follower({"ada": ada.public}, needed=1)
    with pytest.raises(IdentityError, match="does not follow"):
        followed(first, [signed(other, ada)])


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"number": 1, "coordinators": {}, "needed": 1},
        {"number": 1, "coordinators": {"a": "0" * 64}, "needed": 2},
        {"number": 1, "coordinators": {"a": "0" * 64, "b": "0" * 64}, "needed": 2},
        {"number": 1, "coordinators": {"a": "no key"}, "needed": 1},
    ],
)
def test_an_impossible_charter_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(IdentityError, match="not valid"):
        parse_charter(body)
