"""From files to instances: every DICOM file among paths and in zip files, each header read once.

What a file said is remembered, in this process only, by path, size, times and inode, so that a
worker that looks at its cohort for every order reads no header twice.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Final

from client.imaging.case import Part
from client.imaging.dicom.files_and_zips import Identity, contents, identity_of, members, unreadable
from client.imaging.dicom.headers import Instance, damaged, is_dicom, read_header
from client.imaging.dicom.series_facts import Facts
from client.imaging.limits import MOST_DICOM_BYTES
from common.errors import CaseError
from common.records.regular_files import open_regular

_SUFFIXES: Final = (".dcm", ".dicom", ".ima")
_MAGIC_END: Final = 132


@dataclass
class Scan:
    """What was found: instances, and the error of each file or zip file that cannot be used."""

    instances: list[Instance] = field(default_factory=list)
    faults: list[tuple[Path, CaseError]] = field(default_factory=list)


_remembered: dict[Path, tuple[Identity, Scan]] = {}
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
        identity = identity_of(path)
        known = _remembered.get(path)
        if known is not None and known[0] == identity:
            return known[1]
        one = _zip(path) if is_zip(path) else _file(path)
    except OSError as error:
        return Scan(faults=[(path, unreadable(path, error))])
    except CaseError as error:
        return Scan(faults=[(path, error)])
    _remembered[path] = identity, one
    return one


def _file(path: Path) -> Scan:
    with open_regular(path) as file:
        start = file.read(_MAGIC_END)
        if not is_dicom(start) and path.suffix.lower() not in _SUFFIXES:
            return Scan()
        if os.fstat(file.fileno()).st_size > MOST_DICOM_BYTES:
            raise damaged(Part(path), f"it has more than {MOST_DICOM_BYTES} bytes")
        file.seek(0)
        return _instance(Part(path), file)


def _zip(path: Path) -> Scan:
    try:
        listed = [one for one in members(path) if not _hidden(one.member)]
        found = Scan()
        for part, data in contents(listed):
            named = Path(part.member).suffix.lower() in _SUFFIXES
            if named or is_dicom(data[:_MAGIC_END]):
                one = _instance(part, io.BytesIO(data))
                found.instances += one.instances
                found.faults += one.faults
    except CaseError as error:
        return Scan(faults=[(path, error)])
    return found


def _instance(part: Part, stream: BinaryIO) -> Scan:
    try:
        instance = read_header(part, stream)
    except CaseError as error:
        return Scan(faults=[(part.path, error)])
    if instance is None:
        return Scan()
    shared = _facts.setdefault(instance.facts, instance.facts)
    return Scan([replace(instance, facts=shared)])


def _hidden(member: str) -> bool:
    """Say whether a zip's member is one of those that systems add: ``__MACOSX``, ``.DS_Store``."""
    return any(one.startswith((".", "__MACOSX")) for one in member.split("/"))
