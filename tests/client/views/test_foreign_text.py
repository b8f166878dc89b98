"""What the coordinator, a scan or a folder's name says reaches no terminal and no page as it is."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from client.cohort.case_discovery import read_cohort
from client.commands.site import main
from client.imaging.dicom.file_scan import scan
from client.runtime.order_handler import Participation
from client.site.folder import Site
from common.errors import CaseError
from common.foreign_text import MARK, on_page
from server.consortium.provisioning import Consortium
from tests.client.conftest import Run
from tests.consortia import STUDY, answer, order, tiny_protocol
from tests.scanners import write_series

EVIL = (
    "Harmless\x1b[1A\x1b[2K\x1b]0;owned\x07\r\nprivacy: epsilon 0.10\u202e\u200b"
    "\x9b2J\u2028<script>alert(1)</script>"
)


def obeyed(text: str) -> set[str]:
    """Return what of ``text`` a terminal or a page would obey, newlines of our own aside."""
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return {one for one in text if one != "\n" and unicodedata.category(one) in kinds}


@pytest.fixture
def offered(site: Site, consortium: Consortium) -> Site:
    protocol = tiny_protocol(title=EVIL)
    answer(Participation(site), order(consortium.identity, protocol, "offer"))
    return site


@pytest.mark.parametrize("arguments", [["studies"], ["plan"]])
def test_a_title_moves_no_terminal_where_people_decide(
    offered: Site, command: Run, arguments: list[str]
) -> None:
    more = [STUDY] if arguments == ["plan"] else []
    said = command(main, arguments[0], offered.folder, *more)
    assert said.code == 0
    assert obeyed(said.out + said.err) == set()
    assert not any(line.startswith("privacy: epsilon 0.10") for line in said.out.splitlines())
    listed = command(main, arguments[0], offered.folder, *more, "--json")
    assert obeyed(json.dumps(listed.json, ensure_ascii=False)) == set()
    if arguments == ["studies"]:
        assert listed.json[0]["title"].startswith(f"Harmless{MARK}[1A")


def test_an_amendment_says_what_changed_in_one_line(
    offered: Site, consortium: Consortium, command: Run
) -> None:
    protocol = tiny_protocol(title=EVIL)
    after = tiny_protocol(title=EVIL + "\nno change at all\x1b[2K", supersedes=[protocol.digest])
    answer(Participation(offered), order(consortium.identity, after, "offer"))
    said = command(main, "studies", offered.folder)
    assert "title was Harmless" in said.out
    assert obeyed(said.out) == set()
    assert not any(line.startswith("no change") for line in said.out.splitlines())


def test_what_a_series_calls_itself_is_made_fit_where_it_is_read(tmp_path: Path) -> None:
    write_series(
        tmp_path, 1, "T1 \x1b[2Kpost\u202e", ProtocolName="a\x07b", ContrastBolusAgent="Gd\x9b"
    )
    facts = scan(sorted(tmp_path.iterdir())).instances[0].facts
    assert (facts.description, facts.protocol) == (f"T1 {MARK}[2Kpost{MARK}", f"a{MARK}b")
    assert obeyed(facts.contrast) == set()


def test_the_name_of_a_folder_moves_no_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "case\x1b[2K\r\nAll cases are usable."
    folder.mkdir()
    (folder / "scan\x1b[1A.nii.gz").write_bytes(b"?")
    with pytest.raises(CaseError) as caught:
        read_cohort(tmp_path)
    reason = caught.value.message.split("refused).")[1]
    assert obeyed(reason) == set()
    assert "\nAll cases" not in reason


def test_a_page_shows_text_and_leaves_what_is_html() -> None:
    class Html(str):
        def __html__(self) -> str:
            return self

    assert on_page(f"{EVIL}\nend").endswith("\nend")
    assert obeyed(on_page(EVIL)) == set()
    assert on_page(Html("<b>\u200b</b>")) == "<b>\u200b</b>"
    assert on_page(3) == 3
