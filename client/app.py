"""The Flower ClientApp: wiring only; what an order does is in ``client.runtime.order_handler``."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.runtime.order_handler import Participation

app = ClientApp()
_participations: dict[str, Participation] = {}


def _answer(message: Message, context: Context) -> Message:
    folder = str(context.node_config["site"])
    if folder not in _participations:
        _participations[folder] = Participation.open(Path(folder))
    return Message(content=_participations[folder].answer(message.content), reply_to=message)


app.train()(_answer)
app.evaluate()(_answer)
app.query("offer")(_answer)
app.query("initial")(_answer)
app.query("describe")(_answer)
