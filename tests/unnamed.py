"""Programs run as in a container: by a number without a name, without a home, on a read-only disk.

The number is in group 0, as OpenShift has it. One folder can be written, and it is the current one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.guides import ROOT
from tests.programs import needed

NUMBER: Final = 1000670000

_ENTER: Final = """
set -eu
mount --make-rprivate /
mount --bind "$WRITABLE" "$WRITABLE"
cut -d' ' -f5 /proc/self/mountinfo | while read -r where; do
    case "$where" in
        "$WRITABLE" | /proc | /proc/* | /sys | /sys/* | /dev | /dev/*) ;;
        *) mount -o remount,bind,ro "$where" ;;
    esac
done
cd "$WRITABLE"
umask "$MASK"
exec unshare --user --map-user="$NUMBER" --map-group=0 env -i "$@"
"""


def unnamed(
    words: Sequence[object],
    *,
    writable: Path,
    environment: Mapping[str, str] | None = None,
    umask: str = "0007",
) -> subprocess.CompletedProcess[str]:
    """Run a program in ``writable``, with this Python's programs first in its path."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("CI runs as root, and this test needs that")
        pytest.skip("only root can make the disk read-only")
    inner = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
    }
    return subprocess.run(
        [
            *(needed("unshare"), "--mount", "sh", "-c", _ENTER, "sh"),
            *(f"{name}={value}" for name, value in inner.items()),
            *map(str, words),
        ],
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "WRITABLE": str(writable),
            "NUMBER": str(NUMBER),
            "MASK": umask,
        },
        capture_output=True,
        text=True,
        check=False,
    )
