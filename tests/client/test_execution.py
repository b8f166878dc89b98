import pytest
import torch

from client import execution
from client.execution import ExecutionOptions, choose_device, choose_execution, choose_precision
from client.site import Machine
from client.studies import execution_for
from common.errors import StateError


def test_choices_fit_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(execution, "multiplies_bfloat16", lambda: False)
    assert choose_precision(cpu) == "float32"
    assert choose_execution("cpu") == ExecutionOptions(("cpu",), "float32", True)
    assert choose_execution("mps") == ExecutionOptions(("mps",), "float32", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert choose_device() == torch.device("cuda")
    assert choose_execution() == ExecutionOptions(("cuda",), "bfloat16", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device() == cpu


@pytest.mark.parametrize(
    ("device", "gpus", "visible", "devices"),
    [
        ("auto", 1, 4, ("cuda",)),
        ("cuda", 2, 4, ("cuda:0", "cuda:1")),
        ("cuda", 0, 3, ("cuda:0", "cuda:1", "cuda:2")),
        ("auto", 0, 1, ("cuda",)),
        ("cpu", 0, 4, ("cpu",)),
    ],
)
def test_devices_that_share_the_work(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, visible: int, devices: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    found = choose_execution(device, gpus=gpus)  # type: ignore[arg-type]
    assert found.devices == devices
    assert found.device == devices[0]


def test_precision_is_as_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert choose_execution("cuda").precision == "float32"
    assert choose_execution("cuda", precision="bfloat16").precision == "bfloat16"
    assert choose_execution("cpu", precision="bfloat16").precision == "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert choose_execution("cuda", precision="float32").precision == "float32"


@pytest.mark.parametrize(
    ("settings", "visible", "devices"),
    [
        ({"device": "cuda", "gpus": 2}, 2, ("cuda:0", "cuda:1")),
        ({"gpus": 0, "precision": "float32"}, 2, ("cuda:0", "cuda:1")),
        ({"gpus": 3}, 2, None),
        ({"gpus": 2}, 0, None),
        ({"device": "cpu", "gpus": 2, "precision": "bfloat16"}, 0, ("cpu",)),
        ({}, 0, ("cpu",)),
    ],
)
def test_a_machine_computes_as_its_settings_say(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    visible: int,
    devices: tuple[str, ...] | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible > 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    machine = Machine.model_validate(settings)
    if devices is None:
        with pytest.raises(StateError, match="CUDA devices") as error:
            execution_for(machine)
        assert error.value.code == "device"
        return
    found = execution_for(machine)
    assert found.devices == devices
    wanted = settings.get("precision", "bfloat16")
    assert found.precision == (wanted if visible else "float32")


@pytest.mark.parametrize(
    ("asked", "able", "predicts"),
    [
        ("auto", True, "bfloat16"),
        ("bfloat16", True, "bfloat16"),
        ("float32", True, "float32"),
        ("auto", False, "float32"),
        ("bfloat16", False, "float32"),
    ],
)
def test_a_cpu_predicts_in_bfloat16_if_it_multiplies_that_and_trains_in_float32(
    monkeypatch: pytest.MonkeyPatch, asked: str, able: bool, predicts: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    found = choose_execution("cpu", precision=asked)  # type: ignore[arg-type]
    assert found.precision == "float32"
    assert found.prediction_precision == predicts


@pytest.mark.parametrize("faster", [True, False])
def test_the_layout_of_a_prediction_in_bfloat16_is_the_faster_one(
    monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    monkeypatch.setattr(execution, "channels_last_is_faster", lambda: faster)
    assert ExecutionOptions(predicts_in="bfloat16").prediction_channels_last is faster
    assert ExecutionOptions().prediction_channels_last
    assert ExecutionOptions(("cuda",), "bfloat16").prediction_channels_last
    assert not ExecutionOptions(channels_last=False).prediction_channels_last


def test_the_faster_layout_is_found_by_measuring_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "multiplies_bfloat16", lambda: True)
    for plain, last, faster in ((2.0, 1.0, True), (1.0, 2.0, False)):
        clock = iter([plain] * 4 + [last] * 4)
        monkeypatch.setattr(execution, "_seconds", lambda *_, clock=clock: next(clock))
        execution.channels_last_is_faster.cache_clear()
        assert execution.channels_last_is_faster() is faster
    execution.channels_last_is_faster.cache_clear()


def test_nothing_is_measured_where_bfloat16_is_no_instruction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(execution, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(execution, "_seconds", None)
    execution.channels_last_is_faster.cache_clear()
    assert not execution.channels_last_is_faster()
    execution.channels_last_is_faster.cache_clear()
