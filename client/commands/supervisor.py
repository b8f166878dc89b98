"""What `gliofed-site run` keeps alive: the SuperNode, the worker, and the page if it is wanted."""

from __future__ import annotations

import os
import sys

from client.site.folder import Site
from common.process.child_processes import Child
from common.process.proxies import variables
from common.web.listen_address import Place


def children(site: Site, *, page: Place | None = None, metrics: Place | None = None) -> list[Child]:
    """Return the site's processes in the order in which they start.

    ``page`` and ``metrics`` are where the site's page and its figures are served, if at all: by a
    process of their own, which the others do without. Raises StateError if the proxy that the
    SuperNode is to take cannot be used; of the environment's proxies it alone is told.
    """
    folder = site.folder
    proxy = site.proxy(os.environ)
    flower = folder / "flower"
    (flower / "home").mkdir(parents=True, exist_ok=True)
    site.runtime.create()
    node = [
        *(sys.executable, "-m", "client.runtime.supernode", str(folder)),
        *("--superlink", site.kit.address),
        *("--root-certificates", str(folder / "ca.crt")),
        *("--auth-supernode-private-key", str(folder / "keys" / "node.key")),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(site.superexec_secret)),
    ]
    worker = [sys.executable, "-m", "client.worker", str(folder)]
    log = flower / "log"
    environment = {"FLWR_HOME": str(flower / "home")}
    watched = [folder / "ca.crt", folder / "keys" / "node.key"]
    if site.settings.network.proxy_password_file:
        watched.append(folder / site.settings.network.proxy_password_file)
    if proxy is not None and proxy.authority is not None:
        watched.append(proxy.authority)
    made = [
        Child(
            "supernode",
            node,
            log / "supernode.log",
            {**variables(os.environ), **environment},
            watches=tuple(watched),
            cut_by=(site.stopped,),  # what is being sent
        ),
        Child("worker", worker, log / "worker.log", environment, ends=("supernode",)),
    ]
    if page is not None or metrics is not None:
        places = ["-" if one is None else f"{one.host}:{one.port}" for one in (page, metrics)]
        command = [sys.executable, "-m", "client.page", str(folder), *places]
        made.append(Child("page", command, log / "page.log", environment))
    return made
