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
from common.messages.reply_limits import REPORT_BYTES, most_objects, study_reply_limit
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


@dataclass
class _Account:
    under_way: int = 0
    left: float = 0.0


class SiteAllowances:
    """What each site may still send; ``reply_bytes()`` is the largest answer to one order."""

    def __init__(self, reply_bytes: Callable[[], int]) -> None:
        self._reply_bytes = reply_bytes
        self._sites: dict[str, _Account] = {}

    def take(self, site: str, size: int, *, cost: int) -> bool:
        """Count a call of ``size`` bytes and return True, or return False if it is too much.

        ``cost`` is what the SuperLink stores for it, in bytes, which counts against the orders.
        ``done`` follows each call that was counted.
        """
        account = self._account(site)
        if account.under_way + size > UNDER_WAY_BYTES or cost > account.left:
            return False
        account.under_way += size
        account.left -= cost
        return True

    def done(self, site: str, size: int, *, cost: int, taken: bool) -> None:
        """Note that a call ended; what the SuperLink has not ``taken`` is not held against it."""
        account = self._account(site)
        account.under_way -= size
        if not taken:
            account.left += cost

    def ordered(self, site: str) -> None:
        """Note that an order was delivered to the site, which it may answer."""
        account, one = self._account(site), _ROOM * self._reply_bytes()
        account.left = max(account.left, min(account.left + one, _MOST_ORDERS * one))

    def objects(self) -> int:
        """Return how many objects a reply may be made of."""
        return most_objects(math.ceil(_ROOM * self._reply_bytes()))

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


def _stamp(path: Path) -> tuple[str, int, int, int]:
    found = path.stat()
    return (str(path), found.st_mtime_ns, found.st_ino, found.st_size)
