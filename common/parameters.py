"""Which parameters of a network a study trains, told by their names alone.

Coordinator and site must agree on it without the coordinator loading torch: the site trains and
sends exactly these arrays, the coordinator accepts exactly these. Fewer trained parameters mean
less noise under privacy (it grows with the square root of their number) and smaller messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from common.errors import ProtocolError

_SEGRESNET: Final = {
    "norms": re.compile(r"(^|\.)(norm\d+|conv_final\.0)\.(weight|bias)$"),
    "head": re.compile(r"(^|\.)conv_final\.\d+\."),
    "last_decoder": re.compile(r"(^|\.)(up_layers|up_samples)\.{last}\."),
}
GROUPS: Final = {"segresnet": _SEGRESNET}


def trainable_names(names: Iterable[str], network: str, groups: tuple[str, ...]) -> tuple[str, ...]:
    """Return the sorted subset of parameter ``names`` that ``groups`` of ``network`` stand for.

    Groups: ``all``; ``norms`` (scale and shift of every normalisation); ``head`` (the last
    normalisation and convolution); ``last_decoder`` (the decoder block at full resolution).
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
        pattern = known_groups[group].pattern
        last = max(
            (int(found[1]) for name in known if (found := re.search(r"up_layers\.(\d+)\.", name))),
            default=0,
        )
        compiled = re.compile(pattern.replace("{last}", str(last)))
        members = {name for name in known if compiled.search(name)}
        if not members:
            raise ProtocolError(
                f"The network {network} has no parameters in the group {group}.",
                do="Choose another group in training.trainable.",
            )
        chosen |= members
    return tuple(sorted(chosen))
