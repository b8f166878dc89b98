"""Programs that are not Python's and that some tests need."""

from __future__ import annotations

import os
import shutil

import pytest


def needed(name: str) -> str:
    """Return the path of a program; skip the test without it, but fail where CI installs it."""
    found = shutil.which(name)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{name} is not installed, and .ci/run should have installed it")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found
