"""From files to instances: every DICOM file among paths and in zip files, each header read once.

What a file said is remembered, in this process only, by path, size, times and inode, so that a
worker that looks at its cohort for every order reads no header twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from client.imaging.case import Part
from client.imaging.dicom.containers import contents, members
from client.imaging.dicom.facts import Facts
from client.imaging.dicom.headers import Instance, damaged, is_dicom, read_header
from common.errors import CaseError

_SUFFIXES: Final = (".dcm", ".dicom", ".ima")
_MAGIC_END: Final = 132


@dataclass
class Scan:
    """What was found: instances, and the error of each file or zip file that cannot be used."""

    instances: list[Instance] = field(default_factory=list)
    faults: list[tuple[Path, CaseError]] = field(default_factory=list)


_Identity = tuple[int, int, int, int]
_remembered: dict[Path, tuple[_Identity, Scan]] = {}
_facts: dict[Facts, Facts] = {}


def scan(paths: Iterable[Path]) -> Scan:
    """Read the header of each DICOM file among ``paths`` and in their zip files; skip others."""
    found = Scan()
    for path in paths:
        one = _scanned(path)
        found.instances += one.instances
        found.faults += one.faults
    return found


def is_zip(path: Path) -> bool:
    """Say whether ``path`` is named like a zip file."""
    return path.suffix.lower() == ".zip"


def _scanned(path: Path) -> Scan:
    try:
        facts = path.stat()
        identity = facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns
        known = _remembered.get(path)
        if known is not None and known[0] == identity:
            return known[1]
        one = _zip(path) if is_zip(path) else _file(path)
    except OSError as error:
        reason = error.strerror or str(error)
        do = "Check that the file is there and that this user may read it."
        fault = CaseError(f"{path} cannot be read: {reason}.", do=do, code="case-file")
        return Scan(faults=[(path, fault)])
    _remembered[path] = identity, one
    return one


def _file(path: Path) -> Scan:
    with path.open("rb") as file:
        start = file.read(_MAGIC_END)
        if not is_dicom(start) and path.suffix.lower() not in _SUFFIXES:
            return Scan()
        data = start + file.read()
    return _instances([(Part(path), data)])


def _zip(path: Path) -> Scan:
    try:
        listed = [one for one in members(path) if not _hidden(one.member)]
        found = Scan()
        for part, data in contents(listed):
            named = Path(part.member).suffix.lower() in _SUFFIXES
            if named or is_dicom(data[:_MAGIC_END]):
                one = _instances([(part, data)])
                found.instances += one.instances
                found.faults += one.faults
    except CaseError as error:
        return Scan(faults=[(path, error)])
    return found


def _instances(files: Iterable[tuple[Part, bytes]]) -> Scan:
    found = Scan()
    for part, data in files:
        try:
            instance = _header(part, data)
        except CaseError as error:
            found.faults.append((part.path, error))
            continue
        if instance is not None:
            shared = _facts.setdefault(instance.facts, instance.facts)
            found.instances.append(replace(instance, facts=shared))
    return found


def _header(part: Part, data: bytes) -> Instance | None:
    if not data:
        raise damaged(part, "it is empty")
    return read_header(part, data)


def _hidden(member: str) -> bool:
    """Say whether a zip's member is one of those that systems add: ``__MACOSX``, ``.DS_Store``."""
    return any(one.startswith((".", "__MACOSX")) for one in member.split("/"))
