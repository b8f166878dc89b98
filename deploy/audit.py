"""Ask for known vulnerabilities of what is locked: audit.py LOCK...

One question to OSV (osv.dev), which has Python's advisories. Prints "not run" and ends well where
it is not reached: an audit that was not made is no audit that found nothing, and says so.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

DATABASE: Final = "https://api.osv.dev/v1/querybatch"
_TIMEOUT_S: Final = 20.0


def main(locks: list[Path]) -> int:
    pins = sorted({pin for path in locks for pin in pinned(path.read_text(encoding="utf-8"))})
    try:
        answers = asked(pins)
    except (OSError, ValueError) as error:
        sys.stdout.write(f"audit: not run: {DATABASE} was not reached ({error}).\n")
        return 0
    found = [
        f"{name} {version}: {one['id']}"
        for (name, version), answer in zip(pins, answers, strict=True)
        for one in answer.get("vulns", [])
    ]
    sys.stdout.write("".join(f"audit: {line}\n" for line in found))
    sys.stdout.write(f"audit: {len(pins)} packages, {len(found)} known vulnerabilities.\n")
    return 1 if found else 0


def pinned(lock: str) -> list[tuple[str, str]]:
    """Return names and versions of a lock."""
    return re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", lock, re.MULTILINE)


def asked(pins: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the database's answer for each; raise OSError or ValueError where there is none."""
    queries = [
        {"package": {"name": name, "ecosystem": "PyPI"}, "version": version.partition("+")[0]}
        for name, version in pins
    ]
    call = urllib.request.Request(
        DATABASE,
        data=json.dumps({"queries": queries}).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(call, timeout=_TIMEOUT_S) as answer:  # noqa: S310 # nosec B310
        results = json.load(answer)
    if not isinstance(results, dict) or len(results.get("results", [])) != len(pins):
        raise ValueError("it answered something else")
    return [dict(one) for one in results["results"]]


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
