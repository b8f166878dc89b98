"""Text that somebody else wrote, made fit for a terminal, a file and a page.

A hospital's reason, a study's title, a person's name in a signed decision, a version: whoever wrote
them may have put in what moves a terminal's cursor, sets its title, turns the direction of writing
round or begins a line that looks like one of ours. All such characters are taken out here, and
nowhere else. What is taken out leaves a mark, so that a reader sees that something was there.

Out of scope: the escapes of a markup language, which whoever writes that language adds.
"""

from __future__ import annotations

import unicodedata
from typing import Any, Final

MARK: Final = "\N{REPLACEMENT CHARACTER}"
"""Stands where a character was taken out."""

_OUT: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of controls, of invisible format marks (also those that turn the direction
of writing), of halves of characters, and of separators of lines and paragraphs."""

_BLANK: Final = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029")
"""Of these, what stands between words."""


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return ``text`` as one line without anything that a terminal or a page would obey.

    With ``lines`` newlines stay: for text of ours in which foreign text was made one line before.

    >>> printable("fine\x1b[1A\r\nepsilon 0.1")
    'fine�[1A  epsilon 0.1'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if lines and one == "\n" else _fit(one) for one in text)


def printable_values(value: Any) -> Any:
    """Return a JSON value whose texts, keys too, went through ``printable``."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_values(key): printable_values(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [printable_values(one) for one in value]
    return value


def on_page(value: Any) -> Any:
    """Return what a page shows of a value: for jinja2's ``finalize``, which escapes it afterwards.

    What says of itself that it is HTML is ours.
    """
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return printable(value, lines=True)
    return value


def _fit(letter: str) -> str:
    if letter in _BLANK:
        return " "
    return MARK if unicodedata.category(letter) in _OUT else letter
