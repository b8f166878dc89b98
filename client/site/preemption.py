"""Training yields: while a clinical job runs at the site, or once the hospital has stopped it, no
training step begins.

A clinical job holds the site's ``clinic.lock`` as long as its process runs; several may hold it at
once. A step that has begun is finished first. Waiting changes nothing of what is computed or what
it costs in privacy: a step is charged after the wait. A stop ends the training instead.

Out of scope: a round that waits beyond its deadline, which the coordinator closes without this
site.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Final

import torch

from client.site.folder import Site
from client.site.stop import check_not_halted
from common.errors import StateError
from common.records.atomic_files import held, is_held

_LOG = logging.getLogger(__name__)

POLL_S: Final = 1.0
"""Between two looks for the end of a clinical job."""


@contextlib.contextmanager
def clinical_job(site: Site) -> Iterator[None]:
    """Ask the site's training to wait while the block runs. The block runs in any case."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(site.clinic_lock, what="A clinical job begins", shared=True))
        except (StateError, OSError) as error:
            _LOG.warning("Training at this site will not wait for this job. %s", error)
        yield


def yielding(
    site: Site, *, poll_s: float = POLL_S, sleep: Callable[[float], None] = time.sleep
) -> Callable[[], None]:
    """Return what waits, before a step, until no clinical job runs at the site.

    It raises ConsentError (code ``site-stopped``) once the hospital has stopped the site.
    """

    def wait() -> None:
        check_not_halted(site)
        if not _busy(site):
            return
        began = time.monotonic()
        _LOG.warning("Training waits: a clinical job runs at this site.")
        torch.cuda.empty_cache()  # memory that no tensor uses; nothing without CUDA
        while _busy(site):
            sleep(poll_s)
            check_not_halted(site)
        _LOG.warning("Training goes on after %.0f s.", time.monotonic() - began)

    return wait


def _busy(site: Site) -> bool:
    try:
        return is_held(site.clinic_lock)
    except OSError as error:  # a lock that cannot be seen must not end the training
        _LOG.warning("Nobody can tell whether a clinical job runs at this site. %s", error)
        return False
