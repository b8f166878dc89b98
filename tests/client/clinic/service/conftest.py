"""A service that runs, and an unmodified tritonclient that talks to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from client.clinic.installed_models import activate
from client.clinic.service.grpc_server import Terms
from client.clinic.service_process import Access, Running, serving
from client.cohort.case_discovery import read_case
from client.imaging.nifti import Volume, read_volume
from client.site.execution import ExecutionOptions
from tests.consortia import World

PLAIN = ExecutionOptions(prefetch=0)
Serve = Callable[..., contextlib.AbstractContextManager[Running]]


@pytest.fixture
def case(cohort: Path) -> Path:
    return min(path for path in cohort.iterdir() if path.is_dir())


@pytest.fixture
def serve(world: World) -> Serve:
    """Return what serves the world's first release, round 1, with terms to change."""
    activate(world.site, world.model(1), {"cases": 1, "dice": {"WT": 0.1}})

    def start(**options: Any) -> contextlib.AbstractContextManager[Running]:
        terms = options.pop("terms", Terms(port=0))
        return serving(
            world.site,
            execution=PLAIN,
            terms=terms,
            access=options.pop("access", Access()),
            look_s=0.05,
            **options,
        )

    return start


@pytest.fixture
def running(serve: Serve) -> Iterator[Running]:
    with serve() as service:
        yield service


def headers(service: Running) -> dict[str, str]:
    return {"authorization": f"Bearer {service.token.read_text().strip()}"}


def client(service: Running, **options: Any) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(f"127.0.0.1:{service.port}", **options)


def volumes(folder: Path) -> dict[str, Volume]:
    case = read_case(folder)
    return {name: read_volume(image.path) for name, image in case.images.items()}


def inputs(read: dict[str, Volume]) -> list[triton.InferInput]:
    """Return what a stranger sends who read ModelMetadata: volumes, and one affine for all."""
    found = []
    for name, volume in read.items():
        one = triton.InferInput(name, list(volume.data.shape), "FP32")
        one.set_data_from_numpy(volume.data)
        found.append(one)
    affine = triton.InferInput("affine", [4, 4], "FP64")
    affine.set_data_from_numpy(np.asarray(next(iter(read.values())).affine, np.float64))
    return [*found, affine]
