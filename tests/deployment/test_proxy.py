"""Two hospitals that know no name outside: only their proxies do. Real processes, on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.records.atomic_files import write_secret
from tests import proxies
from tests.deployment.stack import Stack, running_stack, until
from tests.proxies import ConnectProxy, serving

pytestmark = pytest.mark.slow  # real processes, a study of two rounds: a minute and more

HOST = "fl.example.test"  # which nobody resolves (RFC 6761)
USER, PASSWORD = "anna", "s3cret:p@ss-of-this-test"
IN_URL = "s3cret%3Ap%40ss-of-this-test"


def test_a_study_runs_through_proxies_that_alone_know_the_coordinator(tmp_path: Path) -> None:
    authority, tls = proxies.authority(tmp_path / "hospital")
    with running_stack(tmp_path, host=HOST) as stack:
        for seed, name in enumerate(("north", "south")):
            stack.enrol(name, seed=seed, size=24)
        address = stack.consortium.address
        ways = {address: ("127.0.0.1", int(address.rpartition(":")[2]))}
        with (
            serving(ConnectProxy(ways, user=USER, password=PASSWORD)) as plain,
            serving(ConnectProxy(ways, user=USER, password=PASSWORD, tls=tls)) as secure,
        ):
            url = plain.url.replace("//", f"//{USER}:{IN_URL}@")
            names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY")
            _settle(stack, "south", secure.url, authority)
            stack.start("server")
            stack.start("north", environment=dict.fromkeys(names, url))
            stack.start("south")
            stack.publish("pilot", given=True, rounds=2, local_steps=1)
            stack.wait_for_offer("pilot", "north", "south", timeout_s=120)
            _no_password_shows(stack)
            doctor = stack.call("gliofed-site", "doctor", stack.site("south"))
            assert PASSWORD not in doctor
            assert "lets fl.example.test port" in " ".join(doctor.split())
            stack.approve("pilot", "north", "south")
            stack.call("gliofed-server", "launch", stack.coordinator, "pilot", "--no-wait")
            until(
                lambda: stack.journal.events("study finished", study="pilot"),
                timeout_s=240,
                what="the end of the study",
            )
            for entry in stack.journal.events("round closed", study="pilot"):
                assert set(entry.facts["took_part"]) == {"north", "south"}
            _no_password_shows(stack)
        assert set(plain.asked) == set(secure.asked) == {f"CONNECT {address} HTTP/1.1"}
        assert min(plain.carried, secure.carried) > 400_000


def _settle(stack: Stack, name: str, url: str, authority: Path) -> None:
    folder = stack.site(name)
    write_secret(folder / "keys" / "proxy.password", PASSWORD.encode())
    path = folder / "site.toml"
    text = path.read_text()
    for key, value in {
        "proxy": url,
        "proxy_user": USER,
        "proxy_password_file": "keys/proxy.password",
        "proxy_ca": str(authority),
    }.items():
        text = text.replace(f'\n{key} = ""\n', f'\n{key} = "{value}"\n')
    path.write_text(text)


def _no_password_shows(stack: Stack) -> None:
    """Look for it on the command lines, and in all that the sites wrote."""
    hidden = {PASSWORD.encode(), IN_URL.encode()}
    for pid in stack.children():
        line = Path(f"/proc/{pid}/cmdline")
        assert not any(one in line.read_bytes() for one in hidden if line.exists())
    for path in (*stack.site("north").rglob("*"), *stack.site("south").rglob("*")):
        if path.is_file() and path.name != "proxy.password":
            assert not any(one in path.read_bytes() for one in hidden), path
    for path in stack.folder.glob("*.log"):
        assert not any(one in path.read_bytes() for one in hidden), path
