"""The site's SuperNode: Flower's own, with three of its habits corrected.

- It is a loop that speaks to the coordinator and a server that hands orders to the worker. When the
  loop gives up, on an answer that it does not try again, the server stays: the site would look
  alive and never take an order. Here the process ends, and the supervisor starts another.
- An order whose run ends while it is being received stays behind, half: the worker would wait for
  the other half, and later answers would wait behind it. Here it is thrown away.
- Each call is signed with the machine's time, and refused if that is some seconds ahead of the
  coordinator's or five minutes behind. Here a refused call is signed again with the time that came
  with the refusal, over the connection whose certificate was checked. A wrong clock is said in the
  site's journal; the coordinator's time is used for these signatures and nothing else.
"""

from __future__ import annotations

import datetime as dt
import functools
import os
import sys
import traceback
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

import httpx
from flwr.app.message import message as messages
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import node_auth_http_interceptor, start_client_internal
from flwr.supernode.cli.flower_supernode import flower_supernode

from common.errors import StateError
from common.journal import Journal

_SAME_S: Final = 2.0
"""Two clocks that differ by less are the same: a ``Date`` header is in whole seconds."""


class Clock:
    """The coordinator's time, as far as this machine knows: its own until it hears better.

    ``told`` gets the seconds by which this machine is ahead, each time that they change.
    """

    def __init__(self, told: Callable[[float], None]) -> None:
        self._told = told
        self._ahead = dt.timedelta()

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC) - self._ahead

    def learn(self, answer: httpx.Response) -> bool:
        """Set the clock by ``answer``; return whether that changed it."""
        try:
            theirs = parsedate_to_datetime(answer.headers["date"])
        except (KeyError, ValueError):
            return False
        if theirs.tzinfo is None:
            return False
        if abs((self.now() - theirs).total_seconds()) < _SAME_S:
            return False
        self._ahead = dt.datetime.now(dt.UTC) - theirs
        self._told(round(self._ahead.total_seconds()))
        return True


def main() -> None:
    """Run the SuperNode of the site in the folder ``argv[1]``; never return.

    The other arguments are those of ``flower-supernode``.
    """
    folder = Path(sys.argv.pop(1))
    clock = Clock(functools.partial(_tell, Journal(folder / "journal.jsonl")))
    auth = node_auth_http_interceptor
    auth.now = clock.now
    messages.now = clock.now  # of the replies that the SuperNode itself gives
    auth.NodeAuthHttpInterceptor.intercept = signed_in_time(
        auth.NodeAuthHttpInterceptor.intercept, clock
    )
    start_client_internal._pull_and_store_message = receive_whole(
        start_client_internal._pull_and_store_message
    )
    code = 1
    try:
        flower_supernode()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001  the process's edge
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def signed_in_time(
    intercept: Callable[..., httpx.Response], clock: Clock
) -> Callable[..., httpx.Response]:
    """Return Flower's ``intercept``, which signs a call, made to sign a refused one once more."""

    @functools.wraps(intercept)
    def wrapped(signer: Any, context: Any, call_next: Callable[[Any], Any]) -> httpx.Response:
        unsigned = context.request.headers.copy()
        answer = intercept(signer, context, call_next)
        if answer.status_code == httpx.codes.UNAUTHORIZED and clock.learn(answer):
            context.request.headers = unsigned
            answer = intercept(signer, context, call_next)
        return answer

    return wrapped


def _tell(journal: Journal, ahead_s: float) -> None:
    side = "ahead of" if ahead_s > 0 else "behind"
    sys.stderr.write(f"The clock is {abs(ahead_s):g} s {side} the coordinator's.\n")
    try:
        journal.append("clock differs", ahead_s=ahead_s)
    except StateError as error:
        sys.stderr.write(f"{error}\n")  # the call is worth more than the note


def receive_whole(receive: Callable[..., int | None]) -> Callable[..., int | None]:
    """Return Flower's ``receive`` with calls whose failure makes it throw the order away.

    Flower does so for an ``Exception``; what says that the run has ended is none.
    """

    @functools.wraps(receive)
    def wrapped(*, pull_object: Any, confirm_message_received: Any, **others: Any) -> int | None:
        return receive(
            pull_object=_ordinary(pull_object),
            confirm_message_received=_ordinary(confirm_message_received),
            **others,
        )

    return wrapped


def _ordinary(call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except RunNotRunningException:
            raise RuntimeError("The run has ended.") from None

    return wrapped


if __name__ == "__main__":
    main()
