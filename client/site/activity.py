"""What the worker does now, written where the site's page and metrics can read it.

``flower/activity.json`` is there while an order is carried out, and names the process that does so:
one that a killed worker left says nothing. It is not on the disk for good, and a disk that does not
take it costs the page a line, never the training a step. Nothing in it is about a patient.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from client.site.folder import Site
from common.errors import StateError
from common.messages.wire_format import Order
from common.records.atomic_files import json_bytes, read_json, write_bytes

_LOG = logging.getLogger(__name__)
_EVERY_S: Final = 0.5


@dataclass(frozen=True)
class Doing:
    """An order, since when it is carried out (seconds of 1970), how many of its steps are done."""

    study: str
    round: int
    order: str
    since_s: int
    pid: int
    step: int = 0
    steps: int = 0


class Activity:
    """Says what this process does for the site."""

    def __init__(self, site: Site, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = _path(site)
        self._clock = clock
        self._now: Doing | None = None
        self._written_s = float("-inf")

    @contextlib.contextmanager
    def doing(self, order: Order) -> Iterator[None]:
        """Say that ``order`` is carried out while the block runs; offers are not worth a word."""
        if order.kind == "offer":
            yield
            return
        self._now = Doing(order.study, order.round, order.kind, round(time.time()), os.getpid())
        self._write()
        self._written_s = float("-inf")  # the first step is told, however soon it is done
        try:
            yield
        finally:
            self._now = None
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def step(self, done: int, of: int) -> None:
        """Say how many steps are done, twice a second at most, and of the first and the last."""
        if self._now is None:
            return
        self._now = replace(self._now, step=done, steps=of)
        if done == of or self._clock() - self._written_s >= _EVERY_S:
            self._write()

    def _write(self) -> None:
        if self._now is None:
            return
        self._written_s = self._clock()
        try:
            write_bytes(self._path, json_bytes(asdict(self._now)), durable=False)
        except StateError as error:
            _LOG.warning("The site's page is not told what runs. %s", error)


def doing_now(site: Site) -> Doing | None:
    """Return what a process of this machine does for the site now, or None."""
    try:
        found = Doing(**read_json(_path(site), what="activity"))
        os.kill(found.pid, 0)
    except (StateError, OSError, TypeError, ValueError, OverflowError):
        return None
    return found


def _path(site: Site) -> Path:
    return site.folder / "flower" / "activity.json"
