"""Look into and change the arrays of a message, as someone who tampers with it would."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord
from safetensors.numpy import load, save

from common.messages.wire_format import Content

FORMAT = "safetensors"


def arrays_of(content: Content) -> dict[str, np.ndarray]:
    return dict(load(content.array_records["arrays"][FORMAT].data))


def with_body(content: Content, data: bytes) -> Content:
    content["arrays"] = ArrayRecord({FORMAT: Array("uint8", (len(data),), FORMAT, data)})
    return content


def with_arrays(content: Content, arrays: Mapping[str, np.ndarray]) -> Content:
    return with_body(content, save(dict(arrays)))
