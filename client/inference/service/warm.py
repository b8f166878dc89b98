"""The active model, kept ready on the device, and exchanged when another is installed.

Who works with a model holds it until the work is done: an exchange disturbs nobody. A model that
cannot be opened is not taken; the one before it goes on, and the reason is told once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from client.calibration import AS_IT_IS, Temperatures
from client.imaging.case import Case
from client.imaging.nifti import Volume
from client.inference.installed import active_model, temperatures_of
from client.inference.model import Model
from client.inference.result_folder import Origin, Segmentation
from client.inference.segment import network_of, origin_of, segment_case
from client.site import Site
from client.training import ExecutionOptions
from common.errors import GliofedError

LOOK_S: Final = 1.0
"""Between two looks for another active model."""

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
        self._warm = self._load()

    @property
    def warm(self) -> Warm:
        """The model for the next piece of work."""
        return self._warm

    def look(self) -> None:
        """Take another model, or other temperatures, if some were installed since the last look."""
        with self._lock:
            state = self._state()
            if state == self._seen:
                return
            try:
                self._warm = self._load()
            except (GliofedError, OSError) as error:
                _LOG.error("The model that was installed is not used. %s", error)
            self._seen = state

    def _load(self) -> Warm:
        model = active_model(self._site)
        network = network_of(model).to(self._execution.device)
        warm = Warm(model, network, temperatures_of(self._site, model), self._execution)
        self._told(warm)
        return warm

    def _state(self) -> Any:
        """Return what changes with the files that say which model is active and calibrated."""
        folder = self._site.folder / "models"
        files = [folder / "active.json", *sorted(folder.glob("*.calibration.json"))]
        found = []
        for path in files:
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            found.append((path.name, facts.st_ino, facts.st_mtime_ns, facts.st_size))
        return found
