from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.web.connection_limits import ConnectionLimits, Connections, network

LIMITS = ConnectionLimits(unknown=4, known=6, each=3)


def crowd(*addresses: str, limits: ConnectionLimits = LIMITS) -> Connections[int]:
    made: Connections[int] = Connections(limits)
    for number, address in enumerate(addresses):
        assert made.arrived(number, address) == []
    return made


@pytest.mark.parametrize(
    ("here", "comes", "leaves"),
    [
        ("aaa", "a", []),
        ("aaaa", "a", [0]),
        ("aaaa", "b", [0]),
        ("baaa", "c", [1]),
        ("abab", "c", [0]),
        ("abcd", "e", [0]),
        ("bcaa", "b", [2]),
    ],
)
def test_the_oldest_of_the_address_with_most_leaves(
    here: str, comes: str, leaves: list[int]
) -> None:
    assert crowd(*here).arrived(99, comes) == leaves


def test_who_is_alone_at_an_address_stays_however_many_come_from_others() -> None:
    made = crowd("alone", limits=ConnectionLimits(unknown=120))
    left = [one for number in range(1, 5000) for one in made.arrived(number, f"{number % 50}")]
    assert 0 not in left
    assert len(left) == 5000 - 120


def test_who_was_vouched_for_gives_its_place_among_the_unknown_free() -> None:
    made = crowd(*"aaaa")
    assert made.vouched(0, "north") == (True, [])
    assert made.arrived(99, "a") == []
    assert made.arrived(100, "a") == [1]


@pytest.mark.parametrize(("idle", "room", "leaves"), [(None, False, []), (1, True, [1])])
def test_a_peer_has_a_share(idle: int | None, room: bool, leaves: list[int]) -> None:
    made = crowd(*"abcd")
    for number in range(3):
        assert made.vouched(number, "north") == (True, [])
    if idle is not None:
        assert made.answered(idle)
    assert made.vouched(3, "north") == (room, leaves)
    assert made.vouched(3, "south") == (True, [])


def test_where_all_places_are_taken_the_peer_with_most_gives_way() -> None:
    made: Connections[int] = Connections(ConnectionLimits(unknown=9, known=4, each=9))
    for number, peer in enumerate(["n", "n", "s", "n"]):
        made.arrived(number, peer)
        assert made.vouched(number, peer)[0]
        made.answered(number)
    made.vouched(0, "n")  # a request again
    made.arrived(9, "w")
    assert made.vouched(9, "w") == (True, [1])


def test_where_all_are_busy_nobody_has_to_leave() -> None:
    made: Connections[int] = Connections(ConnectionLimits(unknown=9, known=2, each=9))
    for number in range(3):
        made.arrived(number, "a")
    assert [made.vouched(number, "north")[0] for number in range(3)] == [True, True, False]
    assert len(made) == 3


def test_the_connection_that_was_used_last_is_the_last_to_leave() -> None:
    made = crowd(*"aaa")
    for number in range(3):
        made.vouched(number, "north")
    for number in (2, 0, 1):
        made.answered(number)
    left = []
    for number in range(10, 13):
        made.arrived(number, "a")
        left += made.vouched(number, "north")[1]
    assert left == [2, 0, 1]


def test_an_unknown_connection_stays_unknown_when_it_was_answered() -> None:
    made = crowd("a")
    assert not made.answered(0)
    made.left(0)
    made.left(0)
    assert len(made) == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["arrived", "vouched", "answered", "left"]),
            st.integers(0, 12),
            st.sampled_from("abc"),
        )
    )
)
@settings(max_examples=100, deadline=None)
def test_no_limit_is_ever_passed(events: list[tuple[str, int, str]]) -> None:
    made: Connections[int] = Connections(LIMITS)
    here: dict[int, str] = {}  # its peer, or "" while it is unknown
    for what, one, name in events:
        if what == "arrived" and one not in here:
            for other in made.arrived(one, name):
                del here[other]
            here[one] = ""
        elif what == "vouched" and one in here:
            room, leaving = made.vouched(one, name)
            for other in leaving:
                del here[other]
            here[one] = name if room else here[one]
        elif what == "answered" and one in here:
            assert made.answered(one) == bool(here[one])
        elif what == "left":
            made.left(one)
            here.pop(one, None)
        assert len(made) == len(here)
        assert sum(not peer for peer in here.values()) <= LIMITS.unknown
        assert sum(bool(peer) for peer in here.values()) <= LIMITS.known
        assert all(list(here.values()).count(peer) <= LIMITS.each for peer in "abc")


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_one_customer_is_one_address(address: str, group: str) -> None:
    assert network(address) == group
