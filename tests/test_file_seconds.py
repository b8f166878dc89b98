"""Which files ``make test-fast`` runs, and in which order ``make test`` does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import file_seconds

ROOT = Path(__file__).parents[1]
X, Y, Z = "tests/client/test_x.py", "tests/client/test_y.py", "tests/server/a/test_z.py"
RUN = "tests/deployment/test_run.py"
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))


class Item:
    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid


def test_the_fast_tests_are_of_every_package_and_within_their_time() -> None:
    seconds = file_seconds.known()
    chosen = file_seconds.fast(FILES, seconds)
    packages = {
        str(path.parent) for path in map(Path, FILES) if path.parts[1] in file_seconds.PRODUCT
    }
    assert packages <= {str(Path(file).parent) for file in chosen}
    cost = sum(seconds.get(file, file_seconds.UNKNOWN_S) for file in chosen)
    assert cost <= 1.5 * file_seconds.FAST_S, "the cheapest file of each folder is dear by now"
    assert len(chosen) > len(FILES) / 4


def test_no_figure_is_of_a_file_that_is_gone() -> None:
    assert set(file_seconds.known()) <= set(FILES)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({X: 1.0, Y: 2.0, Z: 500.0, RUN: 1.0}, {X, Z}),
        ({X: 1.0, Y: 2.0, Z: 3.0, RUN: 500.0}, {X, Y, Z}),
        ({X: 1.0, Z: 25.0, RUN: 5.0}, {X, Z, RUN}),
    ],
)
def test_each_package_has_its_cheapest_file_and_the_rest_what_fits(
    seconds: dict[str, float], expected: set[str]
) -> None:
    assert file_seconds.fast([Y, Z, X, RUN], seconds) == expected


def test_the_dearest_file_comes_first_and_its_tests_stay_in_order() -> None:
    names = ["a::1", "b::2", "b::1", "c::1", "a::2"]
    items: list[pytest.Item] = [Item(name) for name in names]  # type: ignore[misc]
    ordered = file_seconds.dearest_first(items, {"a": 1.0, "b": 99.0})
    assert [item.nodeid for item in ordered] == ["b::2", "b::1", "c::1", "a::1", "a::2"]
