"""To and from the PACS: a study is fetched to be segmented over DICOMweb, results are stored.

The only door to dicomweb-client; results for ``dicom://`` are handed to ``dimse``. A fetched study
lies in a folder that this user alone can read and that is removed when the work is done. Only its
MR series are fetched, each as whole as the archive says it is. Credentials come from the
environment, never from the command line, which others on the machine can read:
``GLIOFED_PACS_TOKEN``, or ``GLIOFED_PACS_USER`` and ``GLIOFED_PACS_PASSWORD``.
``REQUESTS_CA_BUNDLE`` names the certificates of a hospital's own authority. A proxy of the
environment is obeyed, as ``NO_PROXY`` is, but for an archive on this machine.

Sources: DICOM PS3.18, QIDO-RS, WADO-RS and STOW-RS.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from dicomweb_client.api import DICOMwebClient
from retrying import RetryError

from client.clinic.dicom_results.writer import read_results
from client.clinic.pacs import dimse
from client.imaging.dicom.headers import DAMAGED, quiet
from client.imaging.limits import MOST_SERIES_BYTES
from common.errors import CaseError
from common.process.proxies import is_loopback
from common.records.atomic_files import replacing

_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
_LONGEST_UID: Final = 64
_TIMEOUT_S: Final = (10.0, 120.0)  # to connect, and between two packets
_ATTEMPTS: Final = 3
_WAIT_MS: Final = 500  # before the second attempt 1 s, before the third 2 s
_MODALITY: Final = "00080060"
_SERIES: Final = "0020000E"
_COUNT: Final = "00201209"
_REASON: Final = "FailureReason"
_FAILURES: Final = (*DAMAGED, RetryError)


@contextmanager
def fetched(url: str, study: str) -> Iterator[Path]:
    """Yield a folder with the MR series of ``study``, a StudyInstanceUID; it is removed after.

    Raises CaseError: ``pacs-url``, ``pacs-study`` (no UID, or the archive has no MR series of it),
    ``pacs-incomplete``, ``pacs-unreachable``.
    """
    if len(study) > _LONGEST_UID or not _UID.fullmatch(study):
        raise CaseError(
            f"{study!r} is no StudyInstanceUID.",
            do="Copy the study's UID from the PACS: numbers with dots between them.",
            code="pacs-study",
        )
    client = _client(url)
    with tempfile.TemporaryDirectory(prefix="gliofed-study-") as name:
        folder = Path(name) / "study"
        folder.mkdir()
        with quiet():
            _fetch(client, study, folder)
        yield folder


def send(url: str, result: Path, *, calling: str = dimse.TITLE) -> int:
    """Store the DICOM objects in the result folder and return how many.

    ``calling`` is our own title, which only ``dicom://`` knows.

    Raises CaseError: ``pacs-url``, ``pacs-nothing`` (no objects there), ``pacs-refused``,
    ``pacs-unreachable``.
    """
    client = None if dimse.is_dimse(url) else _client(url)
    with quiet():
        objects = read_results(result)
    if not objects:
        raise CaseError(
            f"{result} holds no complete result with DICOM objects: nothing was sent.",
            do="Segment a DICOM study; from NIfTI files no DICOM object can be made.",
            code="pacs-nothing",
        )
    if client is None:
        return dimse.store(url, objects, calling=calling)
    study = str(objects[0].StudyInstanceUID)
    try:
        with quiet():
            answer = client.store_instances(objects, study_instance_uid=study)
    except _FAILURES as error:
        raise _failed(url, error, again=True) from error
    refused = answer.get("FailedSOPSequence") or []
    stored = answer.get("ReferencedSOPSequence") or []
    if refused or len(stored) < len(objects):
        reasons = {f"{int(one.get(_REASON) or 0):04X}H" for one in refused}
        raise CaseError(
            f"The PACS at {url} did not store {len(objects) - len(stored)} of {len(objects)} "
            f"objects ({', '.join(sorted(reasons)) or 'no reason given'}).",
            do="Ask who runs the PACS whether it takes segmentations, reports and parametric maps.",
            code="pacs-refused",
        )
    return len(stored)


def _fetch(client: DICOMwebClient, study: str, folder: Path) -> None:
    url = client.base_url
    try:
        found = client.search_for_series(
            study_instance_uid=study, fields=["Modality", "NumberOfSeriesRelatedInstances"]
        )
        series = {
            _value(one, _SERIES): int(_value(one, _COUNT) or 0)
            for one in found
            if _value(one, _MODALITY) == "MR"
        }
    except _FAILURES as error:
        raise _failed(url, error) from error
    if not series:
        raise CaseError(
            f"The PACS at {url} has no MR series of the study {study}.",
            do="Check the study's UID and that this archive holds it.",
            code="pacs-study",
        )
    for number, (uid, promised) in enumerate(series.items()):
        count = 0
        instances = client.iter_series(study, uid)
        while True:
            try:
                dataset = next(instances, None)
            except _FAILURES as error:
                raise _failed(url, error) from error
            if dataset is None:
                break
            with replacing(folder / f"{number:03d}-{count:05d}.dcm", durable=False) as path:
                dataset.save_as(path, enforce_file_format=True)
            count += 1
        if count < promised or not count:
            raise CaseError(
                f"The PACS at {url} sent {count} of the {promised} images of a series.",
                do="Try again; if that does not help, its copy of the study is damaged.",
                code="pacs-incomplete",
            )


def session(url: str) -> requests.Session:
    """Return a session with the credentials of the environment; raise CaseError (``pacs-url``)."""
    if dimse.is_dimse(url):
        raise CaseError(
            "Over dicom:// results can be stored, but no study can be fetched.",
            do="Give the root of the PACS's DICOMweb service, or export the study into a folder, "
            "segment that, and store the result with `gliofed-clinic send`.",
            code="pacs-url",
        )
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise CaseError(
            "The PACS's address is not an http or https URL without a user's name in it.",
            do="Give the root of its DICOMweb service, as https://pacs.hospital.example/dicom-web; "
            "the password belongs into GLIOFED_PACS_USER and GLIOFED_PACS_PASSWORD. To store over "
            "DIMSE, give dicom://TITLE@HOST:PORT.",
            code="pacs-url",
        )
    made = requests.Session()
    made.hooks["response"].append(_limited)
    if is_loopback(parts.hostname):
        for scheme in ("http://", "https://"):
            made.mount(scheme, _Direct())
    token = os.environ.get("GLIOFED_PACS_TOKEN")
    user = os.environ.get("GLIOFED_PACS_USER")
    if token:
        made.headers["Authorization"] = f"Bearer {token}"
    elif user:
        made.auth = (user, os.environ.get("GLIOFED_PACS_PASSWORD", ""))
    return made


def _limited(response: Any, **_: Any) -> None:
    """Let nobody read more of an answer than a series may have, unpacked if it came packed."""
    read = response.iter_content

    def counted(*arguments: Any, **options: Any) -> Iterator[bytes]:
        size = 0
        for piece in read(*arguments, **options):
            size += len(piece)
            if size > MOST_SERIES_BYTES:
                response.close()
                raise requests.exceptions.ContentDecodingError("the answer is too long")
            yield piece

    response.iter_content = counted


class _Direct(requests.adapters.HTTPAdapter):  # type: ignore[misc] # requests has no types
    """Sends without the proxies that the environment names; all else of it is obeyed."""

    def send(self, request: Any, **options: Any) -> Any:
        return super().send(request, **{**options, "proxies": {}})


def _client(url: str) -> DICOMwebClient:
    client = DICOMwebClient(url.rstrip("/"), session=session(url), timeout=_TIMEOUT_S)
    client.set_http_retry_params(
        retry=True, max_attempts=_ATTEMPTS, wait_exponential_multiplier=_WAIT_MS
    )
    return client


def _value(found: dict[str, Any], tag: str) -> str:
    values = found.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _failed(url: str, error: BaseException, *, again: bool = False) -> CaseError:
    """Say what failed without quoting the answer, which may name the patient."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    said = f"answered with status {status}" if status else f"failed ({type(error).__name__})"
    kept = " The result is kept: `gliofed-clinic send` sends it again." if again else ""
    return CaseError(
        f"The PACS at {url} {said}.",
        do="Check the address, the credentials in GLIOFED_PACS_USER and GLIOFED_PACS_PASSWORD or "
        f"GLIOFED_PACS_TOKEN, and that the DICOMweb service runs.{kept}",
        code="pacs-unreachable",
    )
