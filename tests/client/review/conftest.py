"""A result on the disk, and the review page over it, asked without a browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from client.review.pages import application
from client.review.session import Desk
from common.web.auth import Door, issue
from tests.reviews import write_result

Visit = Callable[[Desk], TestClient]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case and its result: folders to read, never to change."""
    root = tmp_path_factory.mktemp("written")
    write_result(root)
    return root


@pytest.fixture
def result(written: Path, tmp_path: Path) -> Path:
    """A result that the test may change, and its case beside it."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "result" / "result.json"
    path.write_text(path.read_text().replace(str(written), str(tmp_path)))
    return tmp_path / "result"


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    """Return what opens the page of a desk as a browser does, logged in."""

    def opened(desk: Desk) -> TestClient:
        tokens = tmp_path / "tokens"
        door = Door(tokens, title="Test", cookie="review", pictures=True)
        client = TestClient(application(desk, door), base_url="http://127.0.0.1")
        client.post("/login", data={"token": issue(tokens)})
        page = client.get("/").text
        client.headers["x-csrf"] = page.split('name="csrf" content="')[1].split('"')[0]
        return client

    return opened
