"""Name and shape of each parameter of each network, without torch: so the coordinator knows them.

The plans by which ``client.networks`` builds a network stand here, so that there is one of each.
The names are those of MONAI's layers. A test compares every name, size and option with the network
that is built. Nothing else of a protocol changes a parameter's name or shape.

Pure. Out of scope: files (``common.study.starting_weights``), which parameters a study trains
(``common.study.trained_parameters``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, get_args

from common.regions import MODALITIES, REGIONS
from common.study.protocol import NetworkName, NetworkOptions, NetworkSize

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

PREFIX: Final = "body."
"""Begins the name of each parameter: ``client.networks.padding`` wraps what MONAI built."""

PREFIX_MISSING: Final = f"But for the missing prefix {PREFIX!r}"
"""Says in ``misfit`` that weights are as MONAI itself stores them."""

MEMORY_SHARE: Final = 4
"""A direction of the minGRU remembers a quarter as many numbers as its level has channels."""

_NAMED: Final = 3
"""So many parameters are named in a sentence; of others only the number is said."""

_ALIKE: Final = 0.5
"""Share of names in common from which weights look like a network's."""


@dataclass(frozen=True)
class SegResNetPlan:
    """How wide and how deep a SegResNet is."""

    filters: int
    blocks_down: tuple[int, ...]
    blocks_up: tuple[int, ...]

    @property
    def deepest(self) -> int:
        """Channels at the coarsest level."""
        return self.filters << (len(self.blocks_down) - 1)


SEGRESNET: Final[Mapping[NetworkSize, SegResNetPlan]] = {
    "tiny": SegResNetPlan(8, (1, 1, 1), (1, 1)),
    "small": SegResNetPlan(8, (1, 2, 2, 4), (1, 1, 1)),
    "base": SegResNetPlan(16, (1, 2, 2, 4), (1, 1, 1)),
}
DYNUNET: Final[Mapping[NetworkSize, tuple[int, ...]]] = {
    "tiny": (8, 16, 32),
    "small": (16, 32, 64, 96),
    "base": (32, 64, 128, 192),
}
UNET: Final[Mapping[NetworkSize, tuple[int, ...]]] = {
    "tiny": (8, 16, 32),
    "small": (16, 32, 64, 128),
    "base": (32, 64, 128, 256),
}


def shapes(options: NetworkOptions) -> Shapes:
    """Return the shape of each parameter of the network, by name."""
    return {PREFIX + name: shape for name, shape in _SHAPES[options.name](options)}


def all_options() -> Iterator[NetworkOptions]:
    """Yield every network that a protocol can name."""
    for name in get_args(NetworkName):
        for size in get_args(NetworkSize):
            for deep in (False, True):
                if not (deep and name == "unet"):
                    yield NetworkOptions(name=name, size=size, deep_supervision=deep)


def title(options: NetworkOptions) -> str:
    """Return a network's name as a sentence has it.

    >>> title(NetworkOptions(name="dynunet", size="tiny", deep_supervision=True))
    'dynunet of size tiny with deep_supervision'
    """
    deep = " with deep_supervision" if options.deep_supervision else ""
    return f"{options.name} of size {options.size}{deep}"


def identified(found: Mapping[str, Shape]) -> NetworkOptions | None:
    """Return the network whose parameters have exactly the names and shapes ``found``, if any."""
    return next((one for one in all_options() if shapes(one) == dict(found)), None)


def misfit(found: Mapping[str, Shape], options: NetworkOptions) -> str:
    """Say how arrays of the shapes ``found`` differ from the network's, or return an empty text."""
    due = shapes(options)
    parts = []
    if lacking := sorted(due.keys() - found.keys()):
        parts.append(f"they lack {_listed(lacking)}")
    if unknown := sorted(found.keys() - due.keys()):
        parts.append(f"they have {_listed(unknown)}, which the network does not")
    if other := [name for name in sorted(due.keys() & found.keys()) if due[name] != found[name]]:
        words = [f"{n} is {_by(found[n])} there, {_by(due[n])} is expected" for n in other]
        parts.append(_listed(words, of="others differ too"))
    if not parts:
        return ""
    return f"{'; '.join(parts)}. {_likeness(found)}".strip()


def _likeness(found: Mapping[str, Shape]) -> str:
    """Say which network these shapes are of, or look like, or return an empty text."""
    if (exactly := identified(found)) is not None:
        return f"They are those of a {title(exactly)}."
    bare = identified({PREFIX + name: shape for name, shape in found.items()})
    if bare is not None:
        return f"{PREFIX_MISSING} they are those of a {title(bare)}."
    alike = {one: _share(found, shapes(one)) for one in all_options()}
    best = max(alike, key=lambda one: alike[one])
    return f"They look like a {title(best)}." if alike[best] >= _ALIKE else ""


def _share(found: Mapping[str, Shape], due: Shapes) -> float:
    """Return how alike two networks are: names in common, those of one shape counted twice."""
    both = found.keys() & due.keys()
    same = sum(found[name] == due[name] for name in both)
    return (len(both) + same) / (2 * len(found.keys() | due.keys()))


def _listed(words: Sequence[str], *, of: str = "others") -> str:
    more = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (f" and {more} {of}" if more > 0 else "")


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a single number"


_Named = Iterator[tuple[str, Shape]]


def _affine(name: str, channels: int) -> _Named:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def _pair(name: str, into: int, out: int) -> _Named:
    """Two convolutions of 3 x 3 x 3, each with its norm, as SegResNet and DynUNet call them."""
    yield f"{name}.conv1.conv.weight", (out, into, 3, 3, 3)
    yield f"{name}.conv2.conv.weight", (out, out, 3, 3, 3)
    yield from _affine(f"{name}.norm1", out)
    yield from _affine(f"{name}.norm2", out)


def _head(name: str, channels: int) -> _Named:
    yield f"{name}.weight", (len(REGIONS), channels, 1, 1, 1)
    yield f"{name}.bias", (len(REGIONS),)


def _segresnet(options: NetworkOptions) -> _Named:
    plan = SEGRESNET[options.size]
    yield "convInit.conv.weight", (plan.filters, len(MODALITIES), 3, 3, 3)
    for level, blocks in enumerate(plan.blocks_down):
        channels = plan.filters << level
        if level:
            yield f"down_layers.{level}.0.conv.weight", (channels, channels // 2, 3, 3, 3)
        for block in range(1, blocks + 1):
            yield from _pair(f"down_layers.{level}.{block}", channels, channels)
    for step, blocks in enumerate(plan.blocks_up):
        channels = plan.filters << (len(plan.blocks_up) - 1 - step)
        yield f"up_samples.{step}.0.conv.weight", (channels, 2 * channels, 1, 1, 1)
        for block in range(blocks):
            yield from _pair(f"up_layers.{step}.{block}", channels, channels)
    yield from _affine("conv_final.0", plan.filters)
    yield from _head("conv_final.2.conv", plan.filters)
    if options.deep_supervision:
        for level in range(1, len(plan.blocks_up)):
            yield from _head(f"heads.{level - 1}", plan.filters << level)


def _mingru(options: NetworkOptions) -> _Named:
    yield from _segresnet(options)
    channels = SEGRESNET[options.size].deepest
    hidden = channels // MEMORY_SHARE
    yield from _affine("bottleneck.norm1", channels)
    yield "bottleneck.gates.weight", (4 * hidden, channels, 1, 3, 3)
    yield "bottleneck.gates.bias", (4 * hidden,)
    yield "bottleneck.out.weight", (channels, 2 * hidden, 1, 1, 1)
    yield "bottleneck.out.bias", (channels,)


def _dynunet(options: NetworkOptions) -> _Named:
    filters = DYNUNET[options.size]
    yield from _pair("input_block", len(MODALITIES), filters[0])
    for level in range(1, len(filters) - 1):
        yield from _pair(f"downsamples.{level - 1}", filters[level - 1], filters[level])
    yield from _pair("bottleneck", filters[-2], filters[-1])
    for step, level in enumerate(reversed(range(len(filters) - 1))):
        into, out = filters[level + 1], filters[level]
        yield f"upsamples.{step}.transp_conv.conv.weight", (into, out, 2, 2, 2)
        yield from _pair(f"upsamples.{step}.conv_block", 2 * out, out)
    yield from _head("output_block.conv.conv", filters[0])
    if options.deep_supervision:
        for level in range(1, len(filters) - 1):
            yield from _head(f"deep_supervision_heads.{level - 1}.conv.conv", filters[level])


def _unet(options: NetworkOptions) -> _Named:
    yield from _unet_level("model", UNET[options.size], len(MODALITIES), len(REGIONS), top=True)


def _unet_level(name: str, filters: Sequence[int], into: int, out: int, *, top: bool) -> _Named:
    """Down to the channels of ``filters[0]``, all that lies below, and up to ``out`` again."""
    own, below = filters[0], f"{name}.1.submodule"
    yield from _residual_unit(f"{name}.0", into, own, kernel=3)
    if len(filters) > 2:
        yield from _unet_level(below, filters[1:], own, own, top=False)
        joined = 2 * own
    else:
        yield from _residual_unit(below, own, filters[1], kernel=1)
        joined = own + filters[1]
    yield f"{name}.2.0.conv.weight", (joined, out, 3, 3, 3)  # transposed: from, to
    yield f"{name}.2.0.conv.bias", (out,)
    yield from _activated(f"{name}.2.0", out)
    yield from _convolution(f"{name}.2.1.conv.unit0", out, out, activated=not top)


def _residual_unit(name: str, into: int, out: int, *, kernel: int) -> _Named:
    yield from _convolution(f"{name}.conv.unit0", into, out)
    yield from _convolution(f"{name}.conv.unit1", out, out)
    yield f"{name}.residual.weight", (out, into, kernel, kernel, kernel)
    yield f"{name}.residual.bias", (out,)


def _convolution(name: str, into: int, out: int, *, activated: bool = True) -> _Named:
    yield f"{name}.conv.weight", (out, into, 3, 3, 3)
    yield f"{name}.conv.bias", (out,)
    if activated:
        yield from _activated(name, out)


def _activated(name: str, channels: int) -> _Named:
    yield from _affine(f"{name}.adn.N", channels)
    yield f"{name}.adn.A.weight", (1,)


_SHAPES: Final[Mapping[str, Callable[[NetworkOptions], _Named]]] = {
    "segresnet": _segresnet,
    "segresnet_mingru": _mingru,
    "dynunet": _dynunet,
    "unet": _unet,
}
