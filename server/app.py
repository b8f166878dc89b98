"""The Flower ServerApp: wiring only. The rounds are in ``server.rounds``."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.flower import GridFleet
from server.provisioning import Consortium
from server.scheduler import schedule

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve the consortium whose folder the executor put into the run's settings."""
    consortium = Consortium.open(Path(str(context.run_config["consortium"])))
    schedule(consortium, GridFleet(grid))
