"""The line of those who wait: bounded, first come first served, one piece of work at a time.

Work of somebody who has gone, or whose time is over, is not begun.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Full(Exception):  # noqa: N818 - as the standard library's queue.Full
    """As many wait as may wait."""


class Late(Exception):  # noqa: N818
    """Its time was over before its turn came."""


@dataclass(eq=False)
class Ticket(Generic[T]):
    """A piece of work in the line; ``wanted`` says whether somebody still waits for it."""

    work: Callable[[], T]
    wanted: Callable[[], bool]
    future: Future[T] = field(default_factory=Future)
    joined: float = field(default_factory=time.monotonic)


class Line:
    """Works off tickets in a thread of its own; ``started(seconds waited)`` hears of each."""

    def __init__(self, places: int, *, started: Callable[[float], None] = lambda _: None) -> None:
        self._waiting: queue.Queue[Ticket[Any] | None] = queue.Queue(places)
        self._started = started
        self._thread = threading.Thread(target=self._run, name="gliofed-line", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return self._waiting.qsize()

    def join(
        self,
        work: Callable[[], T],
        *,
        wanted: Callable[[], bool] = lambda: True,
        patient: bool = False,
    ) -> Future[T]:
        """Queue ``work``; raise Full, or wait for a place if ``patient``.

        The future raises what the work raises, or Late where nobody wanted it any more.
        """
        ticket = Ticket(work, wanted)
        try:
            self._waiting.put(ticket, block=patient)
        except queue.Full:
            raise Full from None
        return ticket.future

    def close(self) -> None:
        """Work off what waits, and end. Nobody may join after."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (ticket := self._waiting.get()) is not None:
            if not ticket.wanted():
                ticket.future.set_exception(Late())
                continue
            self._started(time.monotonic() - ticket.joined)
            try:
                result = ticket.work()
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                ticket.future.set_exception(error)
            else:
                ticket.future.set_result(result)
