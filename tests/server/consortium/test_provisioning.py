from __future__ import annotations

import datetime as dt
import json
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from common.errors import IdentityError, ProtocolError, StateError
from common.records.weights import digest, save
from common.study.protocol import PROTOCOL, NetworkOptions, preprocessing_digest
from common.trust.enrolment import open_kit
from common.trust.identity import Identity, Statement
from server.consortium import key_rotation, provisioning
from server.consortium.provisioning import Consortium
from server.simulation.study_simulation import starting_weights


def test_a_founded_consortium_opens_again(world: Any) -> None:
    consortium = Consortium.open(world.consortium.folder)
    assert consortium.settings == world.consortium.settings
    assert consortium.address == "localhost:9443"
    assert str(consortium.listening) == "127.0.0.1:9443"
    assert consortium.studies() == []
    (founded,) = world.events("consortium founded")
    assert founded["key"] == consortium.identity.public


def test_founding_twice_is_refused_and_changes_nothing(world: Any) -> None:
    folder = world.consortium.folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(StateError, match="not empty"):
        provisioning.init(folder, name="Other", host="localhost", port=1)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_keys_are_for_their_owner_only(world: Any) -> None:
    folder = world.consortium.folder
    assert folder.stat().st_mode & 0o777 == 0o700
    keys = sorted((folder / "keys").iterdir())
    assert [path.name for path in keys] == [
        "ca.key",
        "coordinator.key",
        "server.key",
        "superexec.secret",
    ]
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    assert world.consortium.superexec_secret.stat().st_size == 64


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"name": ""}, "name"),
        ({"host": ""}, "host"),
        ({"host": "two words"}, "host"),
        ({"host": "krankenhäuser.de"}, "host"),
        ({"host": "host:80"}, "host"),
        ({"port": 0}, "port"),
        ({"port": 70_000}, "port"),
    ],
)
def test_a_consortium_that_nobody_could_reach_is_refused(
    tmp_path: Path, changes: dict[str, Any], wrong: str
) -> None:
    values = {"name": "Gliomas", "host": "localhost", "port": 9443, **changes}
    with pytest.raises(StateError, match=wrong):
        provisioning.init(tmp_path / "new", **values)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"name": "x"}'])
def test_damaged_settings_are_named(world: Any, content: bytes) -> None:
    (world.consortium.folder / "consortium.json").write_bytes(content)
    with pytest.raises(StateError, match=r"consortium\.json does not describe"):
        Consortium.open(world.consortium.folder)


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="not a coordinator's folder"):
        Consortium.open(tmp_path)


def handshake(consortium: Consortium, name: str) -> None:
    """Do a TLS handshake as ``name`` in memory; raise ssl.SSLError unless the CA vouches for it."""
    there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    there.load_cert_chain(
        consortium.folder / "server.crt", consortium.folder / "keys" / "server.key"
    )
    here = ssl.create_default_context(cafile=str(consortium.folder / "ca.crt"))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = here.wrap_bio(to_client, to_server, server_hostname=name)
    server = there.wrap_bio(to_server, to_client, server_side=True)
    open_ends = [client, server]
    for _ in range(20):
        for end in list(open_ends):
            try:
                end.do_handshake()
                open_ends.remove(end)
            except ssl.SSLWantReadError:
                continue
        if not open_ends:
            return
    raise TimeoutError


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("fed.example.org", "fed.example.org:9443"),
        ("192.0.2.7", "192.0.2.7:9443"),
        ("2001:db8::7", "[2001:db8::7]:9443"),
        ("127.0.0.1", "127.0.0.1:9443"),
    ],
)
def test_the_certificate_holds_for_host_and_loopback(
    tmp_path: Path, host: str, address: str
) -> None:
    consortium = provisioning.init(tmp_path / "new", name="G" * 100, host=host, port=9443)
    assert consortium.address == address
    for name in {host, "localhost", "127.0.0.1"}:
        handshake(consortium, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(consortium, "other.example.org")


def test_another_consortium_is_not_trusted(world: Any, tmp_path: Path) -> None:
    other = provisioning.init(tmp_path / "other", name="Other", host="localhost", port=1)
    for name in ("server.crt", "keys/server.key"):
        (world.consortium.folder / name).write_bytes((other.folder / name).read_bytes())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(world.consortium, "localhost")


def test_the_ca_signs_nothing_but_servers(world: Any) -> None:
    folder = world.consortium.folder
    ca = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    server.verify_directly_issued_by(ca)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    now = dt.datetime.now(dt.UTC)
    assert ca.not_valid_before_utc < now < server.not_valid_after_utc < ca.not_valid_after_utc


def test_a_hospital_is_admitted_once_however_often_it_asks(world: Any) -> None:
    hospital = world.join("a")
    kits = [Statement.load(world.folder / "a.kit", what="kit")]
    request = world.folder / "a.request.json"
    provisioning.admit(world.consortium, request, world.folder / "again.kit")
    kits.append(Statement.load(world.folder / "again.kit", what="kit"))
    assert kits[0] == kits[1]
    kit = open_kit(kits[0], identity_key=hospital.identity.public)
    assert kit.address == "localhost:9443"
    assert kit.coordinator_key == world.consortium.identity.public
    assert kit.ca_certificate == (world.consortium.folder / "ca.crt").read_text()
    assert len(world.events("site admitted")) == 1
    assert world.consortium.sites.names() == ["a"]


@pytest.mark.parametrize(
    ("known", "name", "admitted"),
    [
        ("north", "NORTH", False),
        ("NORTH", "north", False),
        ("north-1", "North_1", False),
        ("north", "north2", True),
        ("hospital-i", "hospital-l", True),
        ("hospital-1", "hospital1", True),
    ],
)
@pytest.mark.parametrize("revoked", [False, True])
def test_no_two_hospitals_have_names_that_people_or_disks_confuse(
    world: Any, known: str, name: str, admitted: bool, revoked: bool
) -> None:
    world.join(known)
    if revoked:
        world.consortium.sites.revoke(known, by="Ada", why="its laptop was stolen")
    request = world.request(name, Identity.create(world.folder / "new.key"))
    kit = world.folder / "new.kit"
    if admitted:
        assert provisioning.admit(world.consortium, request, kit).site == name
        return
    with pytest.raises(IdentityError, match=f"{name} and {known}, which was admitted") as error:
        provisioning.admit(world.consortium, request, kit)
    assert error.value.code == "site-name"
    assert not kit.exists()
    assert name not in world.consortium.sites.names()
    assert [facts["site"] for facts in world.events("site admitted")] == [known]


def test_a_pair_that_was_admitted_before_stays(world: Any) -> None:
    """By a gliofed that did not compare: both get their kits again."""
    world.join("north")
    request = world.request("NORTH", Identity.create(world.folder / "new.key"))
    world.consortium.sites.add(Statement.load(request, what="request"))
    provisioning.admit(world.consortium, request, world.folder / "new.kit")
    provisioning.admit(world.consortium, world.folder / "north.request.json", world.folder / "k")


def test_a_kit_holds_no_secret(world: Any) -> None:
    world.join("a")
    text = (world.folder / "a.kit").read_text()
    for path in (world.consortium.folder / "keys").iterdir():
        for line in path.read_text().splitlines():
            assert line.startswith("-----") or line not in text
    assert "PRIVATE" not in text


def test_a_changed_request_is_refused(world: Any) -> None:
    path = world.request("a", Identity.create(world.folder / "a.key"))
    data = json.loads(path.read_text())
    data["body"]["site"] = "b"
    path.write_text(json.dumps(data))
    with pytest.raises(IdentityError, match="does not fit"):
        provisioning.admit(world.consortium, path, world.folder / "kit")
    assert not (world.folder / "kit").exists()
    assert world.consortium.sites.names() == []


def test_a_name_belongs_to_the_key_that_had_it_first(world: Any) -> None:
    hospital = world.join("a")
    path = world.request("a", Identity.create(world.folder / "thief.key"))
    with pytest.raises(IdentityError, match="admitted with another key"):
        provisioning.admit(world.consortium, path, world.folder / "kit")
    known = world.consortium.sites.get("a")
    assert known is not None
    assert known.identity_key == hospital.identity.public
    assert not (world.folder / "kit").exists()


def test_a_request_that_is_no_file_is_named(world: Any) -> None:
    with pytest.raises(StateError, match="no enrolment request"):
        provisioning.admit(world.consortium, world.folder / "absent", world.folder / "kit")


def test_a_published_protocol_is_frozen_and_signed(world: Any) -> None:
    study = world.publish()
    body = study.statement.opened(kind=PROTOCOL, signer=world.consortium.identity.public)
    assert body == study.protocol.model_dump(mode="json")
    expected = preprocessing_digest(study.protocol.preprocessing)
    assert study.protocol.preprocessing_sha256 == expected
    (published,) = world.events("study published")
    assert published["protocol"] == study.protocol.digest
    assert study.wanted == "published"


def test_publishing_again_changes_nothing(world: Any) -> None:
    first = world.publish()
    before = (first.folder / "protocol.json").read_bytes()
    assert world.publish().protocol == first.protocol
    assert (first.folder / "protocol.json").read_bytes() == before
    assert len(world.events("study published")) == 1


def test_a_published_protocol_never_changes(world: Any) -> None:
    world.publish()
    with pytest.raises(ProtocolError, match="published with another protocol"):
        world.publish(rounds=3)
    assert world.consortium.study("demo").protocol.rounds == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"expires": dt.date(2020, 1, 1)}, "expired on 2020-01-01"),
        ({"expires": dt.datetime.now(dt.UTC).date()}, "expired on"),
        ({"aggregation__weights": "{ stranger = 2.0 }"}, "not admitted: stranger"),
        ({"preprocessing_sha256": '"' + "0" * 64 + '"'}, "another preprocessing"),
        ({"rounds": 0}, "rounds: "),
    ],
)
def test_a_protocol_that_could_not_run_is_not_published(
    world: Any, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ProtocolError, match=said):
        world.publish(**changes)
    assert world.consortium.studies() == []
    assert not world.events("study published")


def test_weights_of_admitted_sites_are_published(world: Any) -> None:
    world.join("a")
    study = world.publish(aggregation__weights="{ a = 2.0 }")
    assert study.protocol.aggregation.weights == {"a": 2.0}


def test_a_draft_keeps_the_starting_weights_that_it_names(world: Any) -> None:
    consortium, second = world.consortium, Identity.create(world.folder / "second.key")
    keys = {"ada": consortium.identity.public, "bo": second.public}
    key_rotation.change_coordinators(consortium, keys, needed=2, by="Ada")
    weights = starting_weights(NetworkOptions())
    given, path = world.folder / "given.safetensors", world.protocol_file()
    save(given, weights, {})
    for initial in (given, None, given):  # thought better of, twice
        frozen = provisioning.publish(consortium, path, initial=initial)
        assert bool(frozen.initial_sha256) is (initial is not None)
        assert (consortium.folder / "studies/demo/initial.safetensors").exists() is bool(initial)
    draft = Statement.load(consortium.folder / "drafts" / "demo.json", what="draft")
    key_rotation.take_countersigned(consortium, draft.cosigned(second))
    started = consortium.study("demo").given()
    assert digest(started) == digest(weights) == consortium.study("demo").protocol.initial_sha256


@pytest.mark.parametrize("named", ["own", "other"])
def test_a_protocol_names_only_weights_that_are_given(world: Any, named: str) -> None:
    weights, given = starting_weights(NetworkOptions()), world.folder / "given.safetensors"
    save(given, weights, {})
    sha256 = digest(weights) if named == "own" else "a" * 64
    path = world.protocol_file(initial_sha256=f'"{sha256}"')
    with pytest.raises(ProtocolError, match="names starting weights"):
        provisioning.publish(world.consortium, path)
    if named == "own":
        assert provisioning.publish(world.consortium, path, initial=given).initial_sha256 == sha256
        return
    with pytest.raises(ProtocolError, match="names starting weights"):
        provisioning.publish(world.consortium, path, initial=given)
    assert world.consortium.studies() == []


def test_a_published_study_is_not_published_with_other_weights(world: Any) -> None:
    given = world.folder / "given.safetensors"
    save(given, starting_weights(NetworkOptions()), {})
    study = world.publish()
    with pytest.raises(ProtocolError, match="it differs in initial_sha256"):
        provisioning.publish(world.consortium, world.protocol_file(), initial=given)
    assert study.given() is None


def test_studies_are_listed_by_name(world: Any) -> None:
    for name in ("second", "first"):
        world.publish(name)
    assert [study.protocol.study for study in world.consortium.studies()] == ["first", "second"]


def test_two_admissions_at_once_keep_the_journal_whole(world: Any) -> None:
    paths = []
    for name in ("a", "b", "c"):
        identity = Identity.create(world.folder / f"{name}.key")
        paths.append(world.request(name, identity))
    threads = [
        threading.Thread(
            target=provisioning.admit,
            args=(world.consortium, path, path.with_suffix(".kit")),
        )
        for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(facts["site"] for facts in world.events("site admitted")) == ["a", "b", "c"]
