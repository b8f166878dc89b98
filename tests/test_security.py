"""The table of attacks in SECURITY.md names tests that exist and that nothing skips."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[1]
LEAST: Final = 60


class Row(NamedTuple):
    who: str
    attempt: str
    happens: str
    tests: tuple[str, ...]


def rows() -> list[Row]:
    """Return the rows of the table below "What was tried"."""
    section = (ROOT / "SECURITY.md").read_text().partition("## What was tried")[2]
    found = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if len(cells) == 4 and "::" in cells[3]:
            found.append(
                Row(cells[0], cells[1], cells[2], tuple(re.findall(r"`([^`]+)`", cells[3])))
            )
    return found


def skipped(path: Path, name: str) -> str | None:
    """Return by what a test is skipped, an empty text if by nothing, None if there is no such."""
    tree = ast.parse(path.read_text())
    marks = [
        ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            marks += map(ast.unparse, node.decorator_list)
            return next((mark for mark in marks if "skip" in mark or "xfail" in mark), "")
    return None


def test_there_are_enough_rows_and_none_is_empty() -> None:
    found = rows()
    assert len(found) >= LEAST
    assert all(row.who and row.attempt and row.happens and row.tests for row in found)
    assert len({(row.who, row.attempt) for row in found}) == len(found)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.attempt[:60])
def test_each_row_has_a_test_that_runs(row: Row) -> None:
    for test in row.tests:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file(), f"there is no file {path}"
        assert skipped(ROOT / path, name) == "", f"{test} is missing or skipped"
