"""On the path of a site's processes, makes that site an odd one; the variables say in which way.

``ODD_VERSION``: gliofed says that it is of this version. ``ODD_REPLY``: the worker's replies to
training orders are spoilt: ``bytes`` for arrays that are noise, ``nan`` for an update that is not
finite, ``form`` for a message that is no report.
"""

from __future__ import annotations

import importlib.metadata
import os
import random
import sys
from typing import Any

if odd := os.environ.get("ODD_VERSION"):
    true_version = importlib.metadata.version
    importlib.metadata.version = lambda name: odd if name == "gliofed" else true_version(name)

if (spoilt := os.environ.get("ODD_REPLY")) and "client.worker" in sys.orig_argv:
    import numpy as np
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    from client.runtime import order_handler
    from common.messages.compression import decode, plain

    honest = order_handler.let_out

    def let_out(site: Any, order: Any, protocol: Any, reply: Any) -> Any:
        content = honest(site, order, protocol, reply)
        if order.kind != "train":
            return content
        if spoilt == "form":
            return RecordDict({"strange": ConfigRecord({"json": "[" * 10_000})})
        if spoilt == "bytes":
            body = random.Random(1).randbytes(100_000)  # noqa: S311
        else:
            arrays = decode(reply.body, reply.due, reply.messages)
            body = plain({name: np.full_like(a, np.nan) for name, a in arrays.items()})
        array = Array("uint8", (len(body),), "safetensors", body)
        content["arrays"] = ArrayRecord({"safetensors": array})
        return content

    order_handler.let_out = let_out
