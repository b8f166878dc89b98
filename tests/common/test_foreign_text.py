"""Nothing that a terminal or a page would obey is left of what somebody else wrote."""

from __future__ import annotations

import unicodedata

import pytest

from common.foreign_text import MARK, printable, printable_values


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("Klinikum Süd, Ärztin Œ", "Klinikum Süd, Ärztin Œ"),
        ("脳腫瘍 📊", "脳腫瘍 📊"),
        ("\x1b[2J\x1b[1A\x1b[2K", f"{MARK}[2J{MARK}[1A{MARK}[2K"),
        ("\x1b]0;title\x07", f"{MARK}]0;title{MARK}"),
        ("\x9b1A", f"{MARK}1A"),
        ("one\r\ntwo\tthree", "one  two three"),
        ("a\u2028b\u2029c\x85d", "a b c d"),
        ("\u202egnp.exe\u202c", f"{MARK}gnp.exe{MARK}"),
        ("zero\u200bwidth\ufeff", f"zero{MARK}width{MARK}"),
        ("half \ud800", f"half {MARK}"),
        ("nul\x00del\x7f", f"nul{MARK}del{MARK}"),
        ("", ""),
    ],
)
def test_what_stays_of_foreign_text(given: str, left: str) -> None:
    assert printable(given) == left
    printable(given).encode()  # no half of a character is left


def test_nothing_that_is_obeyed_is_left_of_any_character() -> None:
    every = "".join(map(chr, range(0x110000)))
    left = set(printable(every))
    assert not {one for one in left if unicodedata.category(one) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}


def test_newlines_stay_in_text_of_ours_alone() -> None:
    assert printable("one\ntwo\r\x1b", lines=True) == f"one\ntwo {MARK}"
    assert printable("one\ntwo") == "one two"


def test_texts_in_values_are_made_fit_keys_too() -> None:
    value = {"a\x1b": ["b\n", ("c\x07", 1, None, True)], "d": {"e": 0.5}}
    assert printable_values(value) == {
        f"a{MARK}": ["b ", [f"c{MARK}", 1, None, True]],
        "d": {"e": 0.5},
    }
