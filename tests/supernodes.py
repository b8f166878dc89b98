"""What a SuperNode says to the gateway, and what it hears, without Flower's own client."""

from __future__ import annotations

import base64
import datetime as dt

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest, Reconnect
from flwr.proto.message_pb2 import Message, ObjectTree

from server.transport.node_signature import KEY_HEADER, SIGNATURE_HEADER, TIME_HEADER


def signed(key: ec.EllipticCurvePrivateKey, *, at: dt.datetime | str = "") -> dict[str, str]:
    """Return the headers of a call that is signed now, or as if it were another time."""
    moment = at or dt.datetime.now(dt.UTC)
    said = moment if isinstance(moment, str) else moment.isoformat()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(said.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        KEY_HEADER: base64.b64encode(pem).decode(),
        TIME_HEADER: said,
        SIGNATURE_HEADER: base64.b64encode(signature).decode(),
    }


def announced() -> bytes:
    """Return how a site announces a reply of one object."""
    return PushMessagesRequest(
        messages_list=[Message()], message_object_trees=[ObjectTree(object_id="0" * 64)]
    ).SerializeToString()


def pulled(messages: int) -> bytes:
    """Return the SuperLink's answer to ``pull-messages``, which brings so many."""
    one = Message()
    one.metadata.run_id = 2**60
    answer = PullMessagesResponse(
        reconnect=Reconnect(reconnect=5), messages_list=[one for _ in range(messages)]
    )
    return answer.SerializeToString()
