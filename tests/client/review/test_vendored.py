"""The viewer is the file that its makers published, with its licence beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import client.review

STATIC = Path(client.review.__file__).with_name("static")


def test_niivue_is_unchanged() -> None:
    digest = hashlib.sha256((STATIC / "niivue.umd.js").read_bytes()).hexdigest()
    assert digest == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    assert "BSD 2-Clause" in (STATIC / "niivue.LICENSE.txt").read_text(encoding="utf-8")
