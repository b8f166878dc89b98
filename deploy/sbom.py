"""List the parts of a wheelhouse as CycloneDX 1.5 (JSON): sbom.py FOLDER.

Each wheel is a component with its digest, licence and package URL, and with what it requires here.
Read from the wheels themselves, not from what is installed: what is listed is what is shipped. Two
runs over the same wheels write the same bytes; so there is no time and no serial number in it.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def main(folder: Path) -> None:
    wheels = {
        one["name"]: (one, said) for one, said in map(component, sorted(folder.glob("*.whl")))
    }
    if "gliofed" not in wheels:
        raise SystemExit(f"sbom.py: {folder} holds no wheel of gliofed.")
    own, _ = wheels["gliofed"]
    parts = [one for name, (one, _) in sorted(wheels.items()) if name != "gliofed"]
    needs = [
        {"ref": one["bom-ref"], "dependsOn": requires(said, wheels)}
        for _, (one, said) in sorted(wheels.items())
    ]
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {**own, "type": "application"}},
        "components": parts,
        "dependencies": needs,
    }
    json.dump(bom, sys.stdout, indent=1)
    sys.stdout.write("\n")


def component(wheel: Path) -> tuple[dict[str, Any], Message]:
    with zipfile.ZipFile(wheel) as opened:
        (path,) = (n for n in opened.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        said = Parser().parsestr(opened.read(path).decode("utf-8", "replace"), headersonly=True)
    name, version = canonicalize_name(said["Name"]), said["Version"]
    purl = f"pkg:pypi/{name}@{version}"
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}],
        "properties": [{"name": "gliofed:file", "value": wheel.name}],
    }
    licence = said.get("License-Expression") or said.get("License") or ""
    if licence and "\n" not in licence and len(licence) < 100:
        kind = "expression" if said.get("License-Expression") else "license"
        found["licenses"] = [
            {"expression": licence} if kind == "expression" else {"license": {"name": licence}}
        ]
    return found, said


def requires(said: Message, wheels: dict[str, Any]) -> list[str]:
    """Return the parts that a wheel requires in this environment, of any of its extras."""
    extras = ["", *(said.get_all("Provides-Extra") or [])]
    found = set()
    for line in said.get_all("Requires-Dist") or []:
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        marker = wanted.marker
        if name in wheels and (
            marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)
        ):
            found.add(wheels[name][0]["bom-ref"])
    return sorted(found - {f"pkg:pypi/{canonicalize_name(said['Name'])}@{said['Version']}"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
