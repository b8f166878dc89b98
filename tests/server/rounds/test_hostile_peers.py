"""While one site lies, stalls or crashes below the level of messages, the others' rounds go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from flwr.app import Error, Message
from flwr.supercore.task_identity import TaskIdentity

from server.rounds.fault_boundary import UNFORESEEN
from tests.flower_objects import Deflated, deflated
from tests.hostile_superlink import HostileSuperLink
from tests.server.transport.test_reply_pull import HOSTILE, of_kind


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages only inside a task."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def superlink(three: Any) -> HostileSuperLink:
    """The SuperLink between the rounds and three hospitals."""
    made = HostileSuperLink(three.hospitals)
    three.fleet = made.fleet()
    return made


def only(kind: str, change: Callable[[Deflated], Deflated]) -> Callable[..., Deflated]:
    """Let a site store something else in answer to one kind of order."""

    def reply(order: Message, honest: Deflated) -> Deflated:
        asked = order.metadata.message_type.rpartition(".")[2]
        return change(honest) if asked == kind else honest

    return reply


def means(world: Any) -> list[float]:
    return [float(value.mean()) for value in world.weights().values()]


def test_honest_sites_come_through(three: Any, superlink: HostileSuperLink) -> None:
    three.run()
    assert means(three) == [6.0, 6.0]
    assert len(superlink.freed) == superlink.pushed


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_site_stores_harms_nobody_else(
    three: Any, superlink: HostileSuperLink, case: str
) -> None:
    change, code = HOSTILE[case]
    if code in {"IndexError", "DecodeError"}:
        code = UNFORESEEN
    if case == "a chunk said to follow again":
        code = "update-form"  # the arrays here are so small that eight times as much is allowed
    superlink.hostile["c"] = only("train", change)
    three.run()
    assert means(three) == [3.0, 3.0]
    closed = three.events("round closed")
    assert [facts["dropped"] for facts in closed] == [{"c": code}] * 2
    assert [facts["took_part"] for facts in closed] == [["a", "b"]] * 2
    refused = three.events("reply refused")
    assert [(f["site"], f["order"], f["code"]) for f in refused] == [("c", "train", code)] * 2
    assert all(0 < len(facts["reason"]) <= 500 for facts in refused)
    assert len(superlink.freed) == superlink.pushed, "what is refused is freed"


@pytest.mark.parametrize("kind", ["offer", "evaluate"])
def test_answers_to_every_kind_of_order_have_the_same_boundary(
    three: Any, superlink: HostileSuperLink, kind: str
) -> None:
    change, code = HOSTILE["a child that the tree lacks"]
    superlink.hostile["c"] = only(kind, change)
    three.run()
    assert three.names()[-1] == "study finished"
    refused = three.events("reply refused")
    assert refused
    assert {(f["site"], f["order"], f["code"]) for f in refused} == {("c", kind, code)}


def test_a_site_that_stalls_costs_its_deadline_and_nobody_else(
    three: Any, superlink: HostileSuperLink
) -> None:
    """Its upload is announced and never ends: nothing of it is held, and no thread waits."""

    def stall(honest: Deflated) -> Deflated:
        chunk = of_kind(honest, "ArrayChunk")
        return honest._replace(objects={**honest.objects, chunk: None})  # type: ignore[dict-item]

    superlink.hostile["c"] = only("train", stall)
    three.run(poll_s=5.0)
    closed = three.events("round closed")
    assert [facts["dropped"] for facts in closed] == [{"c": "no-answer"}, {"c": "still-busy"}]
    first, second = (facts["seconds"] for facts in closed)
    assert first <= 110  # its deadline, of 100
    assert second <= 15  # it is not waited for again
    assert means(three) == [3.0, 3.0]


def test_a_site_that_crashes_over_and_over_costs_nobody_a_round(
    three: Any, superlink: HostileSuperLink
) -> None:
    def crash(order: Message, honest: Deflated) -> Deflated:
        if order.metadata.message_type == "train":
            superlink.away["c"] = superlink.away.get("c", 0) + 1
            honest = deflated(Message(Error(3, "x"), reply_to=order))
        return honest

    superlink.hostile["c"] = crash
    three.run(poll_s=1.0)
    assert means(three) == [3.0, 3.0]
    assert three.names()[-1] == "study finished"
    lost = three.events("order lost")
    assert {facts["site"] for facts in lost} == {"c"}
    assert {facts["dropped"]["c"] for facts in three.events("round closed")} <= {
        "order-lost",
        "no-answer",
    }


def failing(status: int, *, node_calls: bool) -> Callable[[HostileSuperLink], None]:
    """Let the SuperLink answer so about what c sent, and maybe about everything."""

    def install(superlink: HostileSuperLink) -> None:
        request = httpx.Request("POST", "https://localhost")
        error = httpx.HTTPStatusError(
            "no", request=request, response=httpx.Response(status, request=request)
        )
        arrived, nodes, broken = superlink.arrived, superlink.get_nodes, []

        def fails(ticket: str) -> Any:
            found = superlink.waiting.get(ticket)
            if found and superlink.orders[ticket] == ("c", "train"):
                broken.append(ticket)
                raise error
            return arrived(ticket)

        def answered() -> Any:
            if node_calls and broken:
                raise error
            return nodes()

        superlink.arrived = fails  # type: ignore[method-assign]
        superlink.get_nodes = answered  # type: ignore[method-assign]

    return install


def test_a_reply_that_the_superlink_cannot_serve_is_a_lost_order(
    three: Any, superlink: HostileSuperLink
) -> None:
    failing(500, node_calls=False)(superlink)
    three.run(poll_s=1.0)
    assert means(three) == [3.0, 3.0]
    assert {(f["site"], f["reason"]) for f in three.events("order lost")} == {
        ("c", "superlink-500")
    }


@pytest.mark.parametrize(("status", "node_calls"), [(401, False), (503, False), (500, True)])
def test_a_superlink_that_is_down_is_told_apart(
    three: Any, superlink: HostileSuperLink, status: int, node_calls: bool
) -> None:
    """The run ends and begins anew from the journal; nobody is refused."""
    failing(status, node_calls=node_calls)(superlink)
    with pytest.raises(httpx.HTTPStatusError):
        three.run()
    assert not three.events("reply refused")


def test_a_second_answer_to_one_order_is_freed_unread(
    three: Any, superlink: HostileSuperLink
) -> None:
    push = superlink.push_messages

    def twice(messages: Any) -> list[str]:
        tickets = push(messages)
        for ticket in tickets:
            superlink.waiting[ticket] *= 2
        return tickets

    superlink.push_messages = twice  # type: ignore[method-assign]
    three.run()
    assert means(three) == [6.0, 6.0]
    assert len(superlink.freed) == 2 * superlink.pushed


def test_a_site_that_answers_every_offer_with_rubbish_does_not_fill_the_journal(
    three: Any, superlink: HostileSuperLink
) -> None:
    """An offer is made every two seconds to who has not approved."""
    change, code = HOSTILE["a child that the tree lacks"]
    superlink.hostile["c"] = only("offer", change)
    told: dict[str, str] = {}
    for _ in range(50):
        three.rounds().offer(told)
    assert [(f["site"], f["code"]) for f in three.events("reply refused")] == [("c", code)]
    superlink.hostile["c"] = only("offer", HOSTILE["a wide tree"][0])
    three.rounds().offer(told)
    assert [f["code"] for f in three.events("reply refused")] == [code, "reply-objects"]
