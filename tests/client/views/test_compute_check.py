"""Whether a machine can train and segment: found out by doing it, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.site.folder import Site
from client.views.compute_check import Trial, of_trial, try_out


@pytest.mark.parametrize(
    ("found", "level", "what", "do"),
    [
        (Trial(0, "", 7.3), "ok", "worked (7 s)", ""),
        (Trial(1, "KeyError: uid not found", 2.0), "problem", "KeyError: uid not found", "-m"),
        (Trial(-4, "", 2.0), "problem", "killed by SIGILL", "processor"),
        (Trial(-9, "", 2.0), "problem", "killed by SIGKILL", "memory"),
        (
            Trial(-11, "", 2.0),
            "problem",
            "killed by SIGSEGV",
            "-m client.views.compute_check north",
        ),
        (
            Trial(None, "", 300.0),
            "problem",
            "did not end in 300 s",
            "-m client.views.compute_check north",
        ),
    ],
)
def test_how_a_trial_ended(found: Trial, level: str, what: str, do: str) -> None:
    said = of_trial(found, Path("north"))
    assert said.level == level
    assert what in said.what
    assert do in said.do


def test_a_library_that_cannot_be_imported_is_a_problem_that_names_it(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libgomp.so.1: cannot open it')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    said = of_trial(try_out(site.folder), site.folder)
    assert said.level == "problem"
    assert "OSError: libgomp.so.1: cannot open it" in said.what


def test_an_error_of_ours_is_said_in_its_own_words(site: Site) -> None:
    settings = site.folder / "site.toml"
    settings.write_text(settings.read_text() + "\n[machine]\n")
    said = of_trial(try_out(site.folder), site.folder)
    assert said.level == "problem"
    assert "site.toml is not TOML" in said.what
    assert "StateError" not in said.what
    assert "constraints.txt" not in said.do
