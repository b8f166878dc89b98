"""`gliofed-site serve`: the warm model, its line, the gRPC service, the watch and their end."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.clinic.pacs.dicomweb import send
from client.clinic.result_folder import segment_by
from client.clinic.service.access import own_token, read_token, server_credentials
from client.clinic.service.grpc_server import Service, Terms
from client.clinic.service.model_holder import LOOK_S, Keeper, Warm
from client.clinic.service.prometheus import Counters
from client.clinic.service.request_queue import Line
from client.clinic.watch.folder import Folder
from client.clinic.watch.found_study import Source
from client.clinic.watch.journal import Journal
from client.clinic.watch.orthanc import Orthanc
from client.clinic.watch.watcher import Watcher
from client.cohort.series_decisions import decisions
from client.site.execution import ExecutionOptions
from client.site.folder import Site
from client.site.preemption import clinical_job
from common.process.child_processes import repeating
from common.records.atomic_files import held

DRAIN_S: Final = 300.0


@dataclass(frozen=True)
class Access:
    """The files that say who may ask; without ``token`` the site's own, made at the first start."""

    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None


@dataclass(frozen=True)
class Watch:
    """What to watch: a folder, or the URL of an Orthanc; ``send`` stores results there,
    ``past`` begins with the studies that it has already."""

    source: str
    out: Path
    quiet_s: float = 60.0
    send: bool = False
    past: bool = False


@dataclass(frozen=True)
class Running:
    """A service that runs. ``metrics_port`` is 0 where there are none."""

    port: int
    token: Path
    keeper: Keeper
    counters: Counters


@contextlib.contextmanager
def serving(
    site: Site,
    *,
    execution: ExecutionOptions,
    terms: Terms,
    access: Access,
    metrics_port: int = 0,
    watch: Watch | None = None,
    drain_s: float = DRAIN_S,
    told: Callable[[Warm], None] = lambda _: None,
    look_s: float = LOOK_S,
) -> Iterator[Running]:
    """Serve while the block runs; then finish what was begun. Raises what its parts raise."""
    credentials = server_credentials(terms.host, access.certificate, access.key)
    path = access.token or site.folder / "keys" / "service.token"
    token = read_token(path) if access.token else own_token(path)
    counters = Counters()

    def taken(warm: Warm) -> None:
        counters.model(warm.name, warm.version, str(warm.model.card["weights_sha256"]))
        told(warm)

    keeper = Keeper(site, execution, told=taken)
    with contextlib.ExitStack() as stack:
        if metrics_port:
            stack.enter_context(counters.served(metrics_port))
        line = Line(terms.places, started=counters.waited.observe)
        counters.waiting(lambda: float(len(line)))
        stack.callback(line.close)
        service = Service(
            keeper,
            line,
            counters,
            terms=terms,
            token=token,
            credentials=credentials,
            job=lambda: clinical_job(site),
        )
        stack.callback(lambda: service.drain(within_s=drain_s))
        stack.enter_context(repeating(keeper.look, every_s=look_s))
        if watch is not None:
            stack.enter_context(_watching(site, watch, keeper, line, counters))
        yield Running(service.port, path, keeper, counters)


def until_stopped() -> None:
    """Wait for SIGTERM or SIGINT."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()


@contextlib.contextmanager
def _watching(
    site: Site, watch: Watch, keeper: Keeper, line: Line, counters: Counters
) -> Iterator[None]:
    """Watch in a thread of its own while the block runs; its work waits in the same line."""

    def work(folder: Path, place: Path) -> None:
        def there() -> None:
            with clinical_job(site):
                segment_by(
                    keeper.for_work().segment,
                    folder,
                    place,
                    decide=decisions(site),
                    sealer=(site.name, site.identity),
                )

        line.join(there, patient=True).result()

    with held(watch.out / "lock", what=f"Watching into {watch.out}"):
        store: Callable[[Path], int] | None = None
        source: Source
        if watch.source.startswith(("http://", "https://")):
            orthanc = Orthanc(watch.source, watch.out / "place.json", past=watch.past)
            source = orthanc
            if watch.send:
                store = lambda result: send(orthanc.dicomweb, result)  # noqa: E731
        else:
            source = Folder(Path(watch.source), quiet_s=watch.quiet_s)
        watcher = Watcher(
            source,
            Journal(watch.out),
            work,
            send=store,
            told=lambda outcome: counters.studies.labels(outcome).inc(),
        )
        stopping = threading.Event()
        thread = threading.Thread(target=watcher.run, args=(stopping,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()
