"""The site's SuperNode: Flower's own, with two of its habits corrected.

- It is a loop that speaks to the coordinator and a server that hands orders to the worker. When the
  loop gives up, on an answer that it does not try again, the server stays: the site would look
  alive and never take an order. Here the process ends, and the supervisor starts another.
- An order whose run ends while it is being received stays behind, half: the worker would wait for
  the other half, and later answers would wait behind it. Here it is thrown away.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from flwr.supercore.run import RunNotRunningException
from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import flower_supernode


def main() -> None:
    """Run the SuperNode with the arguments of ``flower-supernode``; never return."""
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
