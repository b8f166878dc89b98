from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from common.errors import StateError
from server.reporting.study_report import full_report
from server.reporting.tensorboard import write_events


def read(folder: Path) -> dict[str, dict[int, float]]:
    """Read the records of an event file: length, its check, an Event, its check."""
    (path,) = folder.iterdir()
    data, at, found = path.read_bytes(), 0, {}
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
        at += 16 + length
    return found


def test_a_study_as_tensorboard_reads_it(three: Any, tmp_path: Path) -> None:
    three.run()
    study = three.consortium.study("demo")
    report = full_report(study, three.consortium.journal, admitted=["a", "b", "c"])
    count = write_events(report, tmp_path)
    found = read(tmp_path / "demo")
    assert sum(map(len, found.values())) == count
    assert found["epsilon/a"] == {1: 1.0, 2: 2.0}
    assert found["dice_ET/worst"] == {1: 0.25, 2: 0.25}
    assert found["round/sites"] == {1: 3.0, 2: 3.0}
    with pytest.raises(StateError, match="holds an export already"):
        write_events(report, tmp_path)


def test_a_folder_that_is_none(three: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    three.run()
    study = three.consortium.study("demo")
    report = full_report(study, three.consortium.journal, admitted=["a"])
    with pytest.raises(StateError, match="Cannot write"):
        write_events(report, tmp_path / "file")
