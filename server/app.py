"""The Flower ServerApp: wiring only. The rounds are in ``server.rounds.round_loop``."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.consortium.provisioning import Consortium
from server.rounds.study_scheduler import schedule
from server.transport.flower_fleet import GridFleet
from server.transport.signed_fleet import SignedFleet

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve the consortium whose folder the executor put into the run's settings."""
    consortium = Consortium.open(Path(str(context.run_config["consortium"])))
    fleet = SignedFleet(GridFleet(grid), lambda: consortium.identity, consortium.sites)
    schedule(consortium, fleet)
