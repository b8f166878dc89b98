"""The same rounds over stock Flower: FedAvg, TLS, node authentication, subprocess isolation.

The client imports torch, as any client that trains does, and answers at once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from common.process.child_processes import Child, Supervisor, script
from common.process.loopback_tls import free_port
from server.consortium import provisioning
from tests.deployment.stack import until

_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "stock"
version = "0.1.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "stock"
fab-include = ["stock/*.py"]
[tool.flwr.app.components]
serverapp = "stock.server:app"
clientapp = "stock.client:app"
[tool.flwr.app.config]
folder = "{folder}"
rounds = {rounds}
"""
_SERVER = """\
import json, time
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

@app.main()
def main(grid, context):
    folder = Path(context.run_config["folder"])
    rng = np.random.default_rng(0)
    shapes = json.loads((folder / "shapes.json").read_text())
    arrays = ArrayRecord(
        {name: Array(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}
    )
    ticks = []
    def tick(number, arrays):
        ticks.append(time.monotonic())
    FedAvg(min_train_nodes=2, min_available_nodes=2, fraction_evaluate=0.0).start(
        grid, arrays, num_rounds=context.run_config["rounds"], evaluate_fn=tick
    )
    (folder / "ticks.json").write_text(json.dumps(ticks))
"""
_CLIENT = """\
import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    rng = np.random.default_rng()
    new = {}
    for name, array in message.content["arrays"].items():
        value = array.numpy()
        noise = rng.standard_normal(value.shape, np.float32) * np.float32(1e-6)
        new[name] = Array(value + noise)
    content = {"arrays": ArrayRecord(new), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)
"""


def seconds_per_round(
    folder: Path, shapes: dict[str, tuple[int, ...]], *, rounds: int
) -> list[float]:
    """Return the seconds of each round but the first of a stock run below ``folder``."""
    consortium = provisioning.init(
        folder / "link", name="Stock", host="127.0.0.1", port=free_port()
    )
    (folder / "shapes.json").write_text(json.dumps(shapes))
    keys = [_node_key(folder / f"node-{number}.key") for number in (1, 2)]
    superlink, *nodes = _children(folder, consortium)
    with _alive([superlink]):
        control = ControlHttpClient.from_server_address(
            server_address=consortium.address,
            insecure=False,
            root_certificates=(consortium.folder / "ca.crt").read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
        until(lambda: _answers(control), timeout_s=60, what="SuperLink")
        for number, key in enumerate(keys):
            control.RegisterNode(
                RegisterNodeRequest(public_key=public_key_to_bytes(key), name=f"node-{number}")
            )
        with _alive(nodes):
            fab, _ = build_fab_from_files(
                {
                    "pyproject.toml": _PROJECT.format(folder=folder, rounds=rounds).encode(),
                    "stock/__init__.py": b"",
                    "stock/server.py": _SERVER.encode(),
                    "stock/client.py": _CLIENT.encode(),
                }
            )
            bundle = Fab(hashlib.sha256(fab).hexdigest(), fab, {})
            control.StartRun(StartRunRequest(fab=fab_to_proto(bundle)))
            until(lambda: _finished(control), timeout_s=900, what="stock run", every_s=1.0)
        control.close()
    ticks = json.loads((folder / "ticks.json").read_text())
    return [after - before for before, after in itertools.pairwise(ticks[1:])]


def _children(folder: Path, consortium: provisioning.Consortium) -> Iterator[Child]:
    link, ca = consortium.folder, str(consortium.folder / "ca.crt")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    host, port = consortium.address.split(":")
    yield Child(
        "superlink",
        [
            script("flower-superlink"),
            *("--host", host, "--port", port),
            *("--ssl-ca-certfile", ca, "--ssl-certfile", str(link / "server.crt")),
            *("--ssl-keyfile", str(link / "keys" / "server.key")),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
            *("--database", str(folder / "state.sqlite")),
        ],
        folder / "superlink.log",
        {"FLWR_HOME": str(folder / "home-link"), "PATH": path},
    )
    for number in (1, 2):
        home = folder / f"home-{number}"
        home.mkdir()
        yield Child(
            f"node-{number}",
            [
                script("flower-supernode"),
                *("--superlink", consortium.address, "--root-certificates", ca),
                *("--auth-supernode-private-key", str(folder / f"node-{number}.key")),
                *("--host", "127.0.0.1", "--port", str(free_port())),
            ],
            folder / f"node-{number}.log",
            {"FLWR_HOME": str(home), "PATH": path},
        )


@contextmanager
def _alive(children: Sequence[Child]) -> Iterator[None]:
    supervisor = Supervisor(children, told=lambda *_: None)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield
    finally:
        supervisor.stop()
        thread.join()


def _node_key(path: Path) -> ec.EllipticCurvePublicKey:
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    return key.public_key()


def _answers(control: ControlHttpClient) -> bool:
    try:
        control.ListNodes(ListNodesRequest())
    except httpx.HTTPError:
        time.sleep(0.5)
        return False
    return True


def _finished(control: ControlHttpClient) -> bool:
    runs = control.ListRuns(ListRunsRequest()).run_dict.values()
    return all(run.status.status == "finished" for run in runs)
