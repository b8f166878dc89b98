"""Whatever predicts or trains at a site computes as its site.toml says, and all of it alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.clinic import service_process
from client.clinic.installed_models import activate
from client.commands import clinic
from client.commands import site as site_commands
from client.imaging import brain_extraction
from client.networks.cpu_threads import THREADS, computing_with, pool
from client.networks.registry import build
from client.privacy import dp_sgd
from client.segmentation import prediction
from client.segmentation.prediction import predict
from client.site import execution
from client.site.execution import ExecutionOptions, Hardware
from client.site.folder import Site
from client.study import round_training
from client.training import loop
from client.training.loop import train
from common.errors import StateError
from common.regions import MODALITIES
from common.study.protocol import NetworkOptions, TrainingOptions
from tests.client.conftest import Run
from tests.consortia import STUDY, World, edit

ABLE = Hardware(cuda=2, cuda_bfloat16=True, cpu_bfloat16=True)
"""A machine on which every setting changes something."""
ASKED = ExecutionOptions(predicts_in="bfloat16", threads=3)


class BeganError(StateError):
    """Computing began: nothing more is needed of the command."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[ExecutionOptions]:
    """Return how was computed, each time, for a command that ends as computing begins."""
    found: list[ExecutionOptions] = []

    def began(options: ExecutionOptions) -> Any:
        found.append(options)
        raise BeganError("enough")

    monkeypatch.setattr(Hardware, "here", lambda: ABLE)
    for module in (prediction, loop, dp_sgd):
        monkeypatch.setattr(module, "computing", began)
    monkeypatch.setattr(service_process, "serving", lambda _, *, execution, **__: began(execution))
    return found


@pytest.fixture
def asking(world: World) -> Site:
    activate(world.site, world.model(), {"cases": 1, "dice": {"WT": 0.1}})
    site = edit(world.site, 'device = "auto"', 'device = "cpu"')
    site = edit(site, 'precision = "auto"', 'precision = "bfloat16"')
    return edit(site, "threads = 0", "threads = 3")


COMMANDS: dict[str, tuple[Callable[[], None], str]] = {
    "segment": (clinic.main, "segment {case} --site {site} --out {out}"),
    "serve": (site_commands.main, "serve {site}"),
    "install": (site_commands.main, "install {site} {release}"),
    "rehearse": (site_commands.main, "rehearse {site} --patients 1"),
    "audit-privacy": (site_commands.main, "audit-privacy {site} --canaries 8192"),
    "train-alone": (
        site_commands.main,
        "train-alone {site} {study} --initial {weights} --out {out}",
    ),
    "evaluate": (site_commands.main, "evaluate {site} {study} --weights {weights}"),
    "evaluate --full": (site_commands.main, "evaluate {site} {study} --full --weights {weights}"),
    "try-postprocessing": (
        site_commands.main,
        "try-postprocessing {site} {study} --weights {weights}",
    ),
}


def _case(site: Site) -> Path:
    return min(path for path in site.data.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_computes_as_site_toml_says(
    command: Run,
    seen: list[ExecutionOptions],
    asking: Site,
    world: World,
    tmp_path: Path,
    name: str,
) -> None:
    main, words = COMMANDS[name]
    values = {
        "case": _case(asking),
        "site": asking.folder,
        "out": tmp_path / "out",
        "release": world.release,
        "weights": world.release / "weights.safetensors",
        "study": STUDY,
    }
    said = command(main, *(word.format(**values) for word in words.split()))
    assert seen == [ASKED], said


def test_an_order_is_carried_out_as_site_toml_says(
    seen: list[ExecutionOptions], asking: Site
) -> None:
    protocol = asking.protocol(STUDY)
    with pytest.raises(BeganError):
        round_training.train_round(
            asking, protocol, round_training.starting_weights(protocol), round_number=1
        )
    assert seen == [ASKED]


def test_check_says_what_site_toml_says(
    command: Run, monkeypatch: pytest.MonkeyPatch, asking: Site
) -> None:
    monkeypatch.setattr(Hardware, "here", lambda: ABLE)
    said = command(
        site_commands.main, "check", asking.folder, "--spacing-mm", "6", "--workers", 1, "--json"
    )
    machine = said.json["machine"]
    del machine["system"]
    assert machine == {
        "device": "cpu", "precision": "float32", "predicts_in": "bfloat16", "threads": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), ExecutionOptions(("cuda",), "bfloat16", threads=1)),  # 1: tests/conftest.py
        (("--device", "cpu"), ExecutionOptions(threads=1)),
        (("--device", "cpu", "--threads", "5"), ExecutionOptions(threads=5)),
    ],
)
def test_a_clinic_without_a_site_says_it_itself(
    command: Run,
    seen: list[ExecutionOptions],
    world: World,
    tmp_path: Path,
    options: tuple[str, ...],
    found: ExecutionOptions,
) -> None:
    words = ("segment", _case(world.site), "--model", world.release, "--out", tmp_path / "out")
    command(clinic.main, *words, *options)
    assert seen == [found]


@pytest.mark.parametrize("option", [("--device", "cpu"), ("--threads", "2")])
def test_with_a_site_only_site_toml_says_it(
    command: Run, seen: list[ExecutionOptions], asking: Site, tmp_path: Path, option: tuple[str]
) -> None:
    words = ("segment", _case(asking), "--site", asking.folder, "--out", tmp_path / "out")
    said = command(clinic.main, *words, *option)
    assert said.code == 2
    assert "site.toml" in said.err
    assert not seen


def test_a_missing_device_is_named(
    command: Run, monkeypatch: pytest.MonkeyPatch, asking: Site, tmp_path: Path
) -> None:
    monkeypatch.setattr(Hardware, "here", lambda: Hardware())
    edit(asking, 'device = "cpu"', 'device = "cuda"')
    words = ("segment", _case(asking), "--site", asking.folder, "--out", tmp_path / "out")
    said = command(clinic.main, *words)
    assert said.code == 10
    assert "the device cuda, which torch does not find here" in said.err


AMBIENT = [1, 2, 5]
"""Threads that torch would take by itself, as cores, limits and the environment have it."""


@contextlib.contextmanager
def _torch_set_to(threads: int) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Yield what calls a function here, and in a thread of its own, which must give the same."""

    def both(work: Callable[[], Any]) -> Any:
        with pool(1) as other:
            found, again = work(), other.submit(work).result()
        np.testing.assert_array_equal(found, again)
        return found

    with computing_with(threads):
        yield both


def test_prediction_does_not_follow_torchs_own_threads() -> None:
    """A network whose convolutions round otherwise with other threads, on processors of Intel."""
    network = build(NetworkOptions(size="base"), seed=0)
    image = np.random.default_rng(0).standard_normal((4, 24, 20, 16)).astype(np.float32)
    found = set()
    for ambient in AMBIENT:
        with _torch_set_to(ambient) as both:
            probabilities = both(
                lambda: predict(
                    network, image, crop_size=(24, 20, 16), execution=ExecutionOptions(threads=3)
                )
            )
        found.add(probabilities.tobytes())
    assert len(found) == 1


class _Case:
    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.image = rng.standard_normal((len(MODALITIES), 24, 24, 24)).astype(np.float32)
        self.labels = (rng.random((24, 24, 24)) > 0.5).astype(np.uint8)


def test_training_does_not_follow_torchs_own_threads() -> None:
    options = TrainingOptions(
        local_steps=1, learning_rate=0.01, crop_size=(16, 16, 16), augmentation="full"
    )
    found = set()
    for ambient in AMBIENT:
        with computing_with(ambient):
            result = train(
                build(NetworkOptions(size="small"), seed=0),
                [[lambda n=n: _Case(n)] for n in range(2)],  # type: ignore[misc]
                options,
                seed=1,
                execution=ExecutionOptions(threads=3),
            )
        found.add(b"".join(array.tobytes() for array in result.update.values()))
    assert len(found) == 1


def test_the_brain_is_found_with_the_same_threads_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever site.toml says: a case that a site trains on and one of the clinic are prepared to
    the same bits, in this process or in one of many."""
    used: list[int] = []

    def network(_: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(image: torch.Tensor) -> torch.Tensor:
            used.append(torch.get_num_threads())
            inside = torch.zeros_like(image)
            inside[..., 8:24, 8:24, 8:24] = 1
            return torch.cat([1 - inside, inside], 1)

        return forward

    monkeypatch.setattr(brain_extraction, "_network", network)
    for name in ("_COARSE", "_FINE"):
        monkeypatch.setattr(brain_extraction, name, (32, 32, 32))
    image = np.random.default_rng(0).random((20, 20, 20), np.float32)
    for ambient in AMBIENT:
        with computing_with(ambient):
            brain_extraction.extract_brain(image)
    assert used == [THREADS] * 2 * len(AMBIENT)
    assert execution.THREADS != THREADS  # tests/conftest.py changes the other alone
