"""The guides are true: their blocks are run in order, by nobody who knows more than they say."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from common.records.journal import Journal
from tests.guides import GUIDES, ROOT, blocks, commands, story

HERE = Path(sys.executable).parent
DOCUMENTS = (
    *GUIDES,
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "tests/benchmarks/README.md",
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "deploy" / "governance").glob("*.md")),
)


def test_every_block_is_run_or_says_that_it_is_not() -> None:
    """Only the deployment guide holds commands for programs that no test machine has."""
    for block in blocks():
        assert block.info[:1] in {("sh",), ("console",)}, str(block)
        assert block.info[0] != "console" or block.guide == "deploy/README.md", str(block)
        assert block.info[0] != "sh" or block.info[1].isdigit(), str(block)
    numbers = [block.order for block in commands()]
    assert len(set(numbers)) == len(numbers), "two blocks would have no order"


@pytest.mark.parametrize("guide", GUIDES)
def test_no_command_hides_in_an_indented_block(guide: str) -> None:
    text = (ROOT / guide).read_text()
    assert re.findall(r"^(?: {4}|\t).*gliofed-\w+ \w+ \S.*", text, re.MULTILINE) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        aim = ((ROOT / document).parent / path).resolve() if path else ROOT / document
        assert aim.exists(), target
        if anchor:
            heads = re.findall(
                r"^#+ (.+)$", (aim / "README.md" if aim.is_dir() else aim).read_text(), re.M
            )
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, target


def test_every_test_that_a_document_names_is_there() -> None:
    """A threat's row is worth what its test is."""
    there = [
        f"/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "tests").rglob("test_*.py")
    ]
    named = [
        (document, name)
        for document in DOCUMENTS
        for name in re.findall(r"[\w/]*test_\w+\.py", (ROOT / document).read_text())
    ]
    assert len({name for _, name in named}) > 20, "the threat table was not found"
    assert not [one for one in named if not any(path.endswith("/" + one[1]) for path in there)]


def test_joining_and_publishing_as_the_guides_say(tmp_path: Path) -> None:
    """Everything up to the running processes, with one hospital."""
    first = [b for b in commands() if b.order < 50 and "install" not in b.info]
    assert {b.guide for b in first} == {"server/README.md", "client/README.md"}
    with story(tmp_path, HERE) as reader:
        reader.tell(first, hospitals=("north",))
    assert (tmp_path / "look-north" / "quality.html").exists()
    assert (tmp_path / "consortium" / "studies" / "pilot" / "protocol.json").exists()


def test_a_block_that_is_wrong_stops_the_story(tmp_path: Path) -> None:
    join = next(b for b in commands() if "gliofed-site join" in b.text)
    with story(tmp_path, HERE) as reader, pytest.raises(RuntimeError, match="not a site's folder"):
        reader.tell([join], hospitals=("north",))


@pytest.mark.slow
def test_the_guides_alone_found_a_consortium_and_run_a_study(tmp_path: Path) -> None:
    with story(tmp_path, HERE) as reader:
        reader.tell([b for b in commands() if "install" not in b.info])
    told(tmp_path)


def told(folder: Path) -> None:
    """Check what the story left: a study that ended, a model, a segmentation."""
    journal = Journal(folder / "consortium" / "journal.jsonl")
    assert len(journal.events("round closed", study="pilot")) == 2
    assert journal.events("study finished", study="pilot")
    for hospital in ("north", "south"):
        result = json.loads((folder / f"result-{hospital}" / "result.json").read_text())
        assert result["model"]["name"]
        assert (folder / f"result-{hospital}" / "report.pdf").exists()
