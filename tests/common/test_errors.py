import re

import pytest

from common import errors
from common.errors import GliofedError, StateError

TREE = GliofedError.__subclasses__()


def test_exit_codes_are_unique_and_not_those_of_the_shell() -> None:
    codes = [kind.exit_code for kind in TREE]
    assert sorted(codes) == list(range(10, 10 + len(TREE)))


def test_default_codes_are_unique_and_may_travel() -> None:
    codes = [kind.default_code for kind in TREE]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z0-9-]+", code) for code in codes)


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) +(\d+)", errors.__doc__ or ""))
    assert drawn == {kind.__name__: str(kind.exit_code) for kind in TREE}


@pytest.mark.parametrize(
    ("do", "code", "text", "said"),
    [("", "", "It broke.", "state"), ("Mend it.", "disk-full", "It broke. Mend it.", "disk-full")],
)
def test_an_error_says_what_happened_and_what_to_do(
    do: str, code: str, text: str, said: str
) -> None:
    error = StateError("It broke.", do=do, code=code)
    assert (str(error), error.code, error.message) == (text, said, "It broke.")
