"""How arrays travel: joined into one, so that a model takes a few calls and not hundreds.

Flower sends every array of a message as objects of their own, each with a signed call at every
hop. ``join`` packs the arrays of a message into a single one, and ``split`` undoes it. What is
split is untrusted as before: ``common.wire`` checks each array. A message that was not joined, or
not properly, passes through as it is and is left to those checks.
"""

from __future__ import annotations

from typing import Annotated, Final

from flwr.app import Array, ArrayRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

_KIND: Final = "gliofed.freight"
_MOST_ARRAYS: Final = 10_000
_MOST_HEADER_BYTES: Final = 4 * 2**20


class _Piece(BaseModel):
    """One array in the freight, as its sender describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: Annotated[str, Field(max_length=100)]
    name: Annotated[str, Field(max_length=500)]
    dtype: Annotated[str, Field(max_length=100)]
    shape: Annotated[tuple[int, ...], Field(max_length=32)]
    stype: Annotated[str, Field(max_length=100)]
    size: Annotated[int, Field(ge=0)]


_HEADER: Final = TypeAdapter(Annotated[list[_Piece], Field(max_length=_MOST_ARRAYS)])


def join(content: RecordDict) -> RecordDict:
    """Return ``content`` with all its arrays in one; what it was given stays as it is."""
    arrays = [
        (record, name, array)
        for record, held in content.array_records.items()
        for name, array in held.items()
    ]
    if not arrays:
        return content
    header = _HEADER.dump_json(
        [
            _Piece(
                record=record,
                name=name,
                dtype=array.dtype,
                shape=tuple(array.shape),
                stype=array.stype,
                size=len(array.data),
            )
            for record, name, array in arrays
        ]
    )
    data = b"".join(
        [len(header).to_bytes(8, "little"), header, *(array.data for _, _, array in arrays)]
    )
    joined = RecordDict({**content.config_records, **content.metric_records})
    joined["freight"] = ArrayRecord({"freight": Array("uint8", (len(data),), _KIND, data)})
    return joined


def split(content: RecordDict) -> RecordDict:
    """Return ``content`` with the arrays that ``join`` put together, each on its own again."""
    record = content.array_records.get("freight")
    freight = record.get("freight") if record is not None else None
    if freight is None or freight.stype != _KIND:
        return content
    data = memoryview(freight.data)
    start = 8 + int.from_bytes(data[:8], "little")
    if start > min(len(data), _MOST_HEADER_BYTES):
        return content
    try:
        pieces = _HEADER.validate_json(bytes(data[8:start]))
    except ValidationError:
        return content
    if start + sum(piece.size for piece in pieces) != len(data):
        return content
    parts = RecordDict({**content.config_records, **content.metric_records})
    held: dict[str, dict[str, Array]] = {}
    for piece in pieces:
        part = bytes(data[start : start + piece.size])
        start += piece.size
        array = Array(piece.dtype, piece.shape, piece.stype, part)
        held.setdefault(piece.record, {})[piece.name] = array
    for name, arrays in held.items():
        parts[name] = ArrayRecord(arrays)
    return parts
