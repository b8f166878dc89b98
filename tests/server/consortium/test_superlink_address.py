"""The SuperLink's own door: made anew at each start, trusted alone, and never expired."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest

from common.errors import StateError
from server.consortium.provisioning import Consortium
from server.consortium.superlink_address import Hub
from server.transport import superlink
from tests import doors, faulty_doors


def test_each_start_has_a_door_of_its_own_for_this_user_alone(tmp_path: Path) -> None:
    first, again = Hub.make(tmp_path), Hub.make(tmp_path)
    assert Hub.open(tmp_path) == again
    assert {path.stat().st_mode & 0o777 for path in again.folder.iterdir()} == {0o600}
    assert again.folder.stat().st_mode & 0o777 == 0o700
    assert first.folder == again.folder


def test_whoever_looks_before_it_was_served_is_told(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="does not say where") as refused:
        Hub.open(tmp_path)
    assert "gliofed-server serve" in refused.value.do
    Hub.make(tmp_path).certificate.unlink()
    with pytest.raises(StateError, match="cannot be read"):
        Hub.open(tmp_path).client_context()


@pytest.mark.parametrize("strict", [False, True], ids=["3.11", "3.13 and later"])
def test_its_certificate_is_trusted_without_the_consortiums_authority(
    consortium: Consortium, strict: bool
) -> None:
    with doors.hub(consortium):
        trust = consortium.hub.client_context()
        if strict:
            trust.verify_flags |= ssl.VERIFY_X509_STRICT
        address = f"https://{consortium.hub.address}/"
        assert httpx.get(address, verify=trust, trust_env=False).status_code == 404
        public = ssl.create_default_context(cafile=str(consortium.folder / "ca.crt"))
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(address, verify=public, trust_env=False)


def test_no_clock_makes_its_certificate_expire(consortium: Consortium) -> None:
    from cryptography import x509

    Hub.make(consortium.folder / "flower")
    made = x509.load_pem_x509_certificate(consortium.hub.certificate.read_bytes())
    assert (made.not_valid_before_utc.year, made.not_valid_after_utc.year) == (2000, 9999)


def test_the_executors_reach_is_noted_and_forgotten_at_the_next_start(tmp_path: Path) -> None:
    hub = Hub.make(tmp_path)
    assert hub.reached_s_ago() is None
    hub.reached()
    ago_s = hub.reached_s_ago()
    assert ago_s is not None
    assert 0 <= ago_s < 60
    assert Hub.make(tmp_path).reached_s_ago() is None


def test_the_superlink_takes_the_port_that_was_chosen(consortium: Consortium) -> None:
    port = Hub.make(consortium.folder / "flower").port
    hub, listening = consortium.hub.bound()
    listening.close()
    words = superlink.arguments(consortium.folder, hub)
    assert words[words.index("--port") + 1] == f"{port}"
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert consortium.hub.port == port


def test_a_port_that_another_process_took_is_left_and_all_are_told(consortium: Consortium) -> None:
    before = Hub.make(consortium.folder / "flower")
    stamp = before.noted.stat()
    with faulty_doors.listening(before.port):
        hub, listening = before.bound()
        listening.close()
    now = consortium.hub
    assert now == hub
    assert now.port != before.port
    assert before.noted.stat().st_ino != stamp.st_ino, "who watches the note sees it change"
