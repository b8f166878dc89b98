"""What an archive answers is read up to a limit, and nothing of it is unpacked without one."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import threading
import zlib
from collections.abc import Iterator

import pytest
import requests

from client.clinic.pacs import dicomweb

BODY = bytes(8 * 2**20)


class _Archive(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = gzip.compress(BODY) if self.path == "/packed" else BODY
        self.send_response(200)
        if self.path == "/packed":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # who has read enough goes away
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def archive() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Archive) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/plain", "/packed"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_read_up_to_a_limit(
    archive: str, monkeypatch: pytest.MonkeyPatch, path: str, stream: bool
) -> None:
    with dicomweb.session(archive) as session:
        with session.get(archive + path, stream=stream) as answer:
            assert answer.content == BODY
        monkeypatch.setattr(dicomweb, "MOST_SERIES_BYTES", 2**20)
        with (
            pytest.raises(requests.RequestException, match="too long"),
            session.get(archive + path, stream=stream) as answer,
        ):
            _ = answer.content


def test_pydicom_unpacks_nothing() -> None:
    """It stands for all who read DICOM in this process: dicomweb-client reads by itself."""
    import pydicom.filereader

    packed = zlib.compress(bytes(99))
    with pytest.raises(ValueError, match="deflated"):
        pydicom.filereader.zlib.decompress(packed, -zlib.MAX_WBITS)
