from __future__ import annotations

from typing import Any, cast

import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

import server.app
from server.transport.flower_fleet import GridFleet
from server.transport.signed_fleet import SignedFleet


def test_the_app_serves_the_consortium_that_the_executor_names(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[Any, Any]] = []
    monkeypatch.setattr(server.app, "schedule", lambda *given: served.append(given))
    folder = world.consortium.folder
    context = Context(
        run_id=1,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config={"consortium": str(folder)},
    )
    server.app.app(cast("Grid", object()), context)
    ((consortium, fleet),) = served
    assert consortium.folder == folder
    assert isinstance(fleet, SignedFleet)
    assert isinstance(fleet.fleet, GridFleet)
