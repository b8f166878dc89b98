"""Formats on disks have numbers: what is newer than this program is refused, what is older opened.

A file that has no number is of format 1, as 0.1.0 wrote it. To change a format, raise its number in
``NEWEST`` and give ``MIGRATIONS`` the step from the number before: a function from the values as
they were to the values as they are. Files are migrated as they are read; the next write has the new
form. The privacy ledger keeps its number in SQLite's header and is never migrated by a reader;
``result.json`` names its schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Final

from common.errors import StateError

Migration = Callable[[dict[str, Any]], dict[str, Any]]

NEWEST: Final[dict[str, int]] = {
    "backup": 1,
    "consortium": 2,
    "journal": 1,
    "model": 1,
    "site settings": 1,
}


def _without_private_port(values: dict[str, Any]) -> dict[str, Any]:
    """The SuperLink's port is chosen at each start of `serve` now."""
    return {key: value for key, value in values.items() if key != "private_port"}


MIGRATIONS: Final[dict[str, dict[int, Migration]]] = {"consortium": {1: _without_private_port}}
"""Of each kind, by the number that a step starts from."""


def check(kind: str, found: object, *, where: object) -> int:
    """Return the number ``found`` in ``where``, 1 if it is None; raise StateError for a newer."""
    newest = NEWEST[kind]
    number = 1 if found is None else found
    if type(number) is not int or number < 1:
        raise StateError(
            f"The {kind} {where} has no format that gliofed ever wrote: {found!r}.",
            do="It is damaged: restore it from a backup.",
            code="format",
        )
    if number > newest:
        raise StateError(
            f"The {kind} {where} has format {number}; gliofed {version('gliofed')}, which is "
            f"installed here, knows formats up to {newest}.",
            do="A newer gliofed wrote it: install that version or later. Nothing was changed.",
            code="format-newer",
        )
    return number


def current(kind: str, values: Mapping[str, Any], *, where: object) -> dict[str, Any]:
    """Return ``values``, without their number, as the newest format has them; raise StateError."""
    number = check(kind, values.get("format"), where=where)
    now = {key: value for key, value in values.items() if key != "format"}
    for step in range(number, NEWEST[kind]):
        now = MIGRATIONS[kind][step](now)
    return now
