"""The active model, kept ready on the device, and exchanged when another is installed.

Who works with a model holds it until the work is done: an exchange disturbs nobody. A model that
cannot be opened is not taken; the one before it goes on, and the reason is told once. One that was
revoked, or has expired, while it was in use does no more work.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from client.clinic.installed_models import active_model, temperatures_of
from client.clinic.released_model import Model
from client.clinic.result_folder import Origin, Segmentation
from client.clinic.segment import network_of, origin_of, segment_case
from client.imaging.case import Case
from client.imaging.nifti import Volume
from client.segmentation.calibration import AS_IT_IS, Temperatures
from client.site.execution import ExecutionOptions
from client.site.folder import Site
from common.errors import GliofedError, ModelError

LOOK_S: Final = 1.0
"""Between two looks for another active model."""

_ENDED: Final = frozenset({"model-revoked", "model-expired"})
"""Codes of failures that end the use of the model that is warm."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Warm:
    """A model with its network on the device."""

    model: Model
    network: torch.nn.Module
    temperatures: Temperatures | None
    execution: ExecutionOptions

    @property
    def name(self) -> str:
        return str(self.model.card["name"])

    @property
    def version(self) -> str:
        return str(self.model.card["version"])

    def segment(
        self, case: Case, read: Mapping[str, Volume] | None = None
    ) -> tuple[Segmentation, Origin]:
        """Segment as the local command does; raise CaseError."""
        found = segment_case(
            case,
            self.model,
            self.network,
            execution=self.execution,
            temperatures=self.temperatures or AS_IT_IS,
            read=read,
        )
        calibrated = self.temperatures is not None
        return found, origin_of(
            self.model, execution=self.execution, trusted=True, calibrated=calibrated
        )


class Keeper:
    """Holds the warm model of a site; ``told`` hears of each one taken."""

    def __init__(
        self, site: Site, execution: ExecutionOptions, *, told: Callable[[Warm], None]
    ) -> None:
        self._site, self._execution, self._told = site, execution, told
        self._seen = self._state()
        self._lock = threading.Lock()
        self._ended: ModelError | None = None
        self._warm = self._load()

    @property
    def warm(self) -> Warm:
        """The model that is ready."""
        return self._warm

    @property
    def usable(self) -> bool:
        """Whether the model may be used: it was not revoked and has not expired."""
        return self._ended is None

    def for_work(self) -> Warm:
        """Return the model for the next piece of work; raise ModelError if it is not usable."""
        if self._ended is not None:
            raise self._ended.with_traceback(None)
        return self._warm

    def look(self) -> None:
        """Take another model, or other temperatures, if some were installed since the last look."""
        with self._lock:
            state = self._state()
            if state == self._seen:
                return
            try:
                self._warm = self._load()
                self._ended = None
            except (GliofedError, OSError) as error:
                if isinstance(error, ModelError) and error.code in _ENDED:
                    self._ended = error
                _LOG.error("The model that was installed is not used. %s", error)
            self._seen = state

    def _load(self) -> Warm:
        model = active_model(self._site)
        network = network_of(model).to(self._execution.device)
        warm = Warm(model, network, temperatures_of(self._site, model), self._execution)
        self._told(warm)
        return warm

    def _state(self) -> Any:
        """Return what changes when another model may be active, calibrated or allowed."""
        folder = self._site.folder / "models"
        files = [folder / "active.json", folder / "revoked.json"]
        files += sorted(folder.glob("*.calibration.json"))
        found: list[object] = [dt.date.today()]
        for path in files:
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            found.append((path.name, facts.st_ino, facts.st_mtime_ns, facts.st_size))
        return found
