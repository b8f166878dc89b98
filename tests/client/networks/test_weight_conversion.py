from __future__ import annotations

import collections
import functools
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.commands import site
from client.networks.weight_conversion import converted, renamed
from common.errors import ModelError
from common.records.weights import Arrays, digest, save
from common.study.network_shapes import PREFIX, all_options, shapes, title
from common.study.protocol import NetworkOptions
from common.study.starting_weights import read
from tests.client.conftest import Run

TINY = NetworkOptions(name="unet", size="tiny")
ARRAYS: Arrays = {
    name: np.random.default_rng(0).standard_normal(shape, np.float32)
    for name, shape in shapes(TINY).items()
}
STATE = {name: torch.from_numpy(value) for name, value in ARRAYS.items()}


def before(prefix: str, state: dict[str, Any] = STATE) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


MONAI = {name.removeprefix(PREFIX): value for name, value in STATE.items()}
GOOD: dict[str, Any] = {
    "a state_dict": STATE,
    "of MONAI": MONAI,
    "in order": collections.OrderedDict(STATE),
    "as parameters": {name: torch.nn.Parameter(value) for name, value in STATE.items()},
    "under state_dict": {"state_dict": STATE, "epoch": 7, "optimizer": {"state": {0: "x"}}},
    "under model": {"model": MONAI},
    "under network_weights": {"network_weights": MONAI, "trainer_name": "nnUNetTrainer"},
    "of DataParallel": before("module."),
    "of MONAI in DataParallel": {"state_dict": before("module.", MONAI)},
    "compiled in DataParallel": before("module._orig_mod."),
    "of Lightning": {"state_dict": before("model.net.", MONAI), "loops": {}},
    "with a counter": {**STATE, "body.norm.num_batches_tracked": torch.tensor(3)},
}


def written(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("content", GOOD.values(), ids=GOOD)
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_tensors_are_taken(tmp_path: Path, content: object, zipped: bool) -> None:
    path = written(tmp_path / "w.pt", content, _use_new_zipfile_serialization=zipped)
    arrays, network = converted(path)
    assert network == TINY
    assert digest(arrays) == digest(ARRAYS)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_becomes_float32(tmp_path: Path, kind: torch.dtype) -> None:
    given = {name: value.to(kind) for name, value in STATE.items()}
    arrays, network = converted(written(tmp_path / "w.pt", given))
    assert network == TINY
    assert digest(arrays) == digest({name: value.float().numpy() for name, value in given.items()})


@pytest.mark.parametrize("options", list(all_options()), ids=title)
def test_every_network_is_found_under_the_names_of_monai(options: NetworkOptions) -> None:
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes(options).items()}
    assert renamed(arrays)[1] == options
    bare = {f"net.{name.removeprefix(PREFIX)}": value for name, value in arrays.items()}
    assert renamed(bare)[0].keys() == arrays.keys()


def test_other_weights_keep_their_names_but_for_wrappers() -> None:
    arrays, network = renamed({f"module.net.{n}": np.zeros(1, np.float32) for n in "ab"})
    assert network is None
    assert set(arrays) == {"net.a", "net.b"}
    assert renamed({}) == ({}, None)
    assert set(renamed({"a": np.zeros(1, np.float32)})[0]) == {"a"}


class Trainer:
    """What a program may put beside the weights."""


REFUSED: dict[str, tuple[object, str]] = {
    "an object": ({"trainer": Trainer(), "state_dict": STATE}, "an object of .*Trainer"),
    "a whole module": (torch.nn.Linear(2, 2), "an object of torch.nn.modules.linear.Linear"),
    "a number of numpy": ({"state_dict": STATE, "loss": np.float64(1)}, "an object of numpy"),
    "a tensor alone": (torch.ones(2), "it holds a Tensor, no named tensors"),
    "a list": ([torch.ones(2)], "it holds a list"),
    "nothing": ({}, "it is empty"),
    "other keys": ({"weights": STATE, "epoch": 7}, r"epoch \(int\), weights \(dict\)"),
    "integers": ({"a": torch.ones(2, dtype=torch.int64)}, "the tensor a holds int64 numbers"),
    "complex": ({"a": torch.ones(2, dtype=torch.complex64)}, "the tensor a holds complex64"),
    "sparse": ({"a": torch.eye(2).to_sparse()}, "the tensor a is no plain one"),
}


@pytest.mark.parametrize(("content", "said"), REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_by_name(tmp_path: Path, content: object, said: str) -> None:
    path = written(tmp_path / "w.pt", content)
    with pytest.raises(ModelError, match=said) as error:
        converted(path)
    assert error.value.code == "model-format"
    assert "weights_only" not in str(error.value)
    assert "torch.save(model.state_dict(), FILE)" in str(error.value)


def test_a_file_that_would_grow_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a.weight": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = [(one.filename, archive.read(one)) for one in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    with pytest.raises(ModelError, match="compressed, as torch writes no file"):
        converted(path)


def test_a_program_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as file:  # as torch.jit.save names its files
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            file.writestr(f"w/{name}", b"")
    with pytest.raises(ModelError, match="it is a TorchScript program"):
        converted(tmp_path / "w.pt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_damaged(tmp_path: Path, zipped: bool, share: float) -> None:
    file = io.BytesIO()
    torch.save(STATE, file, _use_new_zipfile_serialization=zipped)
    path = tmp_path / "w.pt"
    path.write_bytes(file.getvalue()[: int(share * file.tell())])
    with pytest.raises(ModelError, match="Fetch the file again") as error:
        converted(path)
    assert error.value.code == "model-damaged"


@pytest.mark.parametrize(
    ("write", "code"),
    [
        (lambda path: path, "model-file"),
        (lambda path: path.mkdir(), "model-file"),
        (lambda path: path.write_bytes(b"<html>no such file</html>"), "model-format"),
        (lambda path: written(path, {**STATE, "a": torch.tensor(np.nan)}), "model-not-finite"),
    ],
)
def test_a_file_that_is_no_use(tmp_path: Path, write: Callable[[Path], Any], code: str) -> None:
    write(tmp_path / "w.pt")
    with pytest.raises(ModelError) as error:
        converted(tmp_path / "w.pt")
    assert error.value.code == code


def test_the_command(command: Run, tmp_path: Path) -> None:
    site_command = functools.partial(command, site.main)
    given, out = written(tmp_path / "w.pt", {"state_dict": MONAI}), tmp_path / "w.safetensors"
    said = site_command("convert-weights", given, "--out", out)
    assert said.code == 0
    assert "those of a unet of size tiny" in said.out
    assert digest(ARRAYS)[:16] in said.out
    assert digest(read(out, TINY)) == digest(ARRAYS)
    bare = {name.removeprefix(PREFIX): value for name, value in ARRAYS.items()}
    save(tmp_path / "bare.safetensors", bare, {})
    said = site_command("convert-weights", tmp_path / "bare.safetensors", "--out", out)
    assert (said.code, "those of a unet of size tiny" in said.out) == (0, True)
    other = written(tmp_path / "other.pt", {"a": torch.ones(2)})
    said = site_command("convert-weights", other, "--out", out)
    assert (said.code, "none of gliofed's networks" in said.out + said.err) == (0, True)
    refused = site_command("convert-weights", written(given, Trainer()), "--out", out)
    assert refused.code == ModelError.exit_code
