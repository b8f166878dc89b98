"""Bodies that no honest site sends."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from common.errors import UpdateError
from common.messages.compression import decode, encode
from common.records.weights import Arrays, norm
from common.study.protocol import MessageOptions

FLOAT32 = MessageOptions()
FLOAT16 = MessageOptions(encoding="float16")
INT8 = MessageOptions(encoding="int8")
FLOAT32_TOP = MessageOptions(top_share=0.1)
INT8_TOP = MessageOptions(encoding="int8", top_share=0.1)
EVERY = [FLOAT32, FLOAT16, INT8, FLOAT32_TOP, INT8_TOP]
SHAPES: dict[str, tuple[int, ...]] = {"a": (400, 2), "b": (4,), "c": ()}


def parts(options: MessageOptions) -> dict[str, np.ndarray]:
    arrays = {
        name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    return dict(load(encode(arrays, options, rng=np.random.default_rng(2))[0]))


def shapes_of(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def index(*head: int) -> dict[str, np.ndarray]:
    """Return places of which the first are ``head``, the others sound."""
    sound = np.arange(700, 780, dtype=np.uint32)
    sound[: len(head)] = head
    return {"a#index": sound}


ONES = np.ones(3, np.float32)

FORGED: dict[str, tuple[MessageOptions, dict[str, Any], str]] = {
    "float32 for int8": (INT8, {"b": np.ones(4, np.float32)}, "dtype"),
    "unsigned for int8": (INT8, {"b": np.ones(4, np.uint8)}, "dtype"),
    "int8 for float16": (FLOAT16, {"b": np.ones(4, np.int8)}, "dtype"),
    "float16 for float32": (FLOAT32, {"b": np.ones(4, np.float16)}, "dtype"),
    "int16 for float16": (FLOAT16, {"b": np.ones(4, np.int16)}, "dtype"),
    "scales of float64": (INT8, {"#scales": ONES.astype(np.float64)}, "dtype"),
    "scales of float16": (FLOAT16, {"#scales": ONES.astype(np.float16)}, "dtype"),
    "places of int32": (INT8_TOP, {"a#index": np.arange(80, dtype=np.int32)}, "dtype"),
    "places of int64": (INT8_TOP, {"a#index": np.arange(80, dtype=np.int64)}, "dtype"),
    "another shape": (INT8, {"b": np.ones((2, 2), np.int8)}, "shape"),
    "more entries": (INT8, {"b": np.ones(5, np.int8)}, "shape"),
    "a scale too few": (INT8, {"#scales": ONES[:2]}, "shape"),
    "a scale too many": (INT8, {"#scales": np.ones(4, np.float32)}, "shape"),
    "one scale": (INT8, {"#scales": np.array(1, np.float32)}, "shape"),
    "whole, not its share": (INT8_TOP, {"a": np.ones((400, 2), np.int8)}, "shape"),
    "a larger share": (INT8_TOP, {"a": np.ones(81, np.int8)}, "shape"),
    "a place too many": (INT8_TOP, {"a#index": np.arange(81, dtype=np.uint32)}, "shape"),
    "no places at all": (INT8_TOP, {"a#index": np.zeros(0, np.uint32)}, "shape"),
    "no places": (INT8_TOP, {"a#index": None}, "name"),
    "no scales": (INT8, {"#scales": None}, "name"),
    "no array": (INT8, {"b": None}, "name"),
    "one array more": (INT8, {"d": np.ones(4, np.int8)}, "name"),
    "places of a whole array": (INT8_TOP, {"b#index": np.arange(4, dtype=np.uint32)}, "name"),
    "places not asked for": (INT8, {"a#index": np.arange(80, dtype=np.uint32)}, "name"),
    "scales not asked for": (FLOAT32, {"#scales": ONES}, "name"),
    "scale by array": (INT8, {"b#scale": np.ones((), np.float32)}, "name"),
    "a scale that is no number": (INT8, {"#scales": ONES * np.float32(np.nan)}, "scale"),
    "a scale without end": (FLOAT16, {"#scales": ONES * np.float32(np.inf)}, "scale"),
    "a negative scale": (INT8, {"#scales": np.array([1, -1, 1], np.float32)}, "scale"),
    "a scale of zero": (FLOAT16, {"#scales": np.array([1, 1, 0], np.float32)}, "scale"),
    "places that fall": (INT8_TOP, index(702, 701), "index"),
    "a place twice": (FLOAT32_TOP, index(701, 701), "index"),
    "a place outside": (INT8_TOP, {"a#index": np.arange(721, 801, dtype=np.uint32)}, "index"),
    "a place far outside": (FLOAT32_TOP, index(2**32 - 1), "index"),
    "much larger": (INT8, {"b": np.ones(100_000, np.int8)}, "size"),
    "float32 where all is int8": (INT8_TOP, {"a": np.ones((400, 200), np.float32)}, "size"),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_parts_are_refused(case: str) -> None:
    options, changes, code = FORGED[case]
    forged = {k: v for k, v in {**parts(options), **changes}.items() if v is not None}
    with pytest.raises(UpdateError) as caught:
        decode(save(forged), SHAPES, options)
    assert caught.value.code == f"update-{code}"


@pytest.mark.parametrize("options", EVERY)
def test_what_the_table_above_forges_is_sound_before(options: MessageOptions) -> None:
    got = decode(save(parts(options)), SHAPES, options)
    assert shapes_of(got) == SHAPES


@pytest.mark.parametrize(("options", "told"), [*itertools.permutations(EVERY, 2)])
def test_a_body_of_another_protocol_is_refused(
    options: MessageOptions, told: MessageOptions
) -> None:
    with pytest.raises(UpdateError):
        decode(save(parts(options)), SHAPES, told)


SOUND = save(parts(INT8_TOP))


def claiming(**fields: Any) -> bytes:
    """Return the sound body whose header says something else about ``a``."""
    body = SOUND
    size = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + size])
    header["a"].update(fields)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body[8 + size :]


BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "form"),
    "cut": (SOUND[:-1], "form"),
    "cut in the header": (SOUND[:50], "form"),
    "longer": (SOUND + b"\0", "form"),
    "much longer": (SOUND + bytes(20_000), "size"),
    "a shape of terabytes": (claiming(shape=[2**40]), "form"),
    "a wrapping shape": (claiming(shape=[2**62, 2**62]), "form"),
    "parts that overlap": (claiming(data_offsets=[0, 80]), "form"),
    "a kind that is no number": (claiming(dtype="bool"), "form"),
    "another kind of as many bytes": (claiming(dtype="F8_E4M3"), "dtype"),
    "a pickle": (b"\x80\x04N.", "form"),
    "a zip": (b"PK\x03\x04" + bytes(60), "form"),
}


@pytest.mark.parametrize("case", BODIES)
def test_bodies_that_are_not_sound_are_refused(case: str) -> None:
    body, code = BODIES[case]
    with pytest.raises(UpdateError) as caught:
        decode(body, SHAPES, INT8_TOP)
    assert caught.value.code == f"update-{code}"


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_a_damaged_body_is_refused_or_has_the_right_shapes(data: st.DataObject) -> None:
    body = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    code = ""
    try:
        found = shapes_of(decode(bytes(body), SHAPES, INT8_TOP))
    except UpdateError as error:
        code, found = error.code, {}
    assert found == SHAPES or code.startswith("update-")


@pytest.mark.parametrize("options", [FLOAT16, INT8], ids=lambda options: options.encoding)
def test_a_forged_scale_gives_values_that_the_check_after_it_refuses(
    options: MessageOptions,
) -> None:
    forged = parts(options)
    forged["#scales"] = np.full(3, np.finfo(np.float32).max)
    got = decode(save(forged), SHAPES, options)
    assert not np.isfinite(norm(got)) or norm(got) > 1e38
