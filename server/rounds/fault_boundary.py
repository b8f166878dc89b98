"""Where what a peer sent can do harm, and where that ends: in a refusal that names the peer.

All work on a reply, from its first byte to its place in the journal, is done ``within`` this
boundary: whatever exception the bytes cause becomes an error that a peer is refused by, and the
round goes on. What is not the peer's doing passes: the caller names it, such as a disk of ours that
is full or a SuperLink that is down.

Out of scope: who is refused, and what the journal says (``server.rounds.orders``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, TypeVar

from common.errors import IdentityError, UpdateError
from common.foreign_text import printable

UNFORESEEN: Final = "reply-unforeseen"
"""Code of a refusal for an exception that no check of ours raises."""

REASON_LETTERS: Final = 500
"""Of what a peer did the journal keeps so many."""

_LOG = logging.getLogger(__name__)
_Made = TypeVar("_Made")


def within(work: Callable[[], _Made], *, passes: tuple[type[Exception], ...] = ()) -> _Made:
    """Return what ``work`` makes of a peer's bytes.

    Raises UpdateError or IdentityError for whatever goes wrong, but an error of the kinds in
    ``passes`` as it is.
    """
    try:
        return work()
    except (UpdateError, IdentityError):
        raise
    except passes:
        raise
    except Exception as error:
        _LOG.warning("A reply is refused for an error that no check foresaw.", exc_info=error)
        raise UpdateError(
            f"The reply cannot be used: {type(error).__name__}: {error}"[:REASON_LETTERS],
            do="Compare the versions of gliofed at the site and at the coordinator.",
            code=UNFORESEEN,
        ) from error


def reason(error: UpdateError | IdentityError) -> str:
    """Return what the journal keeps of why a peer is refused, one line."""
    return printable(error.message)[:REASON_LETTERS]
