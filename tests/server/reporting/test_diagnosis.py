"""`gliofed-server doctor`: each fault of a coordinator is provoked, and said."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from client.runtime.order_handler import Participation
from common.doctor.findings import Finding
from common.process.loopback_tls import free_port
from common.records.atomic_files import held
from server.commands import coordinator
from server.consortium import provisioning
from server.consortium.provisioning import Consortium
from server.reporting import diagnosis
from tests import consortia, doors, faulty_doors
from tests.certificates import expired
from tests.client.conftest import Run, command  # noqa: F401


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory: pytest.TempPathFactory, cohorts: tuple[Path, ...]) -> Path:
    root = tmp_path_factory.mktemp("served")
    port = free_port()
    consortium = provisioning.init(root / "c", name="Northern", host="127.0.0.1", port=port)
    site = consortia.enrol(consortium, root / "north", name="north", data=cohorts[0])
    protocol = consortia.publish(consortium, consortia.tiny_protocol(rounds=1))
    consortia.approve(site, consortium, protocol)
    consortia.rounds(consortium, protocol.study, {"north": Participation(site)}).run()
    return consortium.folder


@pytest.fixture
def copy(finished_study: Path, tmp_path: Path) -> Consortium:
    import shutil

    return Consortium.open(Path(shutil.copytree(finished_study, tmp_path / "copy")))


def served(consortium: Consortium, *, without: str = "") -> ExitStack:
    stack = ExitStack()
    stack.enter_context(held(consortium.lock, what="it is served"))
    superlink = doors.hub(consortium)
    if without != "executor":
        consortium.hub.reached()
    if without != "SuperLink":
        stack.enter_context(superlink)
    if without != "gateway":
        port = consortium.settings.port
        stack.enter_context(faulty_doors.tls(consortium.folder, port=port))
    return stack


def problems(found: list[Finding]) -> list[Finding]:
    return [one for one in found if one.level == "problem"]


def test_a_consortium_that_is_served_is_well(copy: Consortium, command: Run) -> None:  # noqa: F811
    with served(copy):
        told = command(coordinator.main, "doctor", copy.folder, "--json")
    assert problems([Finding(**one) for one in told.json["findings"]]) == []
    assert told.code == 0
    words = " ".join(one["what"] for one in told.json["findings"])
    assert "The gateway answers" in words
    assert "The SuperLink answers" in words
    assert "signed: 1." in words
    assert "the weights after round 1 are those of the journal" in words


def _other_weights(one: Consortium) -> None:
    (checkpoint,) = one.folder.glob("studies/*/rounds/0001.safetensors")
    checkpoint.write_bytes((checkpoint.parent / "0000.safetensors").read_bytes())


def _changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _foreign_certificate(one: Consortium) -> None:
    other = provisioning.init(one.folder.with_name("x"), name="X", host="127.0.0.1", port=1)
    (one.folder / "ca.crt").write_bytes((other.folder / "ca.crt").read_bytes())


FAULTS: dict[str, tuple[Callable[[Consortium], object], str, str]] = {
    "an expired certificate": (
        lambda c: (c.folder / "server.crt").write_bytes(expired(c.folder)),
        "tls",
        "expired on",
    ),
    "another authority": (_foreign_certificate, "tls", "none of the authorities"),
    "weights that were changed": (_other_weights, "studies", "is not the one that the journal"),
    "a changed journal": (
        lambda c: _changed(c.folder / "journal.jsonl", "round closed", "round failed"),
        "journal",
        "is damaged or was changed",
    ),
    "a request that was changed": (
        lambda c: _changed(c.folder / "sites/north.json", '"version": "0', '"version": "9'),
        "sites",
        "",
    ),
    "an open key": (lambda c: (c.folder / "keys/ca.key").chmod(0o644), "keys", "mode 644"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_problem_beside_the_rest(copy: Consortium, fault: str) -> None:
    provoke, about, words = FAULTS[fault]
    provoke(copy)
    with served(copy):
        found = diagnosis.diagnose(copy, patience_s=1.0)
    assert any(one.about == about and words in one.what for one in problems(found))
    assert len(found) > 10


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("gateway", "The gateway does not answer"),
        ("SuperLink", "The SuperLink does not answer"),
        ("executor", "The executor has not reached the SuperLink yet"),
    ],
)
def test_a_part_that_does_not_answer_is_named(copy: Consortium, absent: str, words: str) -> None:
    log = copy.folder / "flower" / "log" / f"{absent.lower()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("ERROR: The last straw.\n")
    with served(copy, without=absent):
        found = diagnosis.diagnose(copy, patience_s=1.0)
    told = next(one.what for one in problems(found))
    assert told.startswith(words)
    assert told.endswith("The log ends: The last straw.")


def test_a_proxy_is_nothing_to_a_coordinator(copy: Consortium, proxied: None) -> None:
    with served(copy):
        found = diagnosis.diagnose(copy, patience_s=1.0)
    assert problems(found) == []
    (about,) = [one for one in found if one.about == "environment"]
    assert about.level == "ok"
    assert "HTTPS_PROXY" in about.what


def test_a_public_port_that_leads_nowhere_is_told_where_it_must_lead(tmp_path: Path) -> None:
    inside = free_port()
    with faulty_doors.closed() as outside:
        one = provisioning.init(
            tmp_path / "c", name="N", host="127.0.0.1", port=outside, listen=f"{inside}"
        )
        with served(one, without="gateway"), faulty_doors.tls(one.folder, port=inside):
            found = diagnosis.diagnose(one, patience_s=1.0)
    assert problems(found) == []
    (about,) = [one for one in found if one.about == "port"]
    assert f"Port {outside} of 127.0.0.1 must be forwarded to 127.0.0.1:{inside}" in about.do
    assert "gliofed-server serve" not in about.do


def test_nothing_serves_and_nobody_is_admitted(consortium: Consortium) -> None:
    found = diagnosis.diagnose(consortium)
    assert any("Nothing serves" in one.what for one in problems(found))
    assert any(one.about == "sites" and one.level == "warning" for one in found)


def test_a_public_name_that_is_unknown_here_alone_is_a_warning(tmp_path: Path) -> None:
    host = "coordinator.invalid"
    one = provisioning.init(tmp_path / "c", name="Northern", host=host, port=free_port())
    with served(one):
        found = diagnosis.diagnose(one, patience_s=1.0)
    assert problems(found) == []
    (about,) = [f for f in found if f.about == "name"]
    assert about.level == "warning"
    assert "gliofed-site doctor" in about.do


def test_sites_are_named_that_wait_or_are_too_old(copy: Consortium) -> None:
    from server.consortium import key_rotation

    copy.journal.append("site version", site="north", version="0.9.0")
    key_rotation.renew_kits(copy)
    copy.sites.suspend("north", by="Dr. Tamm", why="moves house")
    found = {f.what: f.level for f in diagnosis.diagnose(copy) if f.about == "sites"}
    assert any("north is suspended: moves house" in what for what in found)
    assert any("north: The site runs gliofed 0.9.0" in what for what in found)
    copy.sites.restore("north", by="Dr. Tamm")
    assert any("newest kit has not reached north" in f.what for f in diagnosis.diagnose(copy))
