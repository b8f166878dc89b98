"""Processes that tests and benchmarks start, all of which end with the Python that started them.

Even when that one is killed with SIGKILL, no test and no benchmark leaves a process behind (on
Linux; elsewhere they start as usual).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Final

from common.process.child_processes import die_with_parent

_WITH_ITS_GROUP: Final = """\
import ctypes, os, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
code = subprocess.call(sys.argv[1:])
sys.exit(code if code >= 0 else 128 - code)
"""
"""Runs a command; kills it and all that it started in its group when its own parent ends."""


def start(command: Sequence[object], **options: Any) -> subprocess.Popen[Any]:
    """Start a program, as ``subprocess.Popen`` does with the same options.

    It is killed when this thread ends, so it must itself see to what it starts: a supervisor does,
    a shell does not (``run`` does it for a shell).
    """
    return subprocess.Popen(
        [str(word) for word in command],
        preexec_fn=die_with_parent if sys.platform == "linux" else None,
        **options,
    )


def run(
    command: Sequence[object],
    *,
    timeout: float | None = None,
    check: bool = False,
    capture_output: bool = False,
    input: str | bytes | None = None,  # noqa: A002  as subprocess calls it
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, as ``subprocess.run`` does with the same options.

    All that it has started in its process group is killed when it takes too long, and when this
    Python ends before it does.
    """
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options |= {"stdin": subprocess.PIPE}
    words = [str(word) for word in command]
    keeper = [sys.executable, "-I", "-S", "-c", _WITH_ITS_GROUP] if sys.platform == "linux" else []
    with start([*keeper, *words], start_new_session=True, **options) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    done = subprocess.CompletedProcess(words, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done
