"""How many bytes a site may send: what its orders ask for, and no more.

What a site pushes stays in the SuperLink's database until the executor takes it. So each order that
is delivered to a site allows one answer, of the largest size that the protocols of all studies
allow it; calls that are under way count at once, and are given back where they were not taken.
Nothing that the site says enters. What was sent before the gateway started is not known: each site
begins with the allowance of two orders.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import GliofedError
from common.messages.reply_limits import REPORT_BYTES, study_reply_limit
from common.study import network_shapes
from server.consortium.provisioning import Consortium
from server.consortium.published_study import Study

UNKNOWN_BYTES: Final = 64 * 2**20
"""Of an answer, where the protocols cannot be read."""
UNDER_WAY_BYTES: Final = 48 * 2**20
"""In all calls of a site at one time: a SuperNode pushes two objects at a time."""

_FIRST_ORDERS: Final = 2
_MOST_ORDERS: Final = 4
"""So many unanswered orders count: of several studies, or whose answers were lost."""
_ROOM: Final = 1.25
_MESSAGES_LIST: Final = 2
"""The field of Flower's PullMessagesResponse that holds a message; a test compares."""
_LENGTH_DELIMITED: Final = 2


@dataclass
class _Account:
    under_way: int = 0
    left: float = 0.0


class SiteAllowances:
    """What each site may still send; ``reply_bytes()`` is the largest answer to one order."""

    def __init__(self, reply_bytes: Callable[[], int]) -> None:
        self._reply_bytes = reply_bytes
        self._sites: dict[str, _Account] = {}

    def take(self, site: str, size: int, *, stored: bool) -> bool:
        """Count a call of ``size`` bytes and return True, or return False if it is too much.

        What is ``stored`` counts against the orders as well. ``done`` follows each call that was
        counted.
        """
        account = self._account(site)
        cost = size if stored else 0
        if account.under_way + size > UNDER_WAY_BYTES or cost > account.left:
            return False
        account.under_way += size
        account.left -= cost
        return True

    def done(self, site: str, size: int, *, stored: bool, taken: bool) -> None:
        """Note that a call ended; what the SuperLink has not ``taken`` is not held against it."""
        account = self._account(site)
        account.under_way -= size
        if stored and not taken:
            account.left += size

    def ordered(self, site: str) -> None:
        """Note that an order was delivered to the site, which it may answer."""
        account, one = self._account(site), _ROOM * self._reply_bytes()
        account.left = max(account.left, min(account.left + one, _MOST_ORDERS * one))

    def _account(self, site: str) -> _Account:
        if site not in self._sites:
            self._sites[site] = _Account(left=_FIRST_ORDERS * _ROOM * self._reply_bytes())
        return self._sites[site]


class LargestReply:
    """Says how large the answer to an order of any of the consortium's studies can be.

    What it read is kept until a protocol changes.
    """

    def __init__(self, consortium: Consortium) -> None:
        self._consortium = consortium
        self._state: object = None
        self._bytes = UNKNOWN_BYTES

    def __call__(self) -> int:
        files = sorted(self._consortium.folder.glob("studies/*/protocol.json"))
        try:
            state = [_stamp(path) for path in files]
            if state and state != self._state:
                self._bytes = max(map(self._of, self._consortium.studies()))
                self._state = state
        except (GliofedError, OSError):  # `doctor` and the executor say what is wrong with it
            return max(self._bytes, UNKNOWN_BYTES)
        return self._bytes

    def _of(self, study: Study) -> int:
        shapes = network_shapes.shapes(study.protocol.network)
        weights = 4 * sum(math.prod(shape) for shape in shapes.values())  # float32, where all go
        return max(study_reply_limit(study.protocol).bytes, weights + REPORT_BYTES)


def holds_message(answer: bytes) -> bool:
    """Return whether Flower's answer to ``pull-messages`` brings a message.

    Of protobuf's encoding only the outermost fields are looked at; what cannot be read holds none.
    """
    at = 0
    while at < len(answer):
        tag, at = _varint(answer, at)
        if tag & 7 != _LENGTH_DELIMITED:
            return False
        if tag >> 3 == _MESSAGES_LIST:
            return True
        size, at = _varint(answer, at)
        at += size
    return False


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at ``at`` and where the next begins; a number that is cut off is short."""
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    return value, len(data)


def _stamp(path: Path) -> tuple[str, int, int, int]:
    found = path.stat()
    return (str(path), found.st_mtime_ns, found.st_ino, found.st_size)
