from __future__ import annotations

from typing import Any

from common.messages.reply_limits import study_reply_limit
from server.transport.site_allowance import (
    UNDER_WAY_BYTES,
    UNKNOWN_BYTES,
    LargestReply,
    SiteAllowances,
)
from tests import consortia

ORDER = 1250
"""What one order allows where an answer has 1000 bytes."""


def sent(allowances: SiteAllowances, size: int, *, taken: bool = True) -> bool:
    if not allowances.take("north", size, cost=size):
        return False
    allowances.done("north", size, cost=size, taken=taken)
    return True


def test_a_site_sends_what_its_orders_ask_for() -> None:
    allowances = SiteAllowances(lambda: 1000)
    assert [sent(allowances, ORDER) for _ in range(3)] == [True, True, False]
    allowances.ordered("north")
    assert [sent(allowances, ORDER) for _ in range(2)] == [True, False]
    allowances.ordered("south")
    assert not sent(allowances, ORDER)


def test_orders_that_are_not_answered_add_up_to_a_few() -> None:
    allowances = SiteAllowances(lambda: 1000)
    for _ in range(100):
        allowances.ordered("north")
    assert [sent(allowances, ORDER) for _ in range(5)] == [True] * 4 + [False]


def test_what_was_not_taken_may_be_sent_again() -> None:
    allowances = SiteAllowances(lambda: 1000)
    for _ in range(50):
        assert sent(allowances, ORDER, taken=False)


def test_calls_under_way_count_together_and_each_site_for_itself() -> None:
    allowances = SiteAllowances(lambda: 2**40)
    third = UNDER_WAY_BYTES // 3
    assert [allowances.take("north", third, cost=0) for _ in range(4)] == [True] * 3 + [False]
    assert allowances.take("south", third, cost=0)
    allowances.done("north", third, cost=0, taken=True)
    assert allowances.take("north", third, cost=0)


def test_the_largest_study_counts(world: Any) -> None:
    largest = LargestReply(world.consortium)
    assert largest() == UNKNOWN_BYTES
    world.join("a", "b")
    small = consortia.publish(world.consortium, consortia.tiny_protocol(study="small"))
    few = largest()
    assert study_reply_limit(small).bytes <= few < UNKNOWN_BYTES
    consortia.publish(
        world.consortium, consortia.tiny_protocol(study="large", network={"size": "small"})
    )
    assert largest() > few
    (world.consortium.folder / "studies" / "large" / "protocol.json").write_text("{")
    assert largest() == UNKNOWN_BYTES
