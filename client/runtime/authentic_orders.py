"""Which orders are the coordinator's, each carried out once, and the signature under each reply.

Between coordinator and hospital stand Flower's programs, and on the hospital's machine its
SuperNode. Whoever breaks into one of them can make no order, repeat none, give another site's here,
and answer none in this site's name.

    flower/orders    the nonces of the orders that touched a patient, one a line

A nonce is written before its order is carried out. An offer, which is asked every few seconds and
touches no patient, is not remembered.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from client.site.folder import Site
from common.errors import IdentityError, StateError
from common.messages.signatures import nonce_of, signed
from common.messages.wire_format import Content, Order, peek_order
from common.records.atomic_files import write_bytes
from common.trust.coordinator_charter import followed
from common.trust.identity import Statement

_KEPT: Final = 20_000


class AuthenticOrders:
    """Opens the orders of one site and signs what it answers."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._seen: dict[str, None] | None = None

    def nonce(self, content: Content) -> str:
        """Return the nonce of an order that a coordinator gave this site, and remember it.

        Raises IdentityError (codes ``unsigned``, ``signature``, and ``replayed`` for an order that
        was carried out before), UpdateError for what is no order, StateError if the nonce cannot
        be written.
        """
        order = peek_order(content)
        site = Site.open(self._site.folder)  # its coordinators may have changed
        nonce = nonce_of(content, _coordinators(site, order), kind="order", site=site.name)
        if order.kind != "offer":
            self._remember(nonce, order)
        return nonce

    def signed(self, reply: Content, *, nonce: str) -> Content:
        """Return ``reply`` signed by the site, as the answer to the order with ``nonce``."""
        site = Site.open(self._site.folder)  # its keys may have changed by that very order
        return signed(reply, site.identity, kind="reply", site=site.name, nonce=nonce)

    @property
    def _file(self) -> Path:
        return self._site.folder / "flower" / "orders"

    def _remember(self, nonce: str, order: Order) -> None:
        try:
            seen = self._read() if self._seen is None else self._seen
            if nonce in seen:
                raise IdentityError(
                    f"This order of {order.study}, round {order.round}, was carried out before.",
                    do="Nothing was done. Somebody sends recorded orders again: ask the "
                    "coordinator.",
                    code="replayed",
                )
            self._write(nonce, seen)
        except OSError as error:
            raise StateError(
                f"Cannot keep which orders were carried out in {self._file}: {error}.",
                do="Make room or mend the disk; the order is given again.",
                code="journal-write",
            ) from error

    def _read(self) -> dict[str, None]:
        with contextlib.suppress(FileNotFoundError):
            return dict.fromkeys(self._file.read_text().split())
        return {}

    def _write(self, nonce: str, seen: dict[str, None]) -> None:
        if len(seen) >= 2 * _KEPT:
            seen = dict.fromkeys(list(seen)[1 - _KEPT :])
            write_bytes(self._file, "".join(f"{one}\n" for one in (*seen, nonce)).encode())
        else:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.write(f"{nonce}\n")
        seen[nonce] = None
        self._seen = seen


def _coordinators(site: Site, order: Order) -> frozenset[str]:
    """Return the keys of the coordinators, also of those that ``order`` says come next."""
    known = site.coordinators
    changes = followed(known, [Statement.loads(one) for one in order.charters])
    return frozenset((changes[-1] if changes else known).keys)
