"""A service, a command and the command again give equal voxels, and the result says how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from client.clinic import result_folder, result_verification
from client.clinic.installed_models import activate
from client.clinic.service.grpc_server import Terms
from client.clinic.service_process import Access, serving
from client.commands import clinic as cli
from client.networks.cpu_threads import computing_with
from client.site.execution import Hardware, execution_for
from client.site.folder import Site
from tests.client.clinic.service.conftest import client, headers, inputs, volumes
from tests.client.conftest import Run
from tests.consortia import STUDY, World, edit


@pytest.fixture
def site(world: World, monkeypatch: pytest.MonkeyPatch) -> Site:
    activate(world.site, world.model(1), {"cases": 1, "dice": {"WT": 0.1}})
    monkeypatch.setattr(result_folder, "write_report", lambda *_: None)  # half of the time
    return world.site


def mask(folder: Path, name: str) -> np.ndarray:
    return np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("able", [True, False], ids=["bfloat16", "no-bfloat16"])
def test_service_command_and_second_run_agree(
    command: Run,
    monkeypatch: pytest.MonkeyPatch,
    site: Site,
    case: Path,
    tmp_path: Path,
    able: bool,
    threads: int,
) -> None:
    monkeypatch.setattr(Hardware, "here", lambda: Hardware(cpu_bfloat16=able))
    site = edit(site, 'precision = "auto"', 'precision = "bfloat16"')
    site = edit(site, "threads = 0", f"threads = {threads}")
    how = {
        "device": "cpu",
        "precision": "bfloat16" if able else "float32",
        "layout": "channels last",
        "threads": threads,
    }
    with (
        serving(
            site,
            execution=execution_for(site.settings.machine),
            terms=Terms(port=0),
            access=Access(),
        ) as running,
        client(running) as asking,
    ):
        there = asking.infer(STUDY, inputs(volumes(case)), headers=headers(running))
    told = json.loads(there.as_numpy("result")[0])
    assert {key: told[key] for key in how} == how

    words = ("segment", case, "--site", site.folder, "--json")
    for number, torchs_own in enumerate((1, 3)):
        with computing_with(torchs_own):
            said = command(cli.main, *words, "--out", tmp_path / f"{number}")
        assert said.code == 0, said
        assert {key: said.json[key] for key in how} == how
    for name in ("segmentation", "uncertainty"):
        first, second = (mask(tmp_path / f"{number}", name) for number in range(2))
        assert np.array_equal(first, second)
    assert np.array_equal(mask(tmp_path / "0", "segmentation"), there.as_numpy("segmentation"))
    percent = np.rint(100 * np.clip(there.as_numpy("uncertainty"), 0, 1)).astype(np.uint8)
    assert np.array_equal(mask(tmp_path / "0", "uncertainty"), percent)


def recomputed(command: Run, monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[Any, Any]:
    """Return what verify says of the mask, and how it computed that, if it did."""
    used: list[Any] = []
    real = result_verification.segment_case

    def segment_case(*values: Any, execution: Any, **options: Any) -> Any:
        used.append(execution)
        return real(*values, execution=execution, **options)

    monkeypatch.setattr(result_verification, "segment_case", segment_case)
    said = command(cli.main, "verify", *words, "--recompute", "--json")
    (told,) = [one for one in said.json["checks"] if one["about"] == "mask"]
    return told, used


@pytest.fixture
def written(
    command: Run, monkeypatch: pytest.MonkeyPatch, site: Site, case: Path, tmp_path: Path
) -> Path:
    """A result in bfloat16 with 2 threads; since then site.toml says otherwise."""
    monkeypatch.setattr(Hardware, "here", lambda: Hardware(cpu_bfloat16=True))
    asked = edit(site, 'precision = "auto"', 'precision = "bfloat16"')
    asked = edit(asked, "threads = 0", "threads = 2")
    words = ("segment", case, "--site", asked.folder, "--out", tmp_path / "out", "--json")
    assert command(cli.main, *words).code == 0
    edit(asked, "threads = 2", "threads = 5")
    edit(asked, 'precision = "bfloat16"', 'precision = "float32"')
    return tmp_path / "out"


def test_verify_computes_as_the_result_says(
    command: Run, monkeypatch: pytest.MonkeyPatch, written: Path, site: Site, case: Path
) -> None:
    words = (written, "--case", case, "--site", site.folder)
    told, (used,) = recomputed(command, monkeypatch, *words)
    assert told["verdict"] == "holds", told
    assert (used.device, used.prediction_precision, used.layout, used.threads) == (
        *("cpu", "bfloat16", "channels last", 2),
    )


OTHER: dict[str, tuple[dict[str, Any], str, tuple[Any, ...] | str]] = {
    "the other layout": (
        {"layout": "channels first"}, "", ("cpu", "bfloat16", "channels first", 2),
    ),
    "a device that is not here": (
        {"device": "cuda"}, "unchecked", "computed on a CUDA GPU, which torch does not find here",
    ),
    "Apple's": (
        {"device": "mps"}, "unchecked", "computed on Apple's GPU, which torch does not find here",
    ),
    "an older result": (
        {"device": None, "layout": None, "threads": None}, "",
        ("cpu", "bfloat16", "channels last", 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", OTHER)
def test_verify_computes_as_another_result_says(
    command: Run,
    monkeypatch: pytest.MonkeyPatch,
    written: Path,
    site: Site,
    case: Path,
    row: str,
) -> None:
    fields, verdict, wanted = OTHER[row]
    path = written / "result.json"
    said = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in said.items() if k not in fields or v}))
    words = (written, "--case", case, "--site", site.folder)
    told, used = recomputed(command, monkeypatch, *words)
    if verdict:
        assert told["verdict"] == verdict
        assert wanted in told["says"]
        assert not used
        return
    (one,) = used
    assert (one.device, one.prediction_precision, one.layout, one.threads) == wanted


@pytest.mark.parametrize("threads", [0, 1025, "two", 1.5])
def test_a_result_that_says_no_number_of_threads_is_refused(
    command: Run, written: Path, threads: object
) -> None:
    path = written / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "threads": threads}))
    said = command(cli.main, "verify", written)
    assert said.code == 10
    assert "threads" in said.err
