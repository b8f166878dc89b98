from __future__ import annotations

from pathlib import Path

from client.page.machine_load import Gpu, gpus, look

SAID = """\
NVIDIA H100 80GB HBM3, 20480, 81559, 75
NVIDIA H100 80GB HBM3 MIG 1g.10gb, [N/A], [N/A], [N/A]
NVIDIA A2, 10, 15356, [N/A]
"""


def test_what_nvidia_smi_says() -> None:
    assert gpus(SAID) == (
        Gpu("NVIDIA H100 80GB HBM3", 20480 * 2**20, 81559 * 2**20, 0.75),
        Gpu("NVIDIA A2", 10 * 2**20, 15356 * 2**20, None),
    )
    assert gpus("") == gpus("No devices were found\n") == ()


def test_this_machine(tmp_path: Path) -> None:
    found = look(tmp_path, ask=lambda: SAID)
    assert 0 < found.disk_free_bytes <= found.disk_total_bytes
    assert found.processors >= 1
    assert len(found.gpus) == 2
    assert look(tmp_path).gpus is not None  # with or without the program
