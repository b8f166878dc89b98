"""Results reach an archive by C-STORE as they are; what it refuses is said in words."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    ParametricMapStorage,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from pynetdicom.dimse import DIMSEServiceProvider

from client.clinic.pacs import dimse
from client.clinic.pacs.dicomweb import fetched, send
from client.commands import clinic as cli
from common.errors import CaseError
from tests import consortia
from tests.client.clinic.dicom_results.test_writer import labelled, source, written
from tests.scanners import oblique

Run = Callable[..., Any]
CLASSES = (
    SegmentationStorage,
    Comprehensive3DSRStorage,
    ParametricMapStorage,
    EncapsulatedPDFStorage,
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("result")
    image, volume = source(root / "series", affine=oblique((2.0, 3.0, 5.0)))
    uids = written(root / "out", image, volume, labelled())
    (root / "out" / "result.json").write_text(json.dumps({"dicom": uids}))
    return root / "out"


@contextlib.contextmanager
def archive(
    store: Callable[[evt.Event], int],
    *,
    takes: Sequence[str] = CLASSES,
    syntax: str = ExplicitVRLittleEndian,
    tls: ssl.SSLContext | None = None,
    **settings: Any,
) -> Iterator[str]:
    """Run an archive called ARCHIVE that answers as ``store`` does; yield its address."""
    them = AE("ARCHIVE")
    them.require_called_aet = True
    for kind in takes:
        them.add_supported_context(kind, syntax)
    for name, value in settings.items():
        setattr(them, name, value)
    server = them.start_server(
        ("127.0.0.1", 0),
        block=False,
        evt_handlers=[(evt.EVT_C_STORE, store)],
        ssl_context=tls,
    )
    try:
        scheme = "dicoms" if tls else "dicom"
        yield f"{scheme}://ARCHIVE@127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        them.shutdown()


def kept(into: dict[str, Any]) -> Callable[[evt.Event], int]:
    def store(event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        into[str(dataset.SOPInstanceUID)] = dataset
        return 0x0000

    return store


def values(dataset: Any) -> list[tuple[Any, Any]]:
    """Return what the elements hold; implicit VR does not say whether bytes are OB or OW."""
    return [(one.tag, one.value) for one in dataset.iterall() if one.VR != "SQ"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def refused(url: str, result: Path, **options: Any) -> CaseError:
    with pytest.raises(CaseError) as caught:
        send(url, result, **options)
    return caught.value


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_objects_arrive_as_they_are(result: Path, syntax: str) -> None:
    arrived: dict[str, Any] = {}
    with archive(kept(arrived), syntax=syntax) as url:
        assert send(url, result) == 4
    sent = [pydicom.dcmread(path) for path in result.glob("*.dcm")]
    assert {str(one.SOPInstanceUID) for one in sent} == set(arrived)
    for one in sent:
        back = arrived[str(one.SOPInstanceUID)]
        if syntax == ExplicitVRLittleEndian:
            assert back == one
        assert values(back) == values(one)
        assert back.file_meta.TransferSyntaxUID == syntax


def test_small_messages_do_not_wait_for_one_another(result: Path) -> None:
    set_to: list[int] = []

    def opened(self: socket.socket, *arguments: Any) -> None:
        set_to.append(arguments[1])
        return real(self, *arguments)

    real = socket.socket.setsockopt
    with pytest.MonkeyPatch.context() as patch, archive(kept({})) as url:
        patch.setattr(socket.socket, "setsockopt", opened)
        send(url, result)
    assert socket.TCP_NODELAY in set_to


def test_the_command_stores_and_says_how_many(command: Run, result: Path) -> None:
    clinic = functools.partial(command, cli.main)
    arrived: dict[str, Any] = {}
    with archive(kept(arrived), require_calling_aet=["WARD 7"]) as url:
        said = clinic("send", result, "--pacs", url, "--aet", "WARD 7")
        assert (said.code, len(arrived)) == (0, 4), said.err
        assert "Stored 4 objects" in said.out
        strange = refused(url, result)
    assert strange.code == "pacs-refused"
    assert "it does not know GLIOFED" in str(strange)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """An archive's side of TLS, and who vouches for it."""
    folder = consortia.found(tmp_path_factory.mktemp("authority") / "coordinator").folder
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.crt", folder / "keys" / "server.key")
    return context, folder / "ca.crt"


def test_objects_arrive_as_they_are_in_tls(
    result: Path, certified: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, authority = certified
    arrived: dict[str, Any] = {}
    with archive(kept(arrived), tls=context) as url:
        strange = refused(url, result)
        assert (strange.code, arrived) == ("pacs-unreachable", {})
        assert "certificate is of an authority in REQUESTS_CA_BUNDLE" in str(strange)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
        assert send(url, result) == 4
        plain = refused(url.replace("dicoms:", "dicom:"), result)
        assert (plain.code, "does not want TLS" in str(plain)) == ("pacs-unreachable", True)
    for path in result.glob("*.dcm"):
        one = pydicom.dcmread(path)
        assert arrived[str(one.SOPInstanceUID)] == one


def test_an_archive_that_never_answers_is_waited_for_so_long(
    result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dimse, "_AGREE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        error = refused(f"dicom://ARCHIVE@127.0.0.1:{silent.getsockname()[1]}", result)
        assert time.monotonic() - began < 10
    assert error.code == "pacs-unreachable"
    assert "did not answer, before an association was made. Nothing was sent" in str(error)


def test_an_archive_that_falls_silent_is_waited_for_so_long(
    result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dimse, "_ANSWER_S", 0.5)
    ended = threading.Event()

    def store(event: evt.Event) -> int:
        ended.wait(60)
        return 0x0000

    with archive(store) as url:
        began = time.monotonic()
        error = refused(url, result)
        assert time.monotonic() - began < 20
        ended.set()
    assert error.code == "pacs-unreachable"
    assert "did not answer, at segmentation.dcm" in str(error)


def test_no_other_thread_takes_the_archives_answers(
    result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []
    storing = threading.Event()
    take, store = DIMSEServiceProvider.get_msg, dimse._refusal

    def get_msg(self: Any, block: bool = False) -> Any:
        if self.assoc.is_requestor and storing.is_set():
            taken.append(block)
        return take(self, block)

    def refusal(*values: Any) -> str:
        storing.set()
        time.sleep(0.02)  # twenty times as long as that thread waits between two looks
        return store(*values)

    monkeypatch.setattr(DIMSEServiceProvider, "get_msg", get_msg)
    monkeypatch.setattr(dimse, "_refusal", refusal)
    with archive(kept({})) as url:
        assert send(url, result) == 4
        storing.clear()
    assert taken[:4] == [True] * 4


def test_another_title_is_refused(result: Path) -> None:
    with archive(kept({})) as url:
        error = refused(url.replace("ARCHIVE", "ANOTHER"), result)
    assert error.code == "pacs-refused"
    assert "it is not called ANOTHER. Nothing was sent. Check the title" in str(error)


@pytest.mark.parametrize("scheme", ["dicom", "dicoms"])
def test_nobody_there(result: Path, scheme: str) -> None:
    error = refused(f"{scheme}://ARCHIVE@127.0.0.1:{free_port()}", result)
    assert (error.code, "no connection" in str(error)) == ("pacs-unreachable", True)


def test_a_host_without_an_address(result: Path) -> None:
    error = refused("dicom://ARCHIVE@pacs.invalid:104", result)
    assert (error.code, "no connection" in str(error)) == ("pacs-unreachable", True)


def test_a_class_that_is_not_taken_keeps_no_other_back(result: Path) -> None:
    arrived: dict[str, Any] = {}
    with archive(
        kept(arrived), takes=[one for one in CLASSES if one != ParametricMapStorage]
    ) as url:
        error = refused(url, result)
    assert error.code == "pacs-refused"
    assert "1 of 4 objects (uncertainty.dcm (Parametric Map Storage): the class" in str(error)
    assert len(arrived) == 3


def test_no_class_is_taken(result: Path) -> None:
    with archive(kept({}), takes=[MRImageStorage]) as url:
        error = refused(url, result)
    assert error.code == "pacs-refused"
    assert "accepts none of these classes" in str(error)
    assert "Segmentation Storage" in str(error)


@pytest.mark.parametrize(
    ("status", "words"), [(0xA700, "status A700H, "), (0x0124, "status 0124H"), (0xB000, "")]
)
def test_every_answer_counts(result: Path, status: int, words: str) -> None:
    def store(event: evt.Event) -> int:
        return status if event.request.AffectedSOPClassUID == ParametricMapStorage else 0x0000

    with archive(store) as url:
        if not words:  # a warning: it was stored
            assert send(url, result) == 4
            return
        error = refused(url, result)
    assert error.code == "pacs-refused"
    assert f"1 of 4 objects (uncertainty.dcm (Parametric Map Storage): {words}" in str(error)


def test_an_archive_that_breaks_off(result: Path) -> None:
    def store(event: evt.Event) -> int:
        event.assoc.abort()
        return 0x0000

    with archive(store) as url:
        error = refused(url, result)
    assert error.code == "pacs-unreachable"
    assert "broke off, or did not answer, at segmentation.dcm" in str(error)


def test_something_else_listens_there(result: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with server.accept()[0] as one:
                one.recv(10)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        thread = threading.Thread(target=hang_up)
        thread.start()
        error = refused(f"dicom://ARCHIVE@127.0.0.1:{server.getsockname()[1]}", result)
        thread.join()
    assert error.code == "pacs-unreachable"
    assert "before an association was made" in str(error)


@pytest.mark.parametrize(
    "url",
    [
        "dicom://127.0.0.1:104",
        "dicom://ARCHIVE@127.0.0.1",
        "dicom://ARCHIVE@127.0.0.1:port",
        "dicom://ARCHIVE:secret@127.0.0.1:104",
        "dicom://ARCHIVE@127.0.0.1:104/dicom-web",
        "dicom://SEVENTEEN-LETTERS@127.0.0.1:104",
    ],
)
def test_an_address_of_another_form(result: Path, url: str) -> None:
    error = refused(url, result)
    assert error.code == "pacs-url"
    assert "secret" not in str(error)


def test_our_own_title_has_a_form_too(result: Path) -> None:
    error = refused("dicom://ARCHIVE@127.0.0.1:104", result, calling="back\\slash")
    assert (error.code, "is no AE title" in str(error)) == ("pacs-url", True)


def test_nothing_is_fetched_over_dimse() -> None:
    with (
        pytest.raises(CaseError, match="no study can be fetched") as caught,
        fetched("dicom://ARCHIVE@127.0.0.1:104", "1.2.3"),
    ):
        pass
    assert caught.value.code == "pacs-url"
