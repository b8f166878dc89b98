"""Studies that become stable in an Orthanc, from its feed of changes.

The place in the feed is on the disk, so that a restart misses nothing; whether a study was done is
for the journal to say. Only MR series count: results that were stored in a study make it stable
again, and are never segmented. Images are fetched, and results stored, over Orthanc's DICOMweb.

Source: Orthanc Book, REST API, "Tracking changes".
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import requests

from client.clinic.pacs.dicomweb import fetched, session
from client.clinic.watch.found_study import Found
from common.errors import CaseError
from common.records.atomic_files import read_json, write_json

DICOMWEB: Final = "/dicom-web"
_TIMEOUT_S: Final = (10.0, 60.0)
_PAGE: Final = 100
_UID: Final = re.compile(r"[0-9.]{1,64}\Z")


class Orthanc:
    """Watches the Orthanc whose REST API has its root at ``url``; ``place`` keeps where it was.

    The first watch begins with what comes after it, or with ``past`` at the first of all changes.
    """

    def __init__(self, url: str, place: Path, *, past: bool = False) -> None:
        self._url, self._place = url.rstrip("/"), place
        self._session = session(self._url)
        if place.exists():
            self._last = int(read_json(place, what="place in Orthanc's feed")["last"])
        else:
            self._keep(0 if past else int(self._get("/changes?last")["Last"]))
        self._unsettled: int | None = None  # the first change of this look with work left

    @property
    def dicomweb(self) -> str:
        """The root of its DICOMweb service."""
        return self._url + DICOMWEB

    def look(self) -> Iterator[Found]:
        """Yield the studies that became stable; the same again until all before are settled."""
        since, done, self._unsettled = self._last, False, None
        while not done:
            page = self._get(f"/changes?since={since}&limit={_PAGE}")
            changes = page["Changes"]
            for change in changes:
                sequence = int(change["Seq"])
                found = (
                    self._found(str(change["ID"]), sequence)
                    if change["ChangeType"] == "StableStudy"
                    else None
                )
                if found is not None:
                    yield found
            since, done = int(page["Last"]), bool(page["Done"]) or not changes
        if since != self._last and self._unsettled is None:
            self._keep(since)

    def _found(self, identity: str, sequence: int) -> Found | None:
        """Return the study, None where it was deleted or has no MR series."""
        try:
            study = self._get(f"/studies/{identity}")
            series = self._get(f"/studies/{identity}/series")
        except _Gone:
            return None
        uid = str(study["MainDicomTags"].get("StudyInstanceUID", ""))
        images = sorted(
            name
            for one in series
            if one["MainDicomTags"].get("Modality") == "MR"
            for name in one["Instances"]
        )
        if not images or not _UID.match(uid):
            return None
        fingerprint = hashlib.sha256("\n".join(images).encode()).hexdigest()
        if self._unsettled is None:
            self._unsettled = sequence
        return Found(
            uid,
            fingerprint,
            functools.partial(fetched, self.dicomweb, uid),
            settled=functools.partial(self._settle, sequence),
        )

    def _settle(self, sequence: int) -> None:
        """Go on after a change, if none before it is left to do."""
        if self._unsettled == sequence:
            self._unsettled = None
            self._keep(sequence)

    def _keep(self, last: int) -> None:
        write_json(self._place, {"last": last})
        self._last = last

    def _get(self, path: str) -> Any:
        try:
            answer = self._session.get(self._url + path, timeout=_TIMEOUT_S)
            if answer.status_code == requests.codes.not_found:
                raise _Gone
            answer.raise_for_status()
            return answer.json()
        except requests.RequestException as error:
            raise CaseError(
                f"Orthanc at {self._url} failed ({type(error).__name__}).",
                do="Check the address of its REST API, GLIOFED_PACS_USER and "
                "GLIOFED_PACS_PASSWORD, and that Orthanc runs.",
                code="pacs-unreachable",
            ) from error


class _Gone(Exception):  # noqa: N818
    """What was named is not there any more."""
