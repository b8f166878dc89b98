"""Facts about this machine: room on a disk, memory, who may read a file, a systemd unit.

Out of scope: what they mean (``common.doctor.machine_checks``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import StateError
from common.records.atomic_files import PARTIAL, write_bytes

_SYSTEMCTL_S: Final = 5.0
_MOST_FILES: Final = 200_000


@dataclass(frozen=True)
class Place:
    """A folder that is written to."""

    what: str
    path: Path
    free: int
    """Bytes that this user may still write."""
    full: bool = False
    trouble: str = ""
    """Why a file could not be written."""


@dataclass(frozen=True)
class Secret:
    """A file that only its owner may read."""

    path: Path
    missing: bool = False
    mode: int = 0
    readable: bool = True


@dataclass(frozen=True)
class Unit:
    """A systemd unit that this machine has, in systemd's words."""

    name: str
    active: str
    enabled: str


def place(what: str, path: Path) -> Place:
    """Look at ``path``, or where it will be made, and try to write there."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Place(what, path, 0, trouble=str(error.strerror))
    probe = there / f"{PARTIAL}doctor-{os.getpid()}"
    try:
        write_bytes(probe, b"can be written")
        probe.unlink()
    except StateError as error:
        cause = error.__cause__
        number = cause.errno if isinstance(cause, OSError) else None
        words = cause.strerror if isinstance(cause, OSError) else error.message
        full = number in {errno.ENOSPC, errno.EDQUOT}
        return Place(what, path, free, full=full, trouble="" if full else str(words))
    return Place(what, path, free)


def temporary() -> Path | None:
    """Return the folder for temporary files; None if none can be written."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return None


def memory() -> tuple[int, int]:
    """Return the bytes of memory that a process may still take, and all that there are.

    Linux counts what caches would give back.
    """
    free, total = (os.sysconf(f"SC_{which}_PAGES") for which in ("AVPHYS", "PHYS"))
    page = os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024, total * page
    return free * page, total * page


def secret(path: Path) -> Secret:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return Secret(path, missing=True)
    return Secret(path, mode=mode, readable=os.access(path, os.R_OK))


def owner(path: Path) -> str:
    """Return the name of the user who owns ``path``."""
    try:
        return path.owner()
    except KeyError:  # a user without a name
        return str(path.stat().st_uid)


def strangers(folder: Path) -> list[str]:
    """Return the files in ``folder`` that belong to another user than the folder, by their path."""
    mine = folder.stat().st_uid
    found = []
    for path in _below(folder):
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_uid != mine:
                found.append(str(path.relative_to(folder)))
    return sorted(found)


def leftovers(folder: Path) -> int:
    """Return how many half-written files lie in ``folder``."""
    return sum(path.name.startswith(PARTIAL) for path in _below(folder))


def _below(folder: Path) -> Iterator[Path]:
    count = 0
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(root) / name
            count += 1
            if count >= _MOST_FILES:
                return


def unit(name: str) -> Unit | None:
    """Return the systemd unit of that name; None if there is none, or no systemd."""
    program = shutil.which("systemctl")
    if program is None:
        return None
    asked = ("LoadState", "ActiveState", "UnitFileState")
    try:
        told = subprocess.run(
            [program, "show", name, f"--property={','.join(asked)}"],
            capture_output=True,
            text=True,
            timeout=_SYSTEMCTL_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return read_unit(name, told.stdout.splitlines())


def read_unit(name: str, lines: Iterable[str]) -> Unit | None:
    """Return the unit that ``systemctl show`` tells of."""
    facts = dict(line.split("=", 1) for line in lines if "=" in line)
    if facts.get("LoadState") != "loaded":
        return None
    return Unit(name, facts.get("ActiveState", ""), facts.get("UnitFileState", ""))
