"""Programs that are not Python's and that some tests need."""

from __future__ import annotations

import importlib.resources
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


def named(variable: str, what: str) -> str:
    """Return the program that an environment variable names; skip the test where it names none.

    Fails where CI should have set it.
    """
    found = os.environ.get(variable)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{variable} is not set, and .ci/run should have set it")
    if found is None:
        pytest.skip(f"{variable} names no Python with {what}")
    return found


def packaged(package: str, name: str) -> str:
    """Return the path of a program in a Python package's ``bin``; skip the test without it.

    Fails where CI installs it.
    """
    try:
        found = importlib.resources.files(package) / "bin" / name
    except ModuleNotFoundError:
        if os.environ.get("CI"):
            pytest.fail(f"{package} is not installed, and gliofed[dev] should have installed it")
        pytest.skip(f"{package} is not installed")
    return str(found)
