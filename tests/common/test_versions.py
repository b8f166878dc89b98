"""Who understands whom, and who must upgrade."""

from __future__ import annotations

import pytest

from common.versions import parse_constraints, proven, skew, unproven


@pytest.mark.parametrize(
    ("site", "coordinator", "words"),
    [
        ("0.1.0", "0.1.0", ""),
        ("0.1.0", "0.1.9", ""),
        ("0.1.0rc1", "0.1.0", ""),
        ("0.2.0", "0.1.0", ""),
        ("0.0.7", "0.1.0", ""),
        ("0.1.0", "0.2.3", ""),
        ("1.9.1", "1.10.0", ""),
        ("0.2.0.dev1+g12", "0.1.0", ""),
        ("0.3.0", "0.1.0", "The coordinator must upgrade to 0.2 or 0.3."),
        ("0.1.0", "0.3.0", "The site must upgrade to 0.2 or 0.3."),
        ("0.0.9", "0.2.0", "The site must upgrade to 0.1 or 0.2."),
        ("1.0.0", "0.9.0", "The coordinator must upgrade to 1."),
        ("0.9.0", "1.0.0", "The site must upgrade to 1."),
        ("1.0.0", "2.1.0", "The site must upgrade to 2."),
        ("", "0.1.0", "the site must install a release of gliofed."),
        ("0.1.0", "main", "the coordinator must install a release of gliofed."),
        ("1", "0.1.0", "the site must install a release of gliofed."),
    ],
)
def test_one_minor_version_either_way(site: str, coordinator: str, words: str) -> None:
    said = skew(site=site, coordinator=coordinator)
    assert said.endswith(words)
    assert bool(said) == bool(words)
    if said:
        assert site in said
        assert coordinator in said


def test_libraries_that_are_not_those_of_the_constraints_are_named() -> None:
    wanted = parse_constraints(["# pins", "torch==2.13.0  # CPU or CUDA", "flwr==1.41.0", ""])
    here = {"torch": "2.13.0+cu128", "flwr": "1.40.0", "monai": ""}
    found = unproven(wanted, ["torch", "flwr", "monai"], installed=lambda name: here[name])
    assert found == {"flwr": ("1.40.0", "1.41.0")}


def test_this_release_says_what_it_is_proven_with() -> None:
    assert {"flwr", "torch", "opacus"} <= proven().keys()
