"""Run a command as a process of its own; print its seconds and its peak memory, as JSON.

It loads nothing but the standard library: a child's peak begins with that of who started it.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main(command: list[str]) -> int:
    began = time.monotonic()
    child = os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)],  # what it prints is for people
    )
    _, status, used = os.wait4(child, 0)
    figures = {
        "wall_s": time.monotonic() - began,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_bytes": 1024 * used.ru_maxrss,
        "code": os.waitstatus_to_exitcode(status),
    }
    sys.stdout.write(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
