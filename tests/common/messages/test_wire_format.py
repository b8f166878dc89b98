import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.cli.build import build_fab_from_files
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common import errors
from common.errors import ConsentError, GliofedError, UpdateError
from common.messages.compression import encode
from common.messages.wire_format import (
    MESSAGE_TYPES,
    Order,
    OrderKind,
    PrivacySpent,
    Report,
    body_bytes,
    bundle_sources,
    case_count_bucket,
    check_bundle,
    pack,
    refusal,
    unpack_order,
    unpack_report,
)
from common.records.weights import Arrays
from common.study.protocol import MessageOptions
from tests.cargo import arrays_of, with_arrays, with_body

SHAPES: dict[str, tuple[int, ...]] = {"a": (2, 3), "b": (4,), "c": ()}
ORDER = Order(kind="train", study="demo", round=3, protocol="{}", weights_sha256="0" * 64)
SPENT = PrivacySpent(noise_multiplier=1, sampling_rate=0.1, steps=5, delta=1e-3, epsilon=2)
REPORT = Report(
    kind="train",
    study="demo",
    round=3,
    status="done",
    dice={"WT": 0.5, "ET": 0.0},
    case_count="20-49",
    privacy_spent=SPENT,
)


def arrays(value: float = 0.5) -> Arrays:
    return {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}


def reply(text: str | None = None, **changes: Any) -> RecordDict:
    """Return a reply with the arrays of ``changes`` in place of the good ones."""
    content = pack(REPORT, arrays())
    if text is not None:
        content["gliofed"] = ConfigRecord({"json": text})
    if changes:
        named = {**arrays_of(content), **changes}
        kept = {name: value for name, value in named.items() if value is not None}
        content = with_arrays(content, kept)
    return content


def read(content: RecordDict, **options: Any) -> tuple[Report, Arrays]:
    return unpack_report(content, **{"template": SHAPES, "max_norm": 10.0, **options})


def test_the_size_of_a_message_is_that_of_its_body() -> None:
    body, _ = encode(arrays(), MessageOptions(encoding="int8"))
    assert body_bytes(pack(REPORT, body)) == len(body)
    assert body_bytes(pack(REPORT, None)) == body_bytes(RecordDict()) == 0
    strange = RecordDict({"arrays": ArrayRecord({"a": Array(np.ones(3)), "b": Array(np.ones(4))})})
    assert body_bytes(strange) >= 56


def test_an_order_survives_the_wire() -> None:
    order, got = unpack_order(pack(ORDER, arrays()))
    assert order == ORDER
    assert {name: array.shape for name, array in got.items()} == SHAPES
    assert all(array.dtype == np.float32 and array.flags.writeable for array in got.values())
    assert unpack_order(pack(ORDER, None)) == (ORDER, {})


def test_an_order_says_which_round_has_the_sites_update() -> None:
    order = ORDER.model_copy(update={"folded_round": 2})
    assert unpack_order(pack(order, None))[0].folded_round == 2
    with pytest.raises(ValidationError):
        Order(kind="train", study="demo", round=3, protocol="{}", folded_round=-1)


def test_a_report_survives_the_wire_and_its_content_is_freed() -> None:
    content = pack(REPORT, arrays())
    report, got = read(content)
    assert report == REPORT
    assert all(np.array_equal(got[name], value) for name, value in arrays().items())
    assert len(content.array_records["arrays"]) == 0


@given(st.lists(st.integers(0, 4), max_size=4), st.booleans())
def test_arrays_of_any_shape_and_order_survive(shape: list[int], fortran: bool) -> None:
    value = np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape)
    value = np.array(value, order="F" if fortran else "C")
    _, got = unpack_order(pack(ORDER, {"a": value}))
    assert got["a"].shape == tuple(shape)
    assert np.array_equal(got["a"], value)


def test_every_order_has_a_message_type_of_its_own() -> None:
    assert set(MESSAGE_TYPES) == set(get_args(OrderKind))
    assert len(set(MESSAGE_TYPES.values())) == len(MESSAGE_TYPES)


FORMS: dict[str, Callable[[], RecordDict]] = {
    "empty": RecordDict,
    "no json": lambda: RecordDict({"gliofed": ConfigRecord({})}),
    "json is bytes": lambda: RecordDict({"gliofed": ConfigRecord({"json": b"{}"})}),
    "another record": lambda: RecordDict({"gliofed": MetricRecord({"json": 1})}),
    "not json": lambda: reply("nonsense"),
    "deep": lambda: reply("[" * 10_000),
    "a list": lambda: reply("[]"),
    "more records": lambda: RecordDict({**pack(REPORT, arrays()), "more": MetricRecord({"n": 1})}),
    "an order": lambda: pack(ORDER, arrays()),
    "arrays are a config": lambda: RecordDict(
        {**pack(REPORT, None), "arrays": ConfigRecord({"a": 1})}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_malformed_replies_are_refused(form: str) -> None:
    with pytest.raises(UpdateError) as caught:
        read(FORMS[form]())
    assert caught.value.code in {"update-form", "update-name"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "spy"),
        ("study", "../x"),
        ("round", -1),
        ("status", "fine"),
        ("code", "Patient 7"),
        ("reason", "x" * 2001),
        ("approval", "x" * 20_001),
        ("dice", {"WT": "NaN"}),
        ("dice", {"WT": 1e30}),
        ("dice", {"WT": -0.1}),
        ("dice", {"patient-7": 0.5}),
        ("case_count", "37"),
        ("case_count", "37 patients"),
        ("patients", ["Jane"]),
        ("privacy_spent", {**SPENT.model_dump(), "patients": 3}),
        ("privacy_spent", {**SPENT.model_dump(), "epsilon": -1}),
    ],
)
def test_fields_beside_the_allow_list_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Report.model_validate({**REPORT.model_dump(), field: value})

    text = json.dumps({**REPORT.model_dump(), field: value})
    with pytest.raises(UpdateError, match=field) as caught:
        read(reply(text))
    assert caught.value.code == "update-form"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_score_is_finite(number: str) -> None:
    text = REPORT.model_dump_json().replace('"WT":0.5', f'"WT":{number}')
    with pytest.raises(UpdateError, match="dice"):
        read(reply(text))


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"b": np.full(4, np.nan, np.float32)}, "update-not-finite"),
    "inf": ({"b": np.full(4, np.inf, np.float32)}, "update-not-finite"),
    "minus inf": ({"b": np.full(4, -np.inf, np.float32)}, "update-not-finite"),
    "1e30": ({"b": np.full(4, 1e30, np.float32)}, "update-norm"),
    "shape": ({"b": np.zeros((2, 2), np.float32)}, "update-shape"),
    "size": ({"b": np.zeros(5, np.float32)}, "update-shape"),
    "oversize": ({"b": np.zeros(10_000, np.float32)}, "update-size"),
    "missing": ({"b": None}, "update-name"),
    "extra": ({"d": np.zeros(4, np.float32)}, "update-name"),
    "renamed": ({"b": None, "B": np.zeros(4, np.float32)}, "update-name"),
    "float64": ({"b": np.zeros(4)}, "update-dtype"),
    "float16": ({"b": np.zeros(4, np.float16)}, "update-dtype"),
    "integers": ({"b": np.zeros(4, np.int32)}, "update-dtype"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused(case: str) -> None:
    changes, code = BAD_ARRAYS[case]
    with pytest.raises(UpdateError) as caught:
        read(reply(**changes))
    assert caught.value.code == code


def header(**fields: Any) -> bytes:
    text = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **fields}})
    return len(text).to_bytes(8, "little") + text.encode()


BAD_BODIES = {
    "no bytes": b"",
    "noise": b"PK\x03\x04 nothing",
    "a pickle": b"\x80\x04N.",
    "truncated": header() + bytes(23),
    "padded": header() + bytes(25),
    "a shape of terabytes": header(shape=[2**40, 2**30]) + bytes(24),
    "offsets out of the body": header(data_offsets=[0, 2**40]) + bytes(24),
    "a negative shape": header(shape=[-2, -3]) + bytes(24),
    "a header of terabytes": (2**40).to_bytes(8, "little") + bytes(24),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_body_that_is_not_sound_is_refused(case: str) -> None:
    with pytest.raises(UpdateError) as caught:
        read(with_body(pack(REPORT, None), BAD_BODIES[case]))
    assert caught.value.code == "update-form"


def test_arrays_in_another_form_are_refused() -> None:
    content = pack(REPORT, None)
    content["arrays"] = ArrayRecord({"a": Array(np.ones((2, 3), np.float32))})
    with pytest.raises(UpdateError) as caught:
        read(content)
    assert caught.value.code == "update-form"


@pytest.mark.parametrize("status", ["pending", "refused", "failed"])
def test_only_a_report_that_is_done_brings_arrays(status: str) -> None:
    report = REPORT.model_copy(update={"status": status})
    assert read(pack(report, None)) == (report, {})
    for any_arrays in (False, True):
        with pytest.raises(UpdateError) as caught:
            read(pack(report, arrays()), any_arrays=any_arrays)
        assert caught.value.code == "update-name"


def test_a_report_without_arrays_is_incomplete_where_they_are_due() -> None:
    with pytest.raises(UpdateError):
        read(pack(REPORT, None))
    with pytest.raises(UpdateError):
        read(pack(REPORT, None), template=None, any_arrays=True)
    assert read(pack(REPORT, None), template=None)[1] == {}
    with pytest.raises(UpdateError):
        read(pack(REPORT, arrays()), template=None)


def test_starting_weights_have_any_names_but_are_finite() -> None:
    _, got = read(pack(REPORT, arrays()), template=None, any_arrays=True)
    assert set(got) == set(SHAPES)
    with pytest.raises(UpdateError):
        read(pack(REPORT, arrays(float("nan"))), template=None, any_arrays=True)


ENCODINGS = [
    MessageOptions(),
    MessageOptions(encoding="float16"),
    MessageOptions(encoding="int8"),
    MessageOptions(encoding="int8", top_share=0.1),
    MessageOptions(encoding="float32", top_share=0.1),
]


@pytest.mark.parametrize("options", ENCODINGS)
def test_an_encoded_update_survives_the_wire(options: MessageOptions) -> None:
    body, _ = encode(arrays(), options)
    report, got = read(pack(REPORT, body), options=options)
    assert report == REPORT
    assert {name: array.shape for name, array in got.items()} == SHAPES
    assert all(array.dtype == np.float32 and array.flags.writeable for array in got.values())
    assert all(np.allclose(got[name], value, rtol=0.01) for name, value in arrays().items())


@pytest.mark.parametrize("options", ENCODINGS[1:3])
def test_an_update_is_in_the_encoding_of_the_protocol(options: MessageOptions) -> None:
    for sent, told in ((arrays(), options), (encode(arrays(), options)[0], None)):
        with pytest.raises(UpdateError):
            read(pack(REPORT, sent), options=told)


def test_a_float32_update_is_too_large_for_an_int8_study() -> None:
    content = pack(REPORT, {"a": np.zeros((100, 100), np.float32)})
    with pytest.raises(UpdateError) as caught:
        read(content, template={"a": (100, 100)}, options=MessageOptions(encoding="int8"))
    assert caught.value.code == "update-size"


def test_the_norm_is_that_of_the_decoded_update() -> None:
    options = MessageOptions(encoding="int8")
    forged = arrays_of(pack(REPORT, encode(arrays(), options)[0]))
    forged["#scales"] = np.full(3, 1.0, np.float32)
    with pytest.raises(UpdateError) as caught:
        read(with_arrays(pack(REPORT, None), forged), options=options)
    assert caught.value.code == "update-norm"


def test_weights_are_never_encoded() -> None:
    options = MessageOptions(encoding="int8")
    starting: dict[str, Any] = {"template": None, "any_arrays": True, "options": options}
    assert read(pack(REPORT, arrays()), **starting)[1].keys() == SHAPES.keys()
    with pytest.raises(UpdateError):
        read(pack(REPORT, encode(arrays(), options)[0]), **starting)
    with pytest.raises(UpdateError):
        unpack_order(pack(ORDER, encode(arrays(), options)[0]))


def test_the_body_is_freed_before_the_arrays_take_its_place() -> None:
    shapes = {f"a{number:02d}": (25_000,) for number in range(40)}
    options = MessageOptions(encoding="int8")
    tracemalloc.start()
    try:
        update = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        content = pack(REPORT, encode(update, options)[0])
        del update
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        read(content, template=shapes, options=options, max_norm=1e9)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert before > 1_000_000
    assert peak < 4_000_000 + 6 * 100_000  # the result and what checks one array


def test_an_order_with_numbers_that_are_not_finite_is_refused() -> None:
    with pytest.raises(UpdateError, match="not finite"):
        unpack_order(pack(ORDER, arrays(float("inf"))))


@pytest.mark.parametrize("kind", GliofedError.__subclasses__())
def test_a_reason_in_words_leaves_only_for_failures_without_patients(
    kind: type[GliofedError],
) -> None:
    sayable = {"ConsentError", "ProtocolError", "PrivacyError", "IdentityError"}
    report = refusal(ORDER, kind("Patient Jane Doe.", code="some-code"))
    assert (report.kind, report.study, report.round) == ("train", "demo", 3)
    assert report.code == "some-code"
    if kind.__name__ in sayable:
        assert (report.status, report.reason) == ("refused", "Patient Jane Doe.")
    else:
        assert (report.status, report.reason) == ("failed", "")


def test_a_long_reason_is_cut() -> None:
    assert len(refusal(ORDER, errors.ConsentError("x" * 5000)).reason) == 2000


@pytest.mark.parametrize(
    ("count", "bucket"),
    [
        (0, "0"),
        (1, "1-9"),
        (9, "1-9"),
        (10, "10-19"),
        (49, "20-49"),
        (999, "500-999"),
        (1000, "1000+"),
        (99_999, "1000+"),
    ],
)
def test_case_counts_leave_in_buckets(count: int, bucket: str) -> None:
    assert case_count_bucket(count) == bucket
    Report.model_validate({**REPORT.model_dump(), "case_count": bucket})


def bundle(**changes: bytes | None) -> bytes:
    fab, _ = build_fab_from_files(bundle_sources())
    with zipfile.ZipFile(io.BytesIO(fab)) as archive:
        files: dict[str, bytes | None] = {n: archive.read(n) for n in archive.namelist()}
    files.update({name.replace("_py", ".py"): data for name, data in changes.items()})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            if data is not None:
                archive.writestr(name, data)
    return file.getvalue()


def test_our_own_bundle_holds_no_code_and_passes() -> None:
    fab, _ = build_fab_from_files(bundle_sources())
    check_bundle(fab)
    check_bundle(bundle())
    with zipfile.ZipFile(io.BytesIO(fab)) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".py")]


def test_a_bundle_of_another_release_passes() -> None:
    project = bundle_sources()["pyproject.toml"]
    line = next(line for line in project.splitlines() if line.startswith(b"version"))
    other = bundle(**{"pyproject.toml": project.replace(line, b'version = "99.0"')})
    assert check_bundle(other) == "99.0"


def twice() -> bytes:
    fab, _ = build_fab_from_files(bundle_sources())
    file = io.BytesIO(fab)
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(file, "a") as archive,
    ):
        archive.writestr("README.md", b"other")
    return file.getvalue()


PROJECT = bundle_sources()["pyproject.toml"]
BUNDLES: dict[str, Callable[[], bytes]] = {
    "code": lambda: bundle(client_py=b"import os"),
    "a hidden file": lambda: bundle(**{".env": b""}),
    "changed settings": lambda: bundle(
        **{"pyproject.toml": PROJECT.replace(b"client.app:app", b"evil:app")}
    ),
    "more settings": lambda: bundle(**{"pyproject.toml": PROJECT + b'more = "x"\n'}),
    "no project": lambda: bundle(**{"pyproject.toml": b"[tool]\n"}),
    "a project that is no table": lambda: bundle(**{"pyproject.toml": b"project = 1\n"}),
    "no TOML": lambda: bundle(**{"pyproject.toml": b"="}),
    "no text": lambda: bundle(**{"pyproject.toml": b"\xff"}),
    "changed words": lambda: bundle(**{"README.md": b"Run me"}),
    "without settings": lambda: bundle(**{"pyproject.toml": None}),
    "without words": lambda: bundle(**{"README.md": None}),
    "duplicate names": twice,
    "not a zip": lambda: b"nonsense",
    "nothing": lambda: b"",
    "a bomb": lambda: bundle(**{"README.md": b"0" * 100_000}),
    "an unknown compression": lambda: bundle().replace(
        b"\x14\x00\x00\x00\x00\x00", b"\x14\x00\x00\x00\x63\x00"
    ),
    "cut short": lambda: bundle()[:-30],
    "damaged": lambda: bundle().replace(b"This bundle holds", b"That bundle holds", 1),
}


@pytest.mark.parametrize("case", BUNDLES)
def test_other_bundles_are_refused(case: str) -> None:
    with pytest.raises(ConsentError) as caught:
        check_bundle(BUNDLES[case]())
    assert caught.value.code == "bundle"
