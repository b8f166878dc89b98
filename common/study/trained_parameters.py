"""Which parameters of a network a study trains, told by their names and shapes alone.

Coordinator and site must agree on it without the coordinator loading torch: the site trains and
sends exactly these arrays, the coordinator accepts exactly these. Fewer trained parameters mean
less noise under privacy (it grows with the square root of their number) and smaller messages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Final

from common.errors import ProtocolError
from common.study.protocol import TrainingOptions

_SEGRESNET: Final = {
    "norms": r"(^|\.)(norm\d+|conv_final\.0)\.(weight|bias)$",
    "head": r"(^|\.)conv_final\.\d+\.",
    "last_decoder": r"(^|\.)(up_layers|up_samples)\.{last}\.",
}
GROUPS: Final[Mapping[str, Mapping[str, str]]] = {
    "segresnet": _SEGRESNET,
    "segresnet_mingru": {**_SEGRESNET, "recurrent": r"(^|\.)bottleneck\."},
    "dynunet": {
        "norms": r"(^|\.)norm\d+\.(weight|bias)$",
        "head": r"(^|\.)output_block\.",
        "last_decoder": r"(^|\.)upsamples\.{last}\.",
    },
    "unet": {
        "norms": r"\.adn\.N\.(weight|bias)$",
        "head": r"(^|\.)model\.2\.1\.",
        "last_decoder": r"(^|\.)model\.2\.0\.",
    },
}
"""Of each network, a pattern of names for each group; ``{last}`` is the decoder's last block."""

_DECODER_BLOCK: Final = re.compile(r"(^|\.)(?:up_layers|upsamples)\.(\d+)\.")
LOW_RANK: Final = "low_rank"
"""The group of convolutions that change by a product of low rank; see ``common.messages.low_rank``.
"""

_VOLUME_KERNEL: Final = 5
"""Axes of the weight of a convolution over volumes: out, in, X, Y, Z."""


def trainable_names(names: Iterable[str], network: str, groups: tuple[str, ...]) -> tuple[str, ...]:
    """Return the sorted subset of parameter ``names`` that ``groups`` of ``network`` stand for.

    Groups: ``all``; ``norms`` (scale and shift of every normalisation); ``head`` (the last
    normalisation and convolution); ``last_decoder`` (the decoder block at full resolution);
    ``recurrent`` (what joins the slices, in a network that has it).
    Raises ProtocolError if a group has no parameter in this network.
    """
    known = sorted(names)
    if "all" in groups:
        return tuple(known)
    chosen: set[str] = set()
    for group in groups:
        known_groups = GROUPS.get(network, {})
        if group not in known_groups:
            raise ProtocolError(
                f"The network {network or 'given'} has no group of parameters named {group}.",
                do=f"Choose of: {', '.join(('all', *known_groups))}.",
                code="model-group",
            )
        last = max(
            (int(found[2]) for name in known if (found := _DECODER_BLOCK.search(name))), default=0
        )
        compiled = re.compile(known_groups[group].replace("{last}", str(last)))
        members = {name for name in known if compiled.search(name)}
        if not members:
            raise ProtocolError(
                f"The network {network} has no parameters in the group {group}.",
                do="Choose another group in training.trainable.",
            )
        chosen |= members
    return tuple(sorted(chosen))


def update_shapes(
    shapes: Mapping[str, tuple[int, ...]], network: str, options: TrainingOptions
) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each array that a site sends, sorted by name.

    These are the trained ones but those of ``local``, which stay where they are.

    Raises ProtocolError as ``trained_shapes`` and ``local_names`` do, and if nothing is left.
    """
    own = local_names(shapes, network, options)
    sent = {
        name: shape
        for name, shape in trained_shapes(shapes, network, options).items()
        if name not in own
    }
    if not sent:
        raise ProtocolError(
            "All that the study trains would stay at the sites.",
            do="Name fewer groups in training.local.",
            code="model-group",
        )
    return sent


def local_names(names: Iterable[str], network: str, options: TrainingOptions) -> tuple[str, ...]:
    """Return the sorted names of the parameters that each site keeps for itself.

    Raises ProtocolError if a group has no parameter in this network.
    """
    return trainable_names(names, network, options.local)


def trained_shapes(
    shapes: Mapping[str, tuple[int, ...]], network: str, options: TrainingOptions
) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each array that a site trains, sorted by name.

    ``shapes`` are those of all parameters. A parameter of a group that is trained in full has its
    own shape. With ``low_rank`` every other convolution's ``.weight`` of shape (o, ...) has the
    shape (o, rank), if that is fewer numbers.

    Raises ProtocolError if a group has no parameter in this network.
    """
    groups = tuple(group for group in options.trainable if group != LOW_RANK)
    chosen = {name: tuple(shapes[name]) for name in trainable_names(shapes, network, groups)}
    if LOW_RANK in options.trainable:
        thin = {
            name: (shape[0], options.rank)
            for name, shape in shapes.items()
            if name not in chosen
            and name.endswith(".weight")
            and len(shape) == _VOLUME_KERNEL
            and math.prod(shape[1:]) > options.rank
        }
        if not thin:
            raise ProtocolError(
                f"The network {network or 'given'} has no convolution to change by rank "
                f"{options.rank}.",
                do="Choose a smaller training.rank or another group in training.trainable.",
                code="model-group",
            )
        chosen |= thin
    return dict(sorted(chosen.items()))
