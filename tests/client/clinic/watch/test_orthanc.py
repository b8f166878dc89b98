"""Orthanc's feed of changes: what was missed, what is not ours to segment, and a real Orthanc."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from client.clinic.watch.orthanc import Orthanc
from common.errors import CaseError


class Feed:
    """An Orthanc's REST API, recorded: changes, studies and their series."""

    def __init__(self) -> None:
        self.changes: list[dict[str, Any]] = []
        self.studies: dict[str, tuple[str, list[tuple[str, list[str]]]]] = {}
        self.most = 2

    def stable(self, identity: str, *series: tuple[str, list[str]]) -> None:
        uid = f"1.2.{sum(identity.encode())}"
        self.studies[identity] = (uid, list(series))
        self.event("NewSeries", "x")
        self.event("StableStudy", identity)

    def event(self, kind: str, identity: str) -> None:
        self.changes.append({"Seq": len(self.changes) + 1, "ChangeType": kind, "ID": identity})

    def answer(self, path: str) -> Any:
        parts = urlsplit(path)
        if parts.path == "/changes":
            if parts.query == "last":
                return {"Changes": self.changes[-1:], "Last": len(self.changes), "Done": True}
            since = int(parse_qs(parts.query)["since"][0])
            page = [one for one in self.changes if one["Seq"] > since][: self.most]
            last = page[-1]["Seq"] if page else since
            return {"Changes": page, "Last": last, "Done": last == len(self.changes)}
        _, _, identity, *rest = parts.path.split("/")
        if identity not in self.studies:
            return None
        uid, series = self.studies[identity]
        if rest:
            return [{"MainDicomTags": {"Modality": m}, "Instances": i} for m, i in series]
        return {"MainDicomTags": {"StudyInstanceUID": uid}}


@pytest.fixture
def feed() -> Iterator[tuple[Feed, str]]:
    feed = Feed()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = feed.answer(self.path)
            body = json.dumps(found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield feed, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_feed_goes_on_where_it_was(feed: tuple[Feed, str], tmp_path: Path) -> None:
    told, url = feed
    told.stable("a", ("MR", ["1"]))
    told.stable("b", ("CT", ["1"]))
    told.stable("c", ("MR", ["2"]), ("SEG", ["3"]))
    told.event("StableStudy", "deleted")
    place = tmp_path / "place.json"
    first, second = Orthanc(url, place, past=True).look()
    assert len({first.name, second.name}) == 2
    again = Orthanc(url, place, past=True)  # nothing was settled: all of it comes again
    looks = again.look()
    next(looks).settled()
    next(looks)
    assert next(looks, None) is None
    (left,) = Orthanc(url, place, past=True).look()
    assert left.name == second.name
    orthanc = Orthanc(url, place, past=True)
    for found in orthanc.look():
        found.settled()
    assert list(Orthanc(url, place, past=True).look()) == []
    told.stable("c", ("MR", ["2"]), ("SEG", ["3"]), ("SR", ["4"]))
    (stored,) = orthanc.look()
    assert (stored.name, stored.fingerprint) == (second.name, second.fingerprint)


def test_an_earlier_study_that_is_left_is_not_lost(feed: tuple[Feed, str], tmp_path: Path) -> None:
    told, url = feed
    told.stable("a", ("MR", ["1"]))
    told.stable("b", ("MR", ["2"]))
    _, second = looked = list(Orthanc(url, tmp_path / "place.json", past=True).look())
    second.settled()
    again = [one.name for one in Orthanc(url, tmp_path / "place.json", past=True).look()]
    assert again == [one.name for one in looked]


def test_what_an_archive_has_already_is_left_alone(feed: tuple[Feed, str], tmp_path: Path) -> None:
    told, url = feed
    told.stable("old", ("MR", ["1"]))
    place = tmp_path / "place.json"
    assert list(Orthanc(url, place).look()) == []
    told.stable("new", ("MR", ["2"]))
    (found,) = Orthanc(url, place).look()
    assert found.name == told.studies["new"][0]


def test_nobody_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CaseError) as caught:
        list(Orthanc("http://127.0.0.1:9", tmp_path / "place.json").look())
    assert caught.value.code == "pacs-unreachable"
