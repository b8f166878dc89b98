from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.errors import UpdateError
from common.freight import join, split
from common.wire import Report, pack, unpack_report

KIND = "gliofed.freight"
REPORT = Report(kind="train", study="demo", round=1, status="done")
ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.float32(7).reshape(()),
    "c": np.zeros((0, 4), np.float32),
}


def freight(data: bytes, *, stype: str = KIND) -> RecordDict:
    record = ArrayRecord({"freight": Array("uint8", (len(data),), stype, data)})
    return RecordDict({"gliofed": ConfigRecord({"json": "{}"}), "freight": record})


def loaded(pieces: object, body: bytes) -> bytes:
    header = json.dumps(pieces).encode()
    return len(header).to_bytes(8, "little") + header + body


def piece(**changes: object) -> dict[str, object]:
    whole = {"record": "arrays", "name": "a", "dtype": "float32", "shape": [1], "stype": "x"}
    return {**whole, "size": 4, **changes}


def test_what_is_joined_is_one_array_and_splits_into_the_same() -> None:
    content = pack(REPORT, ARRAYS)
    joined = join(content)
    assert [len(record) for record in joined.array_records.values()] == [1]
    assert split(joined) == content
    _, arrays = unpack_report(
        split(joined), template={n: a.shape for n, a in ARRAYS.items()}, max_norm=100
    )
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_the_sender_keeps_what_it_joins() -> None:
    content = pack(REPORT, ARRAYS)
    join(content)
    assert list(content.array_records["arrays"]) == list(ARRAYS)


def test_other_records_travel_along() -> None:
    content = RecordDict(
        {
            "one": ArrayRecord({"a": Array(np.ones(2, np.float32))}),
            "two": ArrayRecord({"a": Array(np.zeros(3, np.float64))}),
            "numbers": MetricRecord({"n": 1}),
            "words": ConfigRecord({"w": "x"}),
        }
    )
    assert split(join(content)) == content


def test_without_arrays_nothing_changes() -> None:
    content = pack(REPORT, None)
    assert join(content) is content
    assert split(content) is content


def test_the_freight_of_a_model_takes_few_objects() -> None:
    many = {f"layer{i}": np.full(1000, i, np.float32) for i in range(100)}
    (record,) = join(pack(REPORT, many)).array_records.values()
    (array,) = record.values()
    assert len(array.slice_array()) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        b"\xff" * 64,
        (2**40).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"[",
        loaded({}, b""),
        loaded([piece()], b"12345"),
        loaded([piece()], b"123"),
        loaded([piece(size=-4)], b""),
        loaded([piece(size=2**70)], b"1234"),
        loaded([piece(shape=["many"])], b"1234"),
        loaded([piece(name="n" * 501)], b"1234"),
        loaded([piece(extra=1)], b"1234"),
        loaded([piece(size=0)] * 10_001, b""),
    ],
)
def test_malformed_freight_is_left_to_the_checks_of_the_wire(data: bytes) -> None:
    content = freight(data)
    assert split(content) is content
    content["gliofed"] = ConfigRecord({"json": REPORT.model_dump_json()})
    with pytest.raises(UpdateError) as refused:
        unpack_report(split(content), template={}, max_norm=1)
    assert refused.value.code == "update-form"


@pytest.mark.parametrize(
    "changed",
    [
        lambda: freight(loaded([piece()], b"1234"), stype="numpy.ndarray"),
        lambda: RecordDict({"freight": ArrayRecord({"other": Array(np.ones(2))})}),
        lambda: RecordDict({"freight": ConfigRecord({"freight": "x"})}),
    ],
)
def test_what_only_looks_like_freight_is_left_alone(changed: Callable[[], RecordDict]) -> None:
    content = changed()
    assert split(content) is content


def test_a_lie_about_an_array_is_found_by_the_wire() -> None:
    name, data = "a", Array(np.ones(4, np.float64)).data
    lie = piece(name=name, shape=[4], stype="numpy.ndarray", size=len(data))
    content = freight(loaded([lie], data))
    content["gliofed"] = ConfigRecord({"json": REPORT.model_dump_json()})
    with pytest.raises(UpdateError) as refused:
        unpack_report(split(content), template={name: (4,)}, max_norm=10)
    assert refused.value.code == "update-dtype"
