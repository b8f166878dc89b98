"""A health check says well only of a consortium whose doors answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import pytest

from common.errors import StateError
from common.files import held
from server.health import check
from server.provisioning import Consortium
from tests.doors import door

Part = Callable[[Consortium], AbstractContextManager[None]]
PARTS: dict[str, Part] = {
    "supervisor": lambda one: held(one.lock, what="served"),
    "gateway": lambda one: door(one, one.settings.port),
    "superlink": lambda one: door(one, one.settings.private_port),
}


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("supervisor", "Nothing serves"),
        ("gateway", "The gateway does not answer"),
        ("superlink", "The superlink does not answer"),
    ],
)
def test_a_part_that_is_absent_is_named(consortium: Consortium, absent: str, words: str) -> None:
    with ExitStack() as running:
        for name, start in PARTS.items():
            if name != absent:
                running.enter_context(start(consortium))
        with pytest.raises(StateError, match=words) as raised:
            check(consortium)
    assert raised.value.code == "not-serving"


def test_a_consortium_that_is_served_is_well(consortium: Consortium) -> None:
    with ExitStack() as running:
        for start in PARTS.values():
            running.enter_context(start(consortium))
        check(consortium)
