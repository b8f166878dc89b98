"""Which versions of gliofed understand each other, and which of them is proven with what.

Server and sites work together if they have the same major version and at most one minor version
between them, either way: so that a consortium upgrades one machine after the other, in any order.
A release keeps to it: what it adds to a message, the release before may leave unread
(``common.messages.wire_format``).

Out of scope: the formats on a disk.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.resources
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

_VERSION: Final = re.compile(r"(\d{1,6})\.(\d{1,6})(?![\d])")


class Release(NamedTuple):
    """The part of a version by which two sides understand each other: 0.1 of 0.1.7."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


def release(version: str) -> Release | None:
    """Return the release that ``version`` belongs to, or None if it is no version."""
    found = _VERSION.match(version)
    return Release(int(found[1]), int(found[2])) if found else None


def skew(*, site: str, coordinator: str) -> str:
    """Return in a sentence who must upgrade, or an empty text if the two understand each other."""
    here, there = release(site), release(coordinator)
    both = f"The site runs gliofed {site or 'without a version'}"
    both += f", the coordinator {coordinator or 'without a version'}"
    if here is None or there is None:
        whose = "site" if here is None else "coordinator"
        return f"{both}: the {whose} must install a release of gliofed."
    if here.major == there.major and abs(here.minor - there.minor) <= 1:
        return ""
    old, new = ("site", there) if here < there else ("coordinator", here)
    if here.major != there.major:
        return f"{both}: another major version. The {old} must upgrade to {new.major}."
    least = Release(new.major, new.minor - 1)
    return f"{both}: more than one minor version apart. The {old} must upgrade to {least} or {new}."


@functools.cache
def own() -> str:
    """Return the version of the gliofed that runs here."""
    return importlib.metadata.version("gliofed")


def proven() -> dict[str, str]:
    """Return the version of each library that this release is proven with; {} if none is known."""
    shipped = importlib.resources.files("common") / "constraints.txt"
    source = Path(__file__).parents[1] / "deploy" / "constraints.txt"
    path = shipped if shipped.is_file() else source
    return parse_constraints(path.read_text().splitlines()) if path.is_file() else {}


def parse_constraints(lines: Iterable[str]) -> dict[str, str]:
    """Return name and version of each line ``name==version``."""
    found = {}
    for line in lines:
        name, equal, version = line.partition("#")[0].partition(";")[0].partition("==")
        if equal:
            found[name.strip().lower()] = version.strip()
    return found


def unproven(
    wanted: Mapping[str, str],
    names: Iterable[str],
    *,
    installed: Callable[[str], str] | None = None,
) -> dict[str, tuple[str, str]]:
    """Return those of ``names`` that are not here in the version that is ``wanted``.

    With each: the version that is here, or an empty text, and the one that is wanted. A local
    part, such as ``+cu128`` of torch, is no difference.
    """
    look = installed or installed_version
    here = {name: look(name) for name in names if name in wanted}
    return {
        name: (version, wanted[name])
        for name, version in here.items()
        if version.partition("+")[0] != wanted[name].partition("+")[0]
    }


def installed_version(name: str) -> str:
    """Return the version of an installed library, or an empty text."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
