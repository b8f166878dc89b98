"""``gliofed-site run`` with the worker of ``idle_worker``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from client.commands import supervisor as site_supervisor
from client.site.folder import Site
from common import console
from common.process.child_processes import Supervisor, stop_on_signals


def main(folder: Path) -> None:
    children = [
        dataclasses.replace(
            child,
            command=[
                "tests.benchmarks.idle_worker" if word == "client.worker" else word
                for word in child.command
            ],
        )
        for child in site_supervisor.children(Site.open(folder))
    ]
    supervisor = Supervisor(
        children, told=lambda name, event, detail: console.say(f"{name} {event} ({detail})")
    )
    stop_on_signals(supervisor)
    supervisor.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
