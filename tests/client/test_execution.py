import pytest
import torch

from client.execution import ExecutionOptions, choose_device, choose_execution, choose_precision
from client.site import Machine
from client.studies import execution_for
from common.errors import StateError


def test_choices_fit_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
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
    execution = execution_for(machine)
    assert execution.devices == devices
    wanted = settings.get("precision", "bfloat16")
    assert execution.precision == (wanted if visible else "float32")
