from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import ModelError
from common.records.weights import Arrays, digest, save
from common.study.network_shapes import PREFIX, all_options, shapes
from common.study.protocol import NetworkOptions
from common.study.starting_weights import read

TINY = NetworkOptions(name="unet", size="tiny")
FIRST = min(shapes(TINY))
SHIPPED = sorted(Path("deploy/demo").glob("initial-*.safetensors"))


def drawn(options: NetworkOptions = TINY) -> Arrays:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(s, np.float32) for name, s in shapes(options).items()}


def test_weights_that_fit_are_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save(path, drawn(), {})
    assert digest(read(path, TINY)) == digest(drawn())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_file_of_any_precision_has_the_digest_of_its_conversion(
    tmp_path: Path, kind: torch.dtype
) -> None:
    """As torch converts it, and with the counters that a batch norm leaves."""
    stored = {name: torch.from_numpy(value).to(kind) for name, value in drawn().items()}
    counter = {"body.norm.num_batches_tracked": torch.tensor(3)}
    save_file({**stored, **counter}, tmp_path / "stored")
    save_file({name: value.float() for name, value in stored.items()}, tmp_path / "converted")
    found = read(tmp_path / "stored", TINY)
    assert digest(found) == digest(read(tmp_path / "converted", TINY))
    assert load_file(tmp_path / "converted")[FIRST].tolist() == found[FIRST].tolist()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_weights_of_the_demo_fit(path: Path) -> None:
    name = path.stem.removeprefix("initial-")
    fitting = [one for one in all_options() if (one.name, one.size) == (name, "tiny")]
    assert read(path, fitting[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("others", [0, 1])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, value: float, others: int) -> None:
    bad = drawn()
    for name in sorted(bad)[: 1 + others]:
        bad[name].flat[0] = value
    save(tmp_path / "w", bad, {})
    with pytest.raises(ModelError, match=f"{FIRST} in .* holds a value that is not") as error:
        read(tmp_path / "w", TINY)
    assert error.value.code == "model-not-finite"
    assert ("1 other arrays do too" in str(error.value)) is bool(others)


def test_a_float64_beyond_float32_is_not_finite(tmp_path: Path) -> None:
    wide = {name: torch.from_numpy(value).double() for name, value in drawn().items()}
    wide[FIRST].view(-1)[0] = 1e300
    save_file(wide, tmp_path / "w")
    with pytest.raises(ModelError, match=FIRST):
        read(tmp_path / "w", TINY)


def test_another_networks_weights_are_named(tmp_path: Path) -> None:
    save(tmp_path / "w", drawn(NetworkOptions(name="dynunet", size="tiny")), {})
    with pytest.raises(ModelError) as error:
        read(tmp_path / "w", TINY)
    assert error.value.code == "model-mismatch"
    assert "They are those of a dynunet of size tiny." in str(error.value)
    assert "a unet of size tiny" in str(error.value)
    assert "convert-weights" not in error.value.do
    bare = {name.removeprefix(PREFIX): value for name, value in drawn().items()}
    save(tmp_path / "w", bare, {})
    with pytest.raises(ModelError, match="missing prefix") as error:
        read(tmp_path / "w", TINY)
    assert "convert-weights" in error.value.do
