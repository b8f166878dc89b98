"""Hospitals with hardly any patients: each command gives a result or says in a sentence what lacks.

The table is the promise. A cell is "" where the command does its work, or words of the sentence
with which it ends; anything else, a traceback above all, fails.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.cohort.case_discovery import read_cohort
from client.cohort.patient_split import split
from client.commands import site as site_commands
from client.runtime.order_handler import Participation
from client.site.folder import Site
from client.study import round_training
from common.messages.wire_format import OrderKind, Report
from common.records.weights import Arrays
from server.consortium.provisioning import Consortium
from tests.client.conftest import Run
from tests.consortia import STUDY, World, answer, approve, edit, events, order, tiny_protocol

Make = Callable[[Path, Path], None]


def parts(train: int, validation: int, test: int, *, mask: str = "as it is") -> Make:
    """Return what makes a cohort with so many patients in each part of the study's split."""

    def make(whole: Path, root: Path) -> None:
        found = split(read_cohort(whole), STUDY)
        chosen = found.train[:train] + found.validation[:validation] + found.test[:test]
        for case in chosen:
            folder = root / case.name
            folder.mkdir()
            for path in case.images["t1c"].path.parent.iterdir():
                if path != case.label or mask == "as it is":
                    (folder / path.name).symlink_to(path)
                elif mask == "empty":
                    image = nib.load(path)
                    nib.save(
                        nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine),
                        folder / path.name,
                    )

    return make


NO_CASE = "holds no usable case"
NO_TRAIN = "The training split of north is empty"
NO_VALIDATION = "The validation split of north is empty"
NO_TEST = "The test split of north is empty"
COHORTS: dict[str, tuple[Make, str, str, str, str]] = {
    # what there is, how; what check, train-alone, try-postprocessing and evaluate say
    "nobody": (parts(0, 0, 0), NO_CASE, NO_CASE, NO_CASE, NO_CASE),
    "one patient to train on": (parts(1, 0, 0), "", "", NO_VALIDATION, NO_TEST),
    "one patient to validate on": (parts(0, 1, 0), "", NO_TRAIN, "", NO_TEST),
    "one patient held out": (parts(0, 0, 1), "", NO_TRAIN, NO_VALIDATION, ""),
    "two, one of them held out": (parts(1, 0, 1), "", "", NO_VALIDATION, ""),
    "two, none to train on": (parts(0, 1, 1), "", NO_TRAIN, "", ""),
    "three, one of each": (parts(1, 1, 1), "", "", "", ""),
    "four, all to train on": (parts(4, 0, 0), "", "", NO_VALIDATION, NO_TEST),
    "three without a tumour": (parts(1, 1, 1, mask="empty"), "", "", "", ""),
    "three without masks": (parts(1, 1, 1, mask="none"), "", NO_TRAIN, NO_VALIDATION, NO_TEST),
}


@pytest.fixture
def hospital(request: pytest.FixtureRequest, world: World, cohort: Path, tmp_path: Path) -> Site:
    """The site of ``world`` with another cohort: what it finds at its next start."""
    root = tmp_path / "small"
    root.mkdir()
    COHORTS[request.param][0](cohort, root)
    settings = world.site.folder / "site.toml"
    text = re.sub(r"(?m)^data = .*$", f'data = "{root}"', settings.read_text())
    settings.write_text(text)
    return Site.open(world.site.folder)


def each_cohort() -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("hospital", "cohort_name"),
        [(name, name) for name in COHORTS],
        indirect=["hospital"],
        ids=list(COHORTS),
    )


@each_cohort()
def test_every_command_ends_with_a_result_or_a_sentence(
    hospital: Site, cohort_name: str, world: World, command: Run, tmp_path: Path
) -> None:
    site = functools.partial(command, site_commands.main)
    _, checked, trained, tried, evaluated = COHORTS[cohort_name]
    weights, made = world.release / "weights.safetensors", tmp_path / "alone.safetensors"
    check = ("check", hospital.folder, "--workers", 1, "--spacing-mm", 6)
    alone = ("train-alone", hospital.folder, STUDY, "--initial", weights, "--out", made)
    rows: list[tuple[tuple[object, ...], str]] = [
        ((*check, "--report", tmp_path / "report"), checked),
        (("plan", hospital.folder, STUDY), ""),
        (("budget", hospital.folder), ""),
        ((*alone, "--no-private"), trained),
        (("try-postprocessing", hospital.folder, STUDY, "--weights", weights), tried),
        (("evaluate", hospital.folder, STUDY, "--weights", weights, "--full"), evaluated),
        (("install", hospital.folder, world.release), ""),
    ]
    for arguments, sentence in rows:
        said = site(*arguments)
        assert sentence in said.err, (arguments, said)
        assert (said.code == 0) is (sentence == ""), (arguments, said)
        assert "nan" not in said.out.lower().split(), (arguments, said)


@pytest.mark.parametrize("name", COHORTS)
def test_every_order_is_answered(
    name: str, make_site: Callable[..., Site], consortium: Consortium, cohort: Path, tmp_path: Path
) -> None:
    make, _, trained, validated, _ = COHORTS[name]
    root = tmp_path / "small"
    root.mkdir()
    make(cohort, root)
    site = edit(make_site("north", root), '"withdrawals"]', '"withdrawals", "statistics"]')
    about = {"about": ["volumes", "spacing", "intensities"], "noise_multiplier": 4.0}
    protocol = tiny_protocol(statistics=about)
    approve(site, consortium, protocol)
    weights = round_training.starting_weights(protocol)
    participation = Participation(site)

    def ask(kind: OrderKind, number: int) -> tuple[Report, Arrays]:
        sent = None if kind == "describe" else weights
        given = order(consortium.identity, protocol, kind, number=number, weights=sent)
        return answer(participation, given)

    nobody = ("failed", "case-none") if name == "nobody" else ("done", "")
    described, _ = ask("describe", 0)
    assert (described.status, described.code) == nobody
    assert bool(described.statistics) is (name != "nobody")
    report, arrays = ask("train", 1)
    if trained:
        (fact,) = (one for one in events(site, "order refused") if one["order"] == "train")
        assert "No patient" in fact["reason"]
    wanted = ("failed", "case-none") if trained else ("done", "")
    assert (report.status, report.code) == wanted, report
    assert bool(arrays) is not bool(trained)
    report, _ = ask("evaluate", 1)
    assert (report.status, report.code) == nobody
    assert bool(report.dice) is not bool(validated)
