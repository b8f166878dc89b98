"""What lies in deploy/ is what its users' own tools take: systemd, nginx, Docker, Compose, Helm."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from common.process.loopback_tls import free_port
from server.consortium.provisioning import Consortium
from tests import children
from tests.deployment.stack import until
from tests.doors import door
from tests.programs import needed

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
ROLES = ("coordinator", "site", "clinic")
DIGEST = "sha256:" + "a" * 64
VARIABLES = {
    "GLIOFED_DATA": "/srv/gliofed",
    "GLIOFED_SCANS": "/srv/mri",
    "GLIOFED_MODEL": "/srv/model",
    "GLIOFED_CASE": "/srv/case",
    "GLIOFED_RESULTS": "/srv/results",
}
CHARTS = {
    "coordinator": {"image.digest": DIGEST},
    "site": {"image.digest": DIGEST, "scans.claim": "mri", "coordinator.cidr": "192.0.2.10/32"},
}


def call(*words: object, environment: Mapping[str, str] | None = None) -> str:
    """Run a program to its end; return what it printed, errors included."""
    done = children.run(
        [str(word) for word in words],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(params=["as it is", "with a GPU"])
def installed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A root folder with the units, and with programs where they are looked for."""
    units = tmp_path / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(unit, units)
        if request.param == "with a GPU" and "server" not in unit.name:
            drop = units / f"{unit.name}.d"
            drop.mkdir()
            shutil.copy(DEPLOY / "systemd" / "gpu.conf", drop)
    # The targets that the units name are the machine's own.
    system = Path("/usr/lib/systemd/system")
    if system.exists():
        shutil.copytree(system, tmp_path / system.relative_to("/"), symlinks=True)
        (tmp_path / "lib").symlink_to("usr/lib")
    programs = tmp_path / "opt" / "gliofed" / "bin"
    programs.mkdir(parents=True)
    for name in ("gliofed-server", "gliofed-site"):
        (programs / name).touch(0o755)
    return tmp_path


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_hardened(unit: Path, installed: Path) -> None:
    """Exposure is from 0 to 10; above 2.5 a unit would not be said to be hardened."""
    said = call(
        needed("systemd-analyze"),
        "security",
        "--offline=true",
        f"--root={installed}",
        "--threshold=25",
        "--no-pager",
        unit.name,
    )
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert float(exposure) <= 2.5


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_understood(unit: Path, installed: Path) -> None:
    said = call(needed("systemd-analyze"), "verify", f"--root={installed}", "--man=no", unit.name)
    assert [line for line in said.splitlines() if "gliofed" in line] == []


def test_a_unit_that_is_wrong_is_found(installed: Path) -> None:
    unit = installed / "etc" / "systemd" / "system" / "gliofed-site.service"
    unit.write_text(unit.read_text().replace("RestrictRealtime=yes", "RestrictRealtme=yes"))
    said = call(needed("systemd-analyze"), "verify", f"--root={installed}", "--man=no", unit.name)
    assert "Unknown key 'RestrictRealtme'" in said


def nginx() -> str:
    return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or needed("nginx")


def nginx_settings(folder: Path, example: Path) -> Path:
    settings = folder / "nginx.conf"
    settings.write_text(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n"
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log stderr;\n"
        f"events {{}}\ninclude {example};\n"
    )
    return settings


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_nginx_takes_its_example(tmp_path: Path) -> None:
    call(nginx(), "-t", "-c", nginx_settings(tmp_path, DEPLOY / "nginx" / "gliofed.conf"))


def test_nginx_passes_the_consortiums_name_through_and_nothing_else(
    consortium: Consortium, tmp_path: Path
) -> None:
    outside, inside = free_port(), consortium.settings.port
    example = (DEPLOY / "nginx" / "gliofed.conf").read_text()
    for here, there in {
        "fl.example.org": "localhost",
        "192.0.2.10:9443": f"127.0.0.1:{inside}",
        "listen 9443": f"listen 127.0.0.1:{outside}",
    }.items():
        assert here in example
        example = example.replace(here, there)
    changed = tmp_path / "example.conf"
    changed.write_text(example)
    trust = ssl.create_default_context(cafile=str(consortium.folder / "ca.crt"))
    with door(consortium, inside):
        process = children.start([nginx(), "-c", nginx_settings(tmp_path, changed)])
        try:
            until(lambda: listens(outside), timeout_s=20, what="nginx")
            with httpx.Client(verify=trust, trust_env=False) as client:
                assert client.get(f"https://localhost:{outside}/").status_code == 404
                with pytest.raises(httpx.TransportError):
                    client.get(f"https://127.0.0.1:{outside}/")
        finally:
            process.terminate()
            process.wait(20)


@pytest.mark.parametrize("role", ROLES)
def test_images_are_as_the_linter_wants_them(role: str) -> None:
    # DL3059 would have RUN lines joined, which takes a shell.
    call(needed("hadolint"), "--ignore", "DL3059", DEPLOY / role / "Dockerfile")


@pytest.mark.parametrize("role", ROLES)
def test_images_hold_to_their_rules(role: str) -> None:
    lines = (DEPLOY / role / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert all(
        rest.endswith("}@${BASE_DIGEST}") or " AS " in rest
        for word, rest in steps
        if word == "FROM"
    )
    assert ["ARG", "BASE_DIGEST"] in steps, "the digest must have no default"
    for word, rest in steps:
        if word in {"RUN", "CMD", "ENTRYPOINT"}:
            assert isinstance(json.loads(rest), list), f"a shell would read: {rest}"
    assert [rest for word, rest in steps if word == "USER"] == ["10001:10001"]
    assert sum(word == "HEALTHCHECK" for word, _ in steps) == 1
    installs = [rest for word, rest in steps if word == "RUN" and "pip" in rest]
    assert installs
    assert all('"--no-index"' in rest for rest in installs)


@pytest.mark.parametrize(
    "files",
    [
        ("coordinator/compose.yaml",),
        ("site/compose.yaml",),
        ("site/compose.yaml", "site/compose.gpu.yaml"),
        ("clinic/compose.yaml",),
    ],
    ids=lambda files: "+".join(files),
)
def test_compose_takes_its_files(files: tuple[str, ...]) -> None:
    program = needed("docker-compose")
    words = [word for name in files for word in ("-f", str(DEPLOY / name))]
    said = yaml.safe_load(call(program, *words, "config", environment=VARIABLES))
    (service,) = said["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["user"] == "10001:10001"
    assert "privileged" not in service
    if "site/compose.gpu.yaml" in files:
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"


def test_compose_says_what_it_was_not_given() -> None:
    done = children.run(
        [needed("docker-compose"), "-f", DEPLOY / "site" / "compose.yaml", "config"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "GLIOFED_DATA" in done.stderr


def rendered(chart: str, **others: str) -> list[dict[str, Any]]:
    words = [f"--set={key}={value}" for key, value in {**CHARTS[chart], **others}.items()]
    return list(
        yaml.safe_load_all(call(needed("helm"), "template", "it", DEPLOY / "helm" / chart, *words))
    )


@pytest.mark.parametrize(("outside", "inside"), [("443", 9443), ("8443", 9443)])
def test_a_chart_leads_what_hospitals_call_to_where_the_gateway_listens(
    outside: str, inside: int
) -> None:
    objects = {one["kind"]: one for one in rendered("coordinator", port=outside)}
    (service,) = objects["Service"]["spec"]["ports"]
    assert service == {"name": "gateway", "port": int(outside), "targetPort": "gateway"}
    (container,) = objects["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "gateway", "containerPort": inside}]
    (allowed,) = objects["NetworkPolicy"]["spec"]["ingress"]
    assert allowed["ports"] == [{"port": inside, "protocol": "TCP"}]


@pytest.mark.parametrize("chart", sorted(CHARTS))
def test_charts_render_to_what_kubernetes_knows(chart: str, tmp_path: Path) -> None:
    validate = needed("kubernetes-validate")
    objects = rendered(chart)
    path = tmp_path / "rendered.yaml"
    path.write_text(yaml.safe_dump_all(objects))
    for version in ("1.33", "1.37"):
        call(validate, "--strict", "-k", version, path)
    (workload,) = (one for one in objects if one["kind"] == "StatefulSet")
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["image"].endswith(f"@{DIGEST}")
    assert workload["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    assert "livenessProbe" in container


@pytest.mark.parametrize("chart", sorted(CHARTS))
def test_openshift_chooses_the_users_itself(chart: str) -> None:
    """Its constraint refuses a number that is not of the project's own range."""
    for asked, numbers in (("10001", {10001}), ("null", set())):
        (workload,) = (one for one in rendered(chart, user=asked) if one["kind"] == "StatefulSet")
        context = workload["spec"]["template"]["spec"]["securityContext"]
        kinds = ("runAsUser", "runAsGroup", "fsGroup")
        assert {context[kind] for kind in kinds if kind in context} == numbers
        assert context["runAsNonRoot"] is True


def test_kubernetes_validation_finds_what_is_wrong(tmp_path: Path) -> None:
    (workload,) = (one for one in rendered("site") if one["kind"] == "StatefulSet")
    workload["spec"]["replica"] = 1
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(workload))
    with pytest.raises(AssertionError, match="replica"):
        call(needed("kubernetes-validate"), "--strict", path)


@pytest.mark.parametrize("chart", sorted(CHARTS))
def test_a_chart_that_is_set_up_only_waits(chart: str) -> None:
    (workload,) = (one for one in rendered(chart, setup="true") if one["kind"] == "StatefulSet")
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["sleep", "infinity"]
    assert "livenessProbe" not in container


def test_only_the_gateway_is_reached_and_nobody_calls_a_site() -> None:
    policies = {
        chart: next(one["spec"] for one in rendered(chart) if one["kind"] == "NetworkPolicy")
        for chart in CHARTS
    }
    assert policies["coordinator"]["ingress"] == [{"ports": [{"port": 9443, "protocol": "TCP"}]}]
    assert policies["coordinator"]["egress"] == []
    assert policies["site"]["ingress"] == []
    assert {one["kind"] for one in rendered("site")} == {"StatefulSet", "NetworkPolicy"}


@pytest.mark.parametrize("chart", sorted(CHARTS))
def test_an_image_without_a_digest_is_refused(chart: str) -> None:
    with pytest.raises(AssertionError, match=r"image\.digest"):
        rendered(chart, **{"image.digest": ""})
