"""How many connections a door takes, for how long, and which one has to leave for another.

A connection is *unknown* until the application vouches for it: by a signature of an admitted site,
or the session of somebody who logged in. An unknown one lives for seconds, whatever it sends. Where
more come than there are places, the oldest of the address that has most of them leaves: who comes
alone from an address is not shut out by any number of others, and who shares an address with them
(NAT, a proxy) needs a place only until the first request was read. A known connection counts as its
peer's, wherever it comes from, and each peer has a share of its own.

Pure: what closes a connection, and the clock, are ``common.web.http_server``'s.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Connection = TypeVar("Connection", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """What a door allows."""

    unknown: int = 64
    """Connections that nobody has vouched for."""
    known: int = 128
    """Those of all known peers together."""
    each: int = 32
    """Those of one known peer."""
    arrive_s: float = 20.0
    """From the connection to the end of the headers of a request that is vouched for."""
    idle_s: float = 75.0
    """From one answer on a known connection to the end of the next request's headers."""
    call_s: float = 900.0
    """From the end of a request's headers to the end of its answer."""


class Connections(Generic[Connection]):
    """The connections of a door. Each method that returns connections names those to be closed."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._unknown: dict[str, dict[Connection, None]] = {}
        self._known: dict[str, dict[Connection, bool]] = {}  # True: a request is being answered
        self._address: dict[Connection, str] = {}
        self._peer: dict[Connection, str] = {}

    def __len__(self) -> int:
        return len(self._address) + len(self._peer)

    def arrived(self, one: Connection, address: str) -> list[Connection]:
        """Take in a connection; return which one has to leave for it."""
        leaving = []
        if len(self._address) >= self._limits.unknown:
            crowd = max(self._unknown.values(), key=len)
            oldest = next(iter(crowd))
            self.left(oldest)
            leaving.append(oldest)
        group = network(address)
        self._unknown.setdefault(group, {})[one] = None
        self._address[one] = group
        return leaving

    def vouched(self, one: Connection, peer: str) -> tuple[bool, list[Connection]]:
        """Count ``one``, whose request was just read, as the peer's.

        Returns whether there is a place for it, and which idle connection has to leave for it: of
        the same peer if that has all that it may, else of the peer that has most.
        """
        if self._peer.get(one) == peer:
            self._known[peer][one] = True
            return True, []
        own = self._known.get(peer, {})
        if len(own) >= self._limits.each:
            crowds = [own]
        elif len(self._peer) >= self._limits.known:
            crowds = sorted(self._known.values(), key=len, reverse=True)
        else:
            crowds = []
        leaving = [one for crowd in crowds for one, busy in crowd.items() if not busy][:1]
        if crowds and not leaving:
            return False, []
        for idle in leaving:
            self.left(idle)
        self.left(one)
        self._known.setdefault(peer, {})[one] = True
        self._peer[one] = peer
        return True, leaving

    def answered(self, one: Connection) -> bool:
        """Note that ``one`` waits for its next request; return whether it is known."""
        peer = self._peer.get(one)
        if peer is not None:
            crowd = self._known[peer]
            del crowd[one]
            crowd[one] = False  # the one that was used last is the last to leave
        return peer is not None

    def knows(self, one: Connection) -> bool:
        return one in self._peer

    def left(self, one: Connection) -> None:
        """Forget a connection; one that is not here is no fault."""
        address, peer = self._address.pop(one, None), self._peer.pop(one, None)
        if address is not None:
            del self._unknown[address][one]
            if not self._unknown[address]:
                del self._unknown[address]
        if peer is not None:
            del self._known[peer][one]
            if not self._known[peer]:
                del self._known[peer]


def network(address: str) -> str:
    """Return what stands for a peer's address: of IPv6 the /64, which one customer has whole."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
