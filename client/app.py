"""The Flower ClientApp: wiring only; what an order does is in ``client.runtime.order_handler``."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.runtime.authentic_orders import AuthenticOrders
from client.runtime.order_handler import Participation
from client.site.folder import Site

app = ClientApp()
_sites: dict[str, tuple[AuthenticOrders, Participation]] = {}


def _answer(message: Message, context: Context) -> Message:
    folder = str(context.node_config["site"])
    if folder not in _sites:
        site = Site.open(Path(folder))
        _sites[folder] = AuthenticOrders(site), Participation(site)
    orders, participation = _sites[folder]
    nonce = orders.nonce(message.content)
    reply = participation.answer(message.content)
    return Message(content=orders.signed(reply, nonce=nonce), reply_to=message)


app.train()(_answer)
app.evaluate()(_answer)
app.query("offer")(_answer)
app.query("initial")(_answer)
app.query("describe")(_answer)
