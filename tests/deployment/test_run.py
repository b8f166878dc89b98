"""A whole study over real processes: two hospitals take part, one never approves."""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.views.journal_audit import audit
from common.messages.wire_format import bundle_sources
from common.trust.identity import Statement
from server.transport.flower_fleet import GridFleet, run_app
from server.transport.gateway import FLEET_CALLS
from tests.deployment.stack import Stack, running_stack, until

SITES = ("north", "south", "silent")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A consortium that is up, whose study of two rounds has ended."""
    with running_stack(tmp_path_factory.mktemp("run")) as stack:
        for seed, name in enumerate(SITES):
            stack.enrol(name, seed=seed)
        stack.publish("pilot", rounds=2, local_steps=2)
        for name in ("server", *SITES):
            stack.start(name)
        stack.wait_for_offer("pilot", *SITES)
        stack.approve("pilot", "north", "south")
        stack.call("gliofed-server", "launch", stack.coordinator, "pilot")
        yield stack


def private(stack: Stack) -> httpx.Client:
    """A client of the SuperLink's own port, which only the coordinator's machine reaches."""
    hub = stack.consortium.hub
    return httpx.Client(base_url=f"https://{hub.address}", verify=hub.client_context(), timeout=60)


def public(stack: Stack) -> httpx.Client:
    """A client of the gateway."""
    return httpx.Client(
        base_url=f"https://{stack.consortium.address}", verify=trust(stack), timeout=60
    )


def trust(stack: Stack) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(stack.coordinator / "ca.crt"))


def test_status_says_who_took_part_and_who_did_not(stack: Stack) -> None:
    report = stack.report("pilot")
    assert report["state"] == "finished"
    assert report["rounds_closed"] == 2
    assert [r["took_part"] for r in report["rounds"]] == [["north", "south"]] * 2
    assert report["not_approved"] == ["silent"]
    assert report["declined"] == {"silent": "not-approved"}
    assert {site: spent["steps"] for site, spent in report["privacy_spent"].items()} == {
        "north": 4,
        "south": 4,
    }
    assert list(report["evaluations"][-1]["dice"]) == ["north", "south"]


def test_each_hospital_recorded_what_left_it(stack: Stack) -> None:
    for name, updates in {"north": 2, "south": 2, "silent": 0}.items():
        found = audit(stack.opened(name))
        assert not found.damage
        left = [entry for entry in found.entries if entry.event == "sent"]
        assert sum(entry.facts["what"] == "weight update" for entry in left) == updates
    said = json.loads(stack.call("gliofed-site", "audit", stack.site("north"), "--all", "--json"))
    assert said["whole"] is True
    assert sum(left["what"] == "weight update" for left in said["left"]) == 2


def test_release_is_signed_and_installs(stack: Stack, tmp_path: Path) -> None:
    stack.call("gliofed-server", "release", stack.coordinator, "pilot", "--out", tmp_path / "model")
    answer = stack.call(
        "gliofed-site", "install", stack.site("north"), tmp_path / "model", "--json"
    )
    assert json.loads(answer)["active"] is True


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/runtime/get-nodes",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "//v1/control/list-nodes",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
def test_gateway_shows_nothing_but_the_fleet(stack: Stack, path: str) -> None:
    with public(stack) as door:
        assert door.post(path).status_code == 404
        assert door.get(path).status_code == 404


def test_what_the_gateway_hides_is_really_there(stack: Stack) -> None:
    with private(stack) as inside:
        for path in ("/v1/control/list-nodes", "/v1/runtime/acquire-task", *FLEET_CALLS):
            assert inside.post(path).status_code != 404, path
        assert inside.get("/docs").status_code in {200, 404}


def test_fleet_calls_need_the_key_of_an_admitted_hospital(stack: Stack) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    client = FleetHttpClient.from_server_address(
        stack.consortium.address,
        False,
        (stack.coordinator / "ca.crt").read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
        ],
    )
    stranger = public_key_to_bytes(key.public_key())
    activate = ActivateNodeRequest(public_key=stranger, heartbeat_interval=30)
    pull = PullMessagesRequest(node=Node(node_id=1))
    with client:
        for call, wanted in ((client.ActivateNode, activate), (client.PullMessages, pull)):
            with pytest.raises(httpx.HTTPStatusError) as refused:
                call(wanted)
            assert refused.value.response.status_code in {401, 403, 412}


def test_nobody_takes_a_task_without_the_secret(stack: Stack) -> None:
    client = RuntimeHttpClient(
        f"https://{stack.consortium.hub.address}",
        verify=stack.consortium.hub.client_context(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
    )
    wanted = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    with pytest.raises(httpx.HTTPStatusError) as refused:
        client.AcquireTask(wanted)
    client.close()
    assert refused.value.response.status_code in {401, 403}


def test_code_in_a_bundle_is_never_unpacked_nor_run(stack: Stack, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nfrom flwr.clientapp import "
    sources = bundle_sources()
    project = sources["pyproject.toml"].replace(b'fab-include = ["README.md"]\n', b"")
    fab, _ = build_fab_from_files(
        {
            **sources,
            "pyproject.toml": project,
            "client/__init__.py": code.encode() + b"ClientApp\n",
            "client/app.py": code.encode() + b"ClientApp\napp = ClientApp()\n",
            "server/app.py": b"from flwr.serverapp import ServerApp\napp = ServerApp()\n",
        }
    )
    run_id = start(stack, fab)
    failures: dict[str, str] = {}

    def order(grid: object, _: object) -> None:
        fleet = GridFleet(grid)  # type: ignore[arg-type]
        until(lambda: fleet.online() >= set(SITES), timeout_s=20, what="sites online")
        nodes = {node.name: node.node_id for node in grid.get_nodes()}  # type: ignore[attr-defined]
        content = RecordDict({"gliofed": ConfigRecord({"json": "{}"})})
        for name in ("north", "silent"):
            message = Message(content, dst_node_id=nodes[name], message_type=MessageType.TRAIN)
            (ticket,) = grid.push_messages([message])  # type: ignore[attr-defined]
            replies: list[Message] = []
            until(
                lambda: replies.extend(grid.pull_messages([ticket])) or replies,  # type: ignore[attr-defined] # noqa: B023
                timeout_s=30,
                what=f"answer of {name}",
            )
            failures[name] = replies[0].error.reason if replies[0].has_error() else "none"

    run_app(stack.consortium, run_id, order, patience_s=30)
    assert failures == {"north": "bundle", "silent": "bundle"}
    for name in failures:
        (refused,) = stack.opened(name).journal.events("order refused", code="bundle")
        assert refused.facts["run"] == run_id
        assert "client/app.py" in refused.facts["reason"]
    assert not marker.exists()
    unpacked = [path for path in stack.folder.rglob("*.py") if path.is_file()]
    assert unpacked == []


def start(stack: Stack, fab: bytes) -> int:
    """Start a run of any bundle, as whoever broke into the coordinator's machine could."""
    control = ControlHttpClient(
        f"https://{stack.consortium.hub.address}",
        verify=stack.consortium.hub.client_context(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    bundle = Fab(hashlib.sha256(fab).hexdigest(), fab, {})
    answer = control.StartRun(StartRunRequest(fab=fab_to_proto(bundle)))
    control.close()
    return int(answer.run_id)


def test_the_decisions_are_signed_by_the_hospitals(stack: Stack) -> None:
    for name in ("north", "south"):
        site = stack.opened(name)
        decided = site.decision("pilot")
        assert decided is not None
        (known,) = stack.journal.events("study approved", site=name)
        assert known.facts["approval"] == decided[1].to_dict()
        assert isinstance(decided[1], Statement)
