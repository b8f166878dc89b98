"""The schema of result.json is the one in the tree, and an earlier result is read or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from client.clinic import result_schema
from client.clinic.result_schema import Result, read_prior, schema
from common.errors import StateError
from tests.client.clinic.test_report import example

NEW = ("case", "study_date", "made", "findings", "change", "federation")


def test_the_schema_in_the_tree_is_that_of_the_code() -> None:
    path = Path(result_schema.__file__).with_name("result.schema.json")
    assert json.loads(path.read_text(encoding="utf-8")) == schema(), (
        "write client.clinic.result_schema.schema() to result.schema.json, and raise "
        "RESULT_VERSION if a field changed its meaning"
    )
    assert schema()["properties"]["result_version"]["const"] == result_schema.RESULT_VERSION


def test_a_result_passes_whole() -> None:
    value = json.loads(json.dumps(example()))
    assert Result.model_validate(value).model_dump(mode="json") == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("result_version", 2),
        ("volumes_ml", {"ET": -1.0}),
        ("confidence", {"ET": 1.5}),
        ("grid_of", "dwi"),
        ("volumes_ml", {"ET": float("nan")}),
        ("prepared_sha256", None),
    ],
)
def test_a_wrong_field_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Result.model_validate(example(**{field: value}))


def write(folder: Path, value: Any) -> Path:
    folder.mkdir()
    (folder / "result.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_a_prior_is_read(tmp_path: Path) -> None:
    value = example()
    found = read_prior(write(tmp_path / "first", value))
    assert (found.folder, found.case, found.date) == ("first", "case-07", "2026-04-02")
    assert found.volumes_ml == value["volumes_ml"]
    assert (found.of, found.lesions) == ("ET", 2)
    undated = read_prior(write(tmp_path / "second", example(study_date=None)))
    assert undated.date == "2026-04-03"


def test_a_prior_from_before_findings_is_read(tmp_path: Path) -> None:
    old = {key: value for key, value in example().items() if key not in NEW}
    found = read_prior(write(tmp_path / "old", old))
    assert (found.date, found.lesions, found.sum_of_products_mm2) == ("", None, None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "holds no result.json"),
        ("{", "is damaged"),
        ("[]", "is not a result that this gliofed knows"),
        (example(result_version=9), "result_version"),
    ],
)
def test_what_is_no_prior_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    folder = tmp_path / "prior"
    if content is not None:
        write(folder, content)
    with pytest.raises(StateError, match=words) as caught:
        read_prior(folder)
    assert "--prior" in caught.value.do
