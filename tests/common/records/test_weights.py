import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from common.errors import ModelError, UpdateError
from common.records import weights

ARRAYS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([-1.5, 2.0], np.float32),
    "scalar": np.array(3.0, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}
SHAPES = {name: array.shape for name, array in ARRAYS.items()}


def test_written_weights_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    weights.save(path, ARRAYS, {"study": "demo", "round": "3"})
    read = weights.load(path)
    assert weights.digest(read) == weights.digest(ARRAYS)
    assert all(array.dtype == np.float32 and array.flags.writeable for array in read.values())
    assert weights.load_metadata(path) == {"study": "demo", "round": "3"}
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_file_bytes_do_not_depend_on_process_or_order(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np; from pathlib import Path; from common.records import weights\n"
        "names = sys.argv[2:]\n"
        "weights.save(Path(sys.argv[1]), {n: np.ones(3, np.float32) for n in names},"
        " {n: n for n in names})"
    )
    sums = set()
    for number, order in enumerate(("abcdef", "fdbeca")):
        path = tmp_path / str(number)
        subprocess.run([sys.executable, "-c", script, str(path), *order], check=True)
        sums.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(sums) == 1


def test_digest_sees_every_part() -> None:
    base = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    others = [
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"]},
        {"a": base["a"].astype(np.float64), "b": base["b"]},
        {"a": base["a"], "b": np.array([1, np.nextafter(np.float32(1), 2)], np.float32)},
    ]
    digests = {weights.digest(value) for value in (base, *others)}  # type: ignore[arg-type]
    assert len(digests) == 6
    assert weights.digest(dict(reversed(base.items()))) == weights.digest(base)
    fortran = {name: np.asfortranarray(array) for name, array in base.items()}
    assert weights.digest(fortran) == weights.digest(base)


def raw(path: Path, *, kind: str, data: bytes, name: str = "layer.a", count: int = 3) -> Path:
    """Write one array as any kind of number; numpy and safetensors' writer know fewer."""
    about = {"dtype": kind, "shape": [count], "data_offsets": [0, len(data)]}
    header = json.dumps({name: about}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


VALUES = np.array([0.1, -2.0, 65504.0], np.float32)
UPPER = VALUES.view("<u4") >> 16


@pytest.mark.parametrize(
    ("kind", "data", "read"),
    [
        ("F16", VALUES.astype("<f2").tobytes(), VALUES.astype(np.float16).astype(np.float32)),
        ("BF16", UPPER.astype("<u2").tobytes(), (UPPER << 16).view(np.float32)),
        ("F32", VALUES.tobytes(), VALUES),
        ("F64", VALUES.astype("<f8").tobytes(), VALUES),
        ("F64", np.array([1 / 3, 1e300, -1e-300]).tobytes(), np.float32([1 / 3, np.inf, 0])),
    ],
)
def test_every_precision_becomes_float32(
    tmp_path: Path, kind: str, data: bytes, read: np.ndarray
) -> None:
    path = raw(tmp_path / "w", kind=kind, data=data)
    found = weights.load(path)
    assert found["layer.a"].dtype == np.float32
    assert found["layer.a"].tolist() == read.tolist()
    assert weights.load_metadata(path) == {}
    again = tmp_path / "again"
    weights.save(again, found, {})
    assert weights.digest(weights.load(again)) == weights.digest(found)


@pytest.mark.parametrize("name", ["num_batches_tracked", "body.norm1.num_batches_tracked"])
def test_the_counter_of_a_batch_norm_is_no_weight(tmp_path: Path, name: str) -> None:
    assert weights.load(raw(tmp_path / "w", kind="I64", data=bytes(8), name=name, count=1)) == {}


@pytest.mark.parametrize(
    ("kind", "size"), [("I64", 8), ("I32", 4), ("U8", 1), ("BOOL", 1), ("F8_E4M3", 1)]
)
def test_other_numbers_are_refused_by_name(tmp_path: Path, kind: str, size: int) -> None:
    path = raw(tmp_path / "w", kind=kind, data=bytes(3 * size))
    with pytest.raises(ModelError, match=rf"array layer\.a in .* holds {kind}") as error:
        weights.load(path)
    assert error.value.code == "model-dtype"


def pt(content: object = None, *, zipped: bool = True) -> bytes:
    """Return what torch.save writes; the coordinator has no torch to read it by."""
    file = io.BytesIO()
    torch.save(content or {"a": torch.ones(2)}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(2))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (pt(), "model-format", "convert-weights FILE --out FILE.safetensors"),
        (pt()[:-40], "model-format", "convert-weights FILE --out FILE.safetensors"),
        (pt(zipped=False), "model-format", "convert-weights FILE --out FILE.safetensors"),
        (npz(), "model-format", "is no safetensors file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "model-format", "is no safetensors file"),
        (b"<!DOCTYPE html>", "model-format", "is no safetensors file"),
        (b"", "model-damaged", "Fetch the file again"),
        (bytes(8), "model-damaged", "Fetch the file again"),
        ((20).to_bytes(8, "little") + b'{"a": ', "model-damaged", "Fetch the file again"),
        ((2).to_bytes(8, "little") + b"{]", "model-damaged", "Fetch the file again"),
    ],
)
def test_only_what_is_damaged_is_called_so(
    tmp_path: Path, data: bytes, code: str, said: str
) -> None:
    path = tmp_path / "w"
    path.write_bytes(data)
    with pytest.raises(ModelError) as error:
        weights.load(path)
    assert error.value.code == code
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_foreign_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_file({"a": np.zeros(1, np.float32)}, path, metadata={"gliofed": "[1]"})
    with pytest.raises(ModelError):
        weights.load_metadata(path)


def test_missing_file_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="absent"):
        weights.load(tmp_path / "absent")
    with pytest.raises(ModelError, match="absent"):
        weights.load_metadata(tmp_path / "absent")


def test_every_truncation_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "w"
    weights.save(path, ARRAYS, {})
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError) as error:
            weights.load(path)
        assert error.value.code == "model-damaged"
        with pytest.raises(ModelError):
            weights.load_metadata(path)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary"
    path.write_bytes(data)
    with pytest.raises(ModelError):
        weights.load(path)


def test_norm_is_accumulated_in_float64() -> None:
    arrays = {"big": np.full(1_000_000, 1e-3, np.float32), "one": np.array([3.0], np.float32)}
    assert weights.norm(arrays) == pytest.approx(10**0.5, rel=1e-7)
    assert weights.norm({"huge": np.full(4, 1e30, np.float32)}) == pytest.approx(2e30)
    assert weights.norm({}) == 0.0


def test_matching_update_passes() -> None:
    weights.check_like(ARRAYS, SHAPES, max_norm=100)


@pytest.mark.parametrize(
    ("change", "code", "names"),
    [
        ({"a.bias": None}, "update-name", "a.bias"),
        ({"extra": np.zeros(1, np.float32)}, "update-name", "extra"),
        ({"a.bias": np.zeros(3, np.float32)}, "update-shape", "a.bias"),
        ({"a.bias": np.zeros((2, 1), np.float32)}, "update-shape", "a.bias"),
        ({"a.bias": np.zeros(2, np.float64)}, "update-dtype", "a.bias"),
        ({"a.bias": np.zeros(2, np.float16)}, "update-dtype", "a.bias"),
        ({"a.bias": np.array([0, np.nan], np.float32)}, "update-not-finite", "a.bias"),
        ({"a.bias": np.array([0, np.inf], np.float32)}, "update-not-finite", "a.bias"),
        ({"a.bias": np.array([0, 101], np.float32)}, "update-norm", "a.bias"),
    ],
)
def test_wrong_update_is_named(change: dict[str, object], code: str, names: str) -> None:
    arrays = {k: v for k, v in {**ARRAYS, **change}.items() if v is not None}
    with pytest.raises(UpdateError, match=names) as error:
        weights.check_like(arrays, SHAPES, max_norm=100)  # type: ignore[arg-type]
    assert error.value.code == code


def test_norm_limit_that_is_not_a_number_refuses() -> None:
    with pytest.raises(UpdateError):
        weights.check_like(ARRAYS, SHAPES, max_norm=float("nan"))
