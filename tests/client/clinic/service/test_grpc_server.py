"""The service, spoken to by an unmodified tritonclient and by the clinic's own command."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import nibabel as nib
import numpy as np
import pytest
import tritonclient.grpc as triton
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tritonclient.utils import InferenceServerException

from client.clinic.installed_models import activate
from client.clinic.revoked_models import take_revocations
from client.clinic.segment import network_of, segment, segment_case
from client.clinic.service import grpc_server
from client.clinic.service import model_holder as keeping
from client.clinic.service.access import read_token
from client.clinic.service.grpc_server import Terms
from client.clinic.service_process import Access, Running
from client.commands import clinic as cli
from client.imaging.case import Case, Image
from client.imaging.nifti import Volume
from common import posix
from common.errors import IdentityError, ModelError, StateError
from common.process.loopback_tls import free_port
from server.release.revocation import revoke, write_revocations
from tests.client.clinic.service.conftest import PLAIN, Serve, client, headers, inputs, volumes
from tests.client.conftest import Run
from tests.consortia import STUDY, World
from tests.scanners import write_study

SAME = [
    "familiarity",
    "volumes_ml",
    "range_ml",
    "missing",
    "grid_of",
    "confidence",
    "calibrated",
    "findings",
    "model",
    "federation",
    "together_with",
    "postprocessing",
    "precision",
    "device",
    "layout",
    "threads",
    "preparation",
    "prepared_sha256",
    "warnings",
]


class Gate:
    """Holds every segmentation until it is opened; ``begun`` counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.begun = threading.Event(), threading.Semaphore(0)
        self.count = 0
        real = keeping.segment_case

        def waits(*values: Any, **options: Any) -> Any:
            self.count += 1
            self.begun.release()
            assert self.open.wait(30)
            return real(*values, **options)

        monkeypatch.setattr(keeping, "segment_case", waits)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def until(true: Any) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_health_and_metadata(running: Running) -> None:
    with client(running) as probe:
        assert probe.is_server_live()
        assert probe.is_server_ready()
        known = headers(running)
        assert probe.get_server_metadata(known).name == "gliofed"
        assert probe.is_model_ready(STUDY, headers=known)
        assert not probe.is_model_ready(STUDY, "99", headers=known)
        assert not probe.is_model_ready("another", headers=known)
        found = probe.get_model_metadata(STUDY, headers=known)
        assert {"t1n", "t1c", "t2w", "t2f", "affine", "affine_t1c"} <= {
            i.name for i in found.inputs
        }
        assert {"segmentation", "uncertainty", "result"} <= {o.name for o in found.outputs}
        assert list(found.versions) == [running.keeper.warm.version]
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            probe.get_model_metadata("another", headers=known)
        with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
            probe.get_model_repository_index(headers=known)


def test_the_result_is_the_local_commands(
    running: Running, world: World, case: Path, tmp_path: Path
) -> None:
    local = segment(case, tmp_path / "out", world.model(1), execution=PLAIN, trusted=True)
    with client(running) as asking:
        got = asking.infer(STUDY, inputs(volumes(case)), headers=headers(running))
    mask = nib.load(tmp_path / "out" / "segmentation.nii.gz")
    assert np.array_equal(got.as_numpy("segmentation"), np.asarray(mask.dataobj))
    assert np.array_equal(got.as_numpy("affine"), mask.affine)
    percent = np.rint(100 * got.as_numpy("uncertainty")).astype(np.uint8)
    unsure = nib.load(tmp_path / "out" / "uncertainty.nii.gz")
    assert np.array_equal(percent, np.asarray(unsure.dataobj))
    result = json.loads(got.as_numpy("result")[0])
    assert {key: result[key] for key in SAME} == {key: local[key] for key in SAME}
    assert got.as_numpy("volumes_ml").tolist() == [
        local["volumes_ml"][name] for name in ("NCR", "ED", "ET", "TC", "WT")
    ]
    assert got.get_response().model_version == local["model"]["version"]


@pytest.mark.slow
def test_volumes_of_a_whole_head_fit_through(running: Running, world: World, case: Path) -> None:
    """Of 240 x 240 x 155 voxels four are 143 MB, far above gRPC's own limit of 4 MB."""
    small = volumes(case)
    scale = np.diag([0.1, 0.1, 0.1, 1.0])
    large = {
        name: Volume(
            np.ascontiguousarray(
                one.data.repeat(10, 0).repeat(10, 1).repeat(10, 2)[:240, :240, :155]
            ),
            one.affine @ scale,
        )
        for name, one in small.items()
    }
    assert {one.data.shape for one in large.values()} == {(240, 240, 155)}
    found = Case("large", "", {name: Image(Path(name)) for name in large}, None, {})
    model = world.model(1)
    local = segment_case(found, model, network_of(model), execution=PLAIN, read=large)
    with client(running) as asking:
        got = asking.infer(STUDY, inputs(large), headers=headers(running))
    assert np.array_equal(got.as_numpy("segmentation"), local.labels)
    np.testing.assert_array_equal(got.as_numpy("uncertainty"), local.uncertainty)


def test_only_what_is_asked_for_is_answered(running: Running, case: Path) -> None:
    wanted = [triton.InferRequestedOutput("volumes_ml")]
    with client(running) as asking:
        got = asking.infer(
            STUDY, inputs(volumes(case)), outputs=wanted, headers=headers(running)
        ).get_response()
    assert [one.name for one in got.outputs] == ["volumes_ml"]


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_the_clinics_command_writes_the_same_folder(
    running: Running, world: World, case: Path, tmp_path: Path, command: Run, kind: str
) -> None:
    if kind == "dicom":
        case = write_study(tmp_path / "study")
    local, there = tmp_path / "local", tmp_path / "there"
    site = ("--site", world.site.folder)
    assert command(cli.main, "segment", case, "--out", local, *site).code == 0
    server = ("--server", f"127.0.0.1:{running.port}", "--token-file", running.token)
    said = command(cli.main, "segment", case, "--out", there, *server, "--json")
    assert said.code == 0, said.out
    (local / "seal.json").unlink()  # of the site's folder, which is not where the command runs
    names = sorted(path.name for path in local.iterdir())
    assert sorted(path.name for path in there.iterdir()) == names
    assert ("segmentation.dcm" in names) == (kind == "dicom")
    for name in ("segmentation.nii.gz", "uncertainty.nii.gz", "overview.png"):
        assert (local / name).read_bytes() == (there / name).read_bytes()
    one, other = (json.loads((out / "result.json").read_text()) for out in (local, there))
    assert other == said.json
    keys = [*SAME, "inputs", "case", "study_date"]
    assert {key: one[key] for key in keys} == {key: other[key] for key in keys}


def test_twenty_at_once_and_none_is_lost(serve: Serve, cohort: Path, world: World) -> None:
    cases = sorted(path for path in cohort.iterdir() if path.is_dir())[:4]
    read = [volumes(case) for case in cases]
    with serve(terms=Terms(port=0, places=20)) as running, client(running) as asking:
        known = headers(running)

        def ask(number: int) -> tuple[int, str, bytes]:
            got = asking.infer(
                STUDY, inputs(read[number % 4]), headers=known, request_id=f"r{number}"
            )
            return (
                number,
                got.get_response().id,
                got.as_numpy("segmentation").tobytes(),
            )

        with ThreadPoolExecutor(20) as pool:
            found = list(pool.map(ask, range(20)))
    assert [identity for _, identity, _ in found] == [f"r{n}" for n in range(20)]
    by_case = [{mask for number, _, mask in found if number % 4 == n} for n in range(4)]
    assert [len(one) for one in by_case] == [1] * 4
    assert len(set.union(*by_case)) == 4


def test_a_full_line_is_said(serve: Serve, case: Path, gate: Gate) -> None:
    read = volumes(case)
    with (
        serve(terms=Terms(port=0, places=1), metrics_port=(port := free_port())) as running,
        client(running) as asking,
        ThreadPoolExecutor(2) as pool,
    ):
        known = headers(running)
        first = pool.submit(asking.infer, STUDY, inputs(read), headers=known)
        assert gate.begun.acquire(timeout=20)
        second = pool.submit(asking.infer, STUDY, inputs(read), headers=known)
        until(lambda: "gliofed_service_queue 1.0" in _metrics(port))
        with pytest.raises(InferenceServerException, match="Ask again later") as caught:
            asking.infer(STUDY, inputs(read), headers=known)
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        gate.open.set()
        assert first.result(30).as_numpy("segmentation") is not None
        assert second.result(30).as_numpy("segmentation") is not None
        said = _metrics(port)
    assert 'gliofed_service_refused_total{reason="full"} 1.0' in said
    assert 'gliofed_service_requests_total{status="RESOURCE_EXHAUSTED"} 1.0' in said
    assert f'name="{STUDY}",version="' in said


def test_nothing_is_computed_for_who_has_gone(serve: Serve, case: Path, gate: Gate) -> None:
    read = volumes(case)
    with serve() as running, client(running) as asking, ThreadPoolExecutor(1) as pool:
        known = headers(running)
        first = pool.submit(asking.infer, STUDY, inputs(read), headers=known)
        assert gate.begun.acquire(timeout=20)
        with pytest.raises(InferenceServerException) as caught:
            asking.infer(STUDY, inputs(read), headers=known, client_timeout=0.3)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        gate.open.set()
        first.result(30)
        asking.infer(STUDY, inputs(read), headers=known)
    assert gate.count == 2  # the first and the last


@pytest.mark.parametrize("given", [{}, {"authorization": "Bearer wrong"}])
def test_a_wrong_token_is_refused(
    running: Running, case: Path, tmp_path: Path, command: Run, given: dict[str, str]
) -> None:
    with client(running) as asking, pytest.raises(InferenceServerException) as caught:
        asking.infer(STUDY, inputs(volumes(case)), headers=given)
    assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
    words: list[object] = ["--server", f"127.0.0.1:{running.port}"]
    if given:
        token = tmp_path / "token"
        token.write_text("x" * 20)
        token.chmod(0o600)
        words += ["--token-file", token]
    said = command(cli.main, "segment", case, "--out", tmp_path / "out", *words, "--json")
    assert (said.code, said.json["error"]) == (11, "service-token")
    assert not (tmp_path / "out").exists()


def test_a_token_that_others_can_read_is_refused(serve: Serve, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("x" * 40)
    token.chmod(0o644)
    with pytest.raises(StateError, match="Others"), serve(access=Access(token=token)):
        pass
    token.chmod(0o600)
    token.write_text("short")
    with pytest.raises(StateError, match="at least"), serve(access=Access(token=token)):
        pass


def test_on_windows_the_mode_of_a_token_says_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("x" * 40)
    token.chmod(0o644)
    monkeypatch.setattr(posix, "POSIX", False)
    assert read_token(token) == b"x" * 40


def test_the_sites_own_token_is_a_secret(running: Running) -> None:
    assert running.token.stat().st_mode & 0o077 == 0


def test_without_the_token_no_message_is_read(serve: Serve) -> None:
    large = _tensor("t1n", "FP32", np.ones((128, 128, 32), np.float32))  # 2 MiB
    with serve(terms=Terms(port=0, max_message_mb=1)) as running, client(running) as asking:
        for known, status in (({}, "UNAUTHENTICATED"), (headers(running), "RESOURCE_EXHAUSTED")):
            with pytest.raises(InferenceServerException) as caught:
                asking.infer(STUDY, [large], headers=known)
            assert caught.value.status() == f"StatusCode.{status}"


@pytest.mark.parametrize(
    ("method", "token", "ends"),
    [
        ("ServerLive", "none", "OK"),
        ("ServerReady", "none", "OK"),
        ("ModelInfer", "none", "UNAUTHENTICATED"),
        ("ModelInfer", "Bearer wrong", "UNAUTHENTICATED"),
        ("RepositoryModelLoad", "none", "UNAUTHENTICATED"),
    ],
)
def test_calls_that_never_send_hold_no_place(
    running: Running, method: str, token: str, ends: str
) -> None:
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait(60)
        yield b""

    metadata = [] if token == "none" else [("authorization", token)]
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        call = channel.stream_unary(f"/inference.GRPCInferenceService/{method}")
        try:
            held = [call.future(nothing(), timeout=30, metadata=metadata) for _ in range(80)]
            assert {one.code().name for one in held} == {ends}
            with client(running) as own:
                assert own.get_model_metadata(STUDY, headers=headers(running))
        finally:
            never.set()


def test_a_connection_that_says_nothing_is_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = {"grpc.server_handshake_timeout_ms": 300, "grpc.max_connection_idle_ms": 300}
    limits = tuple({**dict(grpc_server._LIMITS), **soon}.items())
    monkeypatch.setattr(grpc_server, "_LIMITS", limits)
    with serve() as running:
        for said in (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])):
            with socket.create_connection(("127.0.0.1", running.port), timeout=20) as one:
                one.sendall(said)
                while one.recv(4096):
                    pass


def test_plain_text_stays_on_this_machine(serve: Serve, case: Path, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="Without TLS"), serve(terms=Terms("0.0.0.0", 0)):  # noqa: S104
        pass


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "service")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "service.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "service.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "service.crt", folder / "service.key"


def test_tls(serve: Serve, case: Path, tmp_path: Path, command: Run) -> None:
    crt, key = certificate(tmp_path)
    with serve(access=Access(crt, key)) as running:
        with client(running, ssl=True, root_certificates=str(crt)) as asking:
            got = asking.infer(STUDY, inputs(volumes(case)), headers=headers(running))
            assert got.as_numpy("segmentation").any() is not None
        out = tmp_path / "out"
        words = ("--server", f"127.0.0.1:{running.port}", "--token-file", running.token)
        assert command(cli.main, "segment", case, "--out", out, *words, "--ca", crt).code == 0
        other = tmp_path / "other"
        other.mkdir()
        wrong, _ = certificate(other)
        said = command(
            cli.main, "segment", case, "--out", tmp_path / "no", *words, "--ca", wrong, "--json"
        )
        assert (said.code, said.json["error"]) == (17, "service-unreachable")
        assert not (tmp_path / "no").exists()


def _nan(read: dict[str, Any]) -> None:
    read["t1c"].data[3, 3, 3] = np.nan


def _flat(read: dict[str, Any]) -> None:
    read["t2f"].affine[:3, 2] = 0


def _empty(read: dict[str, Any]) -> None:
    read["t1n"].data[:] = 0


def _without(*names: str) -> Any:
    def spoil(read: dict[str, Any]) -> None:
        for name in names:
            del read[name]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_nan, "t1c holds voxels that are not finite numbers"),
        (_flat, "cannot be placed in space"),
        (_empty, "t1n is empty"),
        (_without("t2w"), "request lacks t2w"),
        (_without("t1c", "t2f"), "neither t1c nor t2f"),
    ],
)
def test_bad_volumes_are_refused_in_the_products_own_words(
    running: Running, case: Path, spoil: Any, words: str
) -> None:
    read = volumes(case)
    spoil(read)
    ones = inputs(read)[:-1]
    for name, volume in read.items():
        affine = triton.InferInput(f"affine_{name}", [4, 4], "FP64")
        affine.set_data_from_numpy(np.asarray(volume.affine, np.float64))
        ones.append(affine)
    with client(running) as asking, pytest.raises(InferenceServerException, match=words) as caught:
        asking.infer(STUDY, ones, headers=headers(running))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def _tensor(name: str, kind: str, data: np.ndarray) -> triton.InferInput:
    one = triton.InferInput(name, list(data.shape), kind)
    one.set_data_from_numpy(data)
    return one


@pytest.mark.parametrize(
    ("add", "words"),
    [
        ([], "its affine is missing"),
        ([_tensor("flair", "FP32", np.ones((2, 2, 2), np.float32))], "'flair' is not known"),
        ([_tensor("affine", "FP32", np.eye(4, dtype=np.float32))], "not FP64 of 4x4"),
        ([_tensor("affine", "FP64", np.eye(3))], "not FP64 of 4x4"),
        ([_tensor("t1n", "FP32", np.ones((2, 2, 2), np.float32))], "given twice"),
    ],
)
def test_bad_tensors_are_refused(running: Running, case: Path, add: list[Any], words: str) -> None:
    with client(running) as asking, pytest.raises(InferenceServerException, match=words) as caught:
        asking.infer(STUDY, [*inputs(volumes(case))[:-1], *add], headers=headers(running))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_models_exchange_loses_no_request(serve: Serve, world: World, case: Path) -> None:
    read, before, after = volumes(case), world.model(1), world.model(2)
    told: list[str] = []
    with (
        serve(terms=Terms(port=0, places=20), told=lambda warm: told.append(warm.version)) as run,
        client(run) as asking,
        ThreadPoolExecutor(12) as pool,
    ):
        known = headers(run)
        answers = [pool.submit(asking.infer, STUDY, inputs(read), headers=known) for _ in range(12)]
        answers[0].result(30)
        assert activate(world.site, after, {"cases": 3, "dice": {"WT": 0.9}}).active
        until(lambda: run.keeper.warm.version == after.card["version"])
        answers.append(pool.submit(asking.infer, STUDY, inputs(read), headers=known))
        found = [one.result(60) for one in answers]
    versions = [one.get_response().model_version for one in found]
    assert versions[0] == before.card["version"]
    assert versions[-1] == after.card["version"]
    assert set(versions) == {before.card["version"], after.card["version"]}
    for one in found:
        result = json.loads(one.as_numpy("result")[0])
        own = before if one.get_response().model_version == before.card["version"] else after
        assert result["model"] == own.identity
    assert told == [before.card["version"], after.card["version"]]


def test_a_damaged_model_is_not_taken(serve: Serve, world: World, case: Path) -> None:
    with serve() as running, client(running) as asking:
        before = running.keeper.warm
        (world.site.folder / "models" / "active.json").write_text('{"folder": "none"}')
        running.keeper.look()
        assert running.keeper.warm is before
        got = asking.infer(STUDY, inputs(volumes(case)), headers=headers(running))
        assert got.get_response().model_version == before.version


def test_a_model_that_is_revoked_while_it_serves_does_no_more_work(
    serve: Serve, world: World, case: Path, tmp_path: Path, command: Run
) -> None:
    listed = tmp_path / "revoked.json"
    revoke(world.consortium, STUDY, number=1, by="Dr. Tamm", why="wrong labels")
    write_revocations(world.consortium, listed)
    with serve() as running, client(running) as asking:
        known = headers(running)
        assert asking.is_model_ready(STUDY, headers=known)
        take_revocations(world.site, listed)
        until(lambda: not running.keeper.usable)
        assert not asking.is_model_ready(STUDY, headers=known)
        with pytest.raises(InferenceServerException, match="was revoked on") as caught:
            asking.infer(STUDY, inputs(volumes(case)), headers=known)
        assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"
        server = ("--server", f"127.0.0.1:{running.port}", "--token-file", running.token)
        said = command(cli.main, "segment", case, "--out", tmp_path / "out", *server)
        assert said.code == ModelError.exit_code
        assert "wrong labels" in said.err
        assert not (tmp_path / "out").exists()

        assert activate(world.site, world.model(2), {"cases": 3, "dice": {"WT": 0.9}}).active
        until(lambda: running.keeper.usable)
        got = asking.infer(STUDY, inputs(volumes(case)), headers=known)
        assert got.get_response().model_version == world.model(2).card["version"]


def test_what_was_begun_is_finished_at_the_end(serve: Serve, case: Path, gate: Gate) -> None:
    read = volumes(case)
    with ThreadPoolExecutor(3) as pool:
        with serve() as running:
            asking = client(running)
            known = headers(running)
            answers = [
                pool.submit(asking.infer, STUDY, inputs(read), headers=known) for _ in range(3)
            ]
            assert gate.begun.acquire(timeout=20)
            threading.Timer(0.2, gate.open.set).start()
        assert all(one.result(30).as_numpy("segmentation") is not None for one in answers)
        with pytest.raises(InferenceServerException):
            asking.infer(STUDY, inputs(read), headers=known, client_timeout=2)
        asking.close()


def _metrics(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics").text
