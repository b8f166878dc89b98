"""Pseudonyms hide names and stay the same; the list of the withdrawn only grows."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.site.folder import Site
from client.site.pseudonyms import keep_withdrawal, patients_key, pseudonym, withdrawals, withdrawn
from common.errors import StateError

KEYS = st.binary(min_size=32, max_size=32)
NAMES = st.text(min_size=1, max_size=40)
ONE, TWO = "1" * 32, "2" * 32


@given(KEYS, NAMES)
def test_a_pseudonym_is_one_for_all_forms_of_a_name(key: bytes, name: str) -> None:
    hidden = pseudonym(key, name)
    assert len(hidden) == 32
    assert set(hidden) <= set("0123456789abcdef")
    for form in ("NFC", "NFD"):
        assert pseudonym(key, unicodedata.normalize(form, name)) == hidden


@given(KEYS, KEYS, NAMES, NAMES)
def test_other_names_and_other_keys_have_other_pseudonyms(
    key: bytes, other_key: bytes, name: str, other: str
) -> None:
    same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
    assert (pseudonym(key, name) == pseudonym(key, other)) == same
    assert (pseudonym(key, name) == pseudonym(other_key, name)) == (key == other_key)


def test_a_pseudonym_is_hmac_sha256() -> None:
    # RFC 4231, test case 2, cut to 128 bits.
    expected = "5bdcc146bf60754e6a042426089575c7"
    assert pseudonym(b"Jefe", "what do ya want for nothing?") == expected


def test_two_sites_have_two_keys(make_site: Callable[..., Site]) -> None:
    keys = {patients_key(make_site(name)) for name in ("north", "south")}
    assert {len(key) for key in keys} == {32}
    assert len(keys) == 2


@pytest.mark.parametrize("damage", [None, b"", b"abc", b"z" * 64, b"\xff" * 64])
def test_without_its_key_a_site_says_so(site: Site, damage: bytes | None) -> None:
    path = site.folder / "keys" / "patients.key"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(StateError, match=r"patients\.key") as caught:
        patients_key(site)
    assert caught.value.code == "patients-key"
    assert "backup" in caught.value.do


def test_the_list_of_the_withdrawn_only_grows(site: Site) -> None:
    assert withdrawn(site) == frozenset()
    first = keep_withdrawal(site, ONE, by="Dr. Tamm")
    assert keep_withdrawal(site, TWO, by="Dr. Saar").by == "Dr. Saar"
    assert keep_withdrawal(site, ONE, by="Dr. Saar") == first
    assert withdrawn(site) == {ONE, TWO}
    assert withdrawals(site)[ONE] == first
    path = site.folder / "withdrawn.json"
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 2, "withdrawn": []},
        {"format": 1, "withdrawn": [{"patient": "Smith", "time": "", "by": ""}]},
        {"format": 1, "withdrawn": [], "more": 1},
        [],
        None,
    ],
    ids=["format", "name", "key", "list", "no-json"],
)
def test_a_damaged_list_is_refused_and_stays(site: Site, damage: object) -> None:
    path = site.folder / "withdrawn.json"
    path.write_text("{" if damage is None else json.dumps(damage))
    before = path.read_bytes()
    for look in (lambda: withdrawn(site), lambda: keep_withdrawal(site, ONE, by="Dr. Tamm")):
        with pytest.raises(StateError):
            look()
    assert path.read_bytes() == before
