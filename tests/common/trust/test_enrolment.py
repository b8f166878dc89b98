from pathlib import Path
from typing import Any

import pytest

from common.errors import IdentityError
from common.trust.enrolment import (
    KIT,
    REQUEST,
    Kit,
    Request,
    open_kit,
    open_request,
    sign_kit,
    sign_request,
)
from common.trust.identity import Identity

NODE_KEY = "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQ="


@pytest.fixture
def hospital(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / "hospital.key")


@pytest.fixture
def coordinator(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / "coordinator.key")


def request(identity: Identity, **changes: Any) -> Request:
    fields = {
        "site": "hospital-a",
        "identity_key": identity.public,
        "node_key": NODE_KEY,
        "version": "0.1.0",
    }
    return Request.model_validate({**fields, **changes})


def kit(hospital: Identity, coordinator: Identity, **changes: Any) -> Kit:
    fields = {
        "consortium": "Gliomas",
        "coordinator_key": coordinator.public,
        "site": "hospital-a",
        "identity_key": hospital.public,
        "address": "fed.example.org:9443",
        "ca_certificate": "-----BEGIN CERTIFICATE-----",
    }
    return Kit.model_validate({**fields, **changes})


def test_a_request_round_trip(hospital: Identity) -> None:
    assert open_request(sign_request(request(hospital), hospital)) == request(hospital)


def test_a_request_names_the_key_that_signed_it(hospital: Identity, coordinator: Identity) -> None:
    with pytest.raises(IdentityError, match="names another key"):
        open_request(sign_request(request(hospital), coordinator))


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"site": "../etc"}, "site"),
        ({"site": ""}, "site"),
        ({"site": "a" * 64}, "site"),
        ({"node_key": "ssh-rsa AAAA"}, "node_key"),
        ({"node_key": NODE_KEY + "\nssh-rsa AAAA"}, "node_key"),
        ({"identity_key": "AB"}, "identity_key"),
        ({"version": 1}, "version"),
        ({"secret": "x"}, "secret"),
        ({"site": "-", "version": None}, "site, version"),
    ],
)
def test_a_signed_request_is_still_checked(
    hospital: Identity, changes: dict[str, Any], wrong: str
) -> None:
    body = {**request(hospital).model_dump(), **changes}
    with pytest.raises(IdentityError, match=f"not valid in: {wrong}"):
        open_request(hospital.sign(REQUEST, body))


def test_a_kit_round_trip(hospital: Identity, coordinator: Identity) -> None:
    statement = sign_kit(kit(hospital, coordinator), coordinator)
    assert open_kit(statement, identity_key=hospital.public) == kit(hospital, coordinator)


def test_a_kit_is_for_one_hospital(hospital: Identity, coordinator: Identity) -> None:
    statement = sign_kit(kit(hospital, coordinator), coordinator)
    with pytest.raises(IdentityError, match="made for hospital-a"):
        open_kit(statement, identity_key=coordinator.public)


def test_a_kit_names_the_consortium_that_signed_it(
    hospital: Identity, coordinator: Identity
) -> None:
    with pytest.raises(IdentityError, match="names another consortium"):
        open_kit(sign_kit(kit(hospital, coordinator), hospital), identity_key=hospital.public)


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("fed.example.org:443", True),
        ("192.0.2.1:9443", True),
        ("[2001:db8::1]:9443", True),
        ("2001:db8::1", False),
        ("fed.example.org", False),
        ("two words:80", False),
        ("host:123456", False),
    ],
)
def test_addresses(hospital: Identity, coordinator: Identity, address: str, good: bool) -> None:
    body = {**kit(hospital, coordinator).model_dump(), "address": address}
    statement = coordinator.sign(KIT, body)
    if good:
        assert open_kit(statement, identity_key=hospital.public).address == address
    else:
        with pytest.raises(IdentityError, match="address"):
            open_kit(statement, identity_key=hospital.public)


def test_a_kit_is_no_request(hospital: Identity, coordinator: Identity) -> None:
    with pytest.raises(IdentityError, match="Expected a signed enrolment-request"):
        open_request(sign_kit(kit(hospital, coordinator), coordinator))
