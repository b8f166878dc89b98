"""What the demo says of small cohorts, before the study and after: true, and never a traceback."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from client.cohort.patient_split import position
from client.privacy.ledger import Ledger
from client.segmentation.dice import RegionScores
from client.site import folder as sites
from common import console

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
SUMMARY = DEMO / "summary.py"
ALL = {"north": (23, 5, 6), "south": (23, 5, 6), "west": (23, 5, 6)}
SIX = {"north": (1, 0, 1), "south": (1, 1, 0), "west": (0, 0, 2)}
Told = Callable[..., tuple[int, str]]


@pytest.fixture
def told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Told:
    """Return a function that runs summary.py in the demo's folder: its code and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.out, "width", 200)
    shutil.copy(DEMO / "protocol.toml", tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["summary.py", *arguments])
        code = 0
        try:
            runpy.run_path(str(SUMMARY), run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def patients(part: int, count: int) -> list[str]:
    """Return names of so many patients who fall into the part of the demo's split."""
    low, high = ((0.0, 0.7), (0.7, 0.8), (0.8, 1.0))[part]
    names = (f"case-{number:05d}" for number in range(10_000))
    return list(islice((name for name in names if low <= position("demo", name) < high), count))


def hospital(name: str, split_: tuple[int, int, int]) -> None:
    """Make a site with patients who have names and empty files, which is all that a split sees."""
    data = Path(f"data-{name}")
    data.mkdir()
    for part, count in enumerate(split_):
        for patient in patients(part, count):
            folder = data / patient
            folder.mkdir()
            for sequence in ("t1n", "t1c", "t2w", "t2f", "seg"):
                text = f"{name} {patient} {sequence}"
                (folder / f"{patient}-000-{sequence}.nii.gz").write_text(text)
    sites.request(Path(name), name=name, data=data, make_ledger=Ledger.create)


@pytest.mark.parametrize(
    ("cohorts", "code", "trainers", "scorers", "clinic", "words"),
    [
        (SIX, 0, "north south", "north west", "north test",
         ["west has no patient to train on: the study goes on without it",
          "none here has more than 1"]),
        ({"north": (15, 0, 0), "south": (1, 1, 0)}, 0, "north south", "", "south validation",
         ["No hospital has a patient held out"]),
        ({"north": (1, 0, 0), "south": (2, 0, 0)}, 0, "north south", "", "north train", []),
        ({"north": (1, 0, 0), "south": (0, 1, 1)}, 1, None, None, None,
         ["1 of these hospitals have a patient to train on, and a round needs 2"]),
        ({"north": (4, 0, 0), "south": (0, 0, 0)}, 15, None, None, None,
         ["holds no usable case"]),
    ],
)  # fmt: skip
def test_who_has_whom(
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
    cohorts: Mapping[str, tuple[int, int, int]],
    code: int,
    trainers: str | None,
    scorers: str | None,
    clinic: str | None,
    words: list[str],
) -> None:
    empty = SimpleNamespace(data=np.zeros((1, 1, 1)))
    monkeypatch.setattr("client.imaging.nifti.read_volume", lambda *_, **__: empty)
    for name, parts in cohorts.items():
        hospital(name, parts)
    got, said = told("parts", *cohorts)
    assert got == code, said
    assert all(one in said for one in words), said
    assert ("more of each update is noise" in said) is (
        code == 0 and max(c[0] for c in cohorts.values()) < 15
    )
    if trainers is not None:
        assert Path("trainers.txt").read_text().split() == trainers.split()
        assert Path("scorers.txt").read_text().split() == (scorers or "").split()
        assert Path("clinic.txt").read_text().startswith(clinic)


def finished(cohorts: Mapping[str, tuple[int, int, int]], ways: int) -> None:
    """Write what the demo leaves for the table: the federated model scores 0.6, the others less."""
    names = ("train", "validation", "test")
    parts = {name: dict(zip(names, count, strict=True)) for name, count in cohorts.items()}
    Path("parts.json").write_text(json.dumps(parts))
    trainers = [name for name, count in cohorts.items() if count[0]]
    scorers = [name for name, count in cohorts.items() if count[2]]
    Path("trainers.txt").write_text("\n".join(trainers))
    Path("scorers.txt").write_text("\n".join(scorers))
    for name in cohorts:
        sites.request(Path(name), name=name, data=None, make_ledger=Ledger.create)
    spent = {"noise_multiplier": 1.5, "sampling_rate": 0.5, "steps": 35, "delta": 1e-3}
    study: dict[str, Any] = {
        "rounds_planned": 5,
        "rounds": [{"took_part": trainers}] * 5,
        "privacy_spent": {name: {**spent, "epsilon": 8.44} for name in trainers},
    }
    Path("status.json").write_text(json.dumps({"studies": [study]}))
    for name in scorers:
        count = cohorts[name][2]
        models = []
        for value in (0.4, 0.6, *[0.5] * (ways * len(trainers))):
            sums = RegionScores()
            for _ in range(count):
                sums += RegionScores.of_values((value,) * 3)
            models.append({"cases": count, "sums": sums.to_dict()})
        Path(f"{name}-scores.json").write_text(json.dumps(models))


@pytest.mark.parametrize(
    ("cohorts", "ways", "words", "never"),
    [
        (ALL, ["private"],
         ["the same 18 held-out cases: 6 of north, 6 of south, 6 of west",
          "It beats training alone, private (mean of the 3 hospitals that trained), 0.500, by 0.1"],
         ["WITHOUT", "too few", "cannot tell"]),
        (ALL, ["private", "no-private"], ["It beats training alone, WITHOUT privacy (mean"], []),
        (SIX, ["private"],
         ["the same 3 held-out cases: 1 of north, 2 of west", "mean of the 2 hospitals",
          "It beats the starting weights, 0.400", "So few held-out cases, 3, cannot tell"],
         ["of south,"]),
        ({"north": (1, 0, 0), "south": (1, 0, 0)}, ["private"],
         ["No Dice: no hospital has a patient held out", "Nothing says how good the model is",
          "epsilon at most 8.44"], ["It beats", "nan"]),
    ],
)  # fmt: skip
def test_the_table_is_true(
    told: Told,
    cohorts: Mapping[str, tuple[int, int, int]],
    ways: list[str],
    words: list[str],
    never: list[str],
) -> None:
    finished(cohorts, len(ways))
    code, said = told("table", *ways)
    assert code == 0, said
    assert all(one in said for one in words), said
    assert not any(one in said for one in never), said
    for name, (train, _, test) in cohorts.items():
        (row,) = [line for line in said.splitlines() if line.startswith(f"│ {name} ")]
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells[1:3] == [f"{train} ({test})", f"{5 if train else 0}/5"]
        assert (cells[3] == "-") is (train == 0)
