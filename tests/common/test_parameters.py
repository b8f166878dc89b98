import pytest

from common.errors import ProtocolError
from common.parameters import trainable_names

NAMES = (
    "convInit.conv.weight",
    "down_layers.0.1.norm1.weight",
    "down_layers.0.1.norm1.bias",
    "down_layers.0.1.conv1.conv.weight",
    "up_layers.0.0.norm2.weight",
    "up_layers.0.0.conv2.conv.weight",
    "up_layers.1.0.norm2.weight",
    "up_layers.1.0.conv2.conv.weight",
    "up_samples.0.0.conv.weight",
    "up_samples.1.0.conv.weight",
    "conv_final.0.weight",
    "conv_final.0.bias",
    "conv_final.2.conv.weight",
    "conv_final.2.conv.bias",
)
CHOSEN = {
    ("all",): set(NAMES),
    ("norms",): {name for name in NAMES if ".norm" in name or "final.0" in name},
    ("head",): {name for name in NAMES if "conv_final" in name},
    ("last_decoder",): {name for name in NAMES if name.startswith(("up_layers.1", "up_samples.1"))},
}


@pytest.mark.parametrize(("groups", "expected"), CHOSEN.items())
def test_groups(groups: tuple[str, ...], expected: set[str]) -> None:
    assert trainable_names(NAMES, "segresnet", groups) == tuple(sorted(expected))


def test_groups_add_up_and_the_order_of_names_does_not_matter() -> None:
    both = trainable_names(reversed(NAMES), "segresnet", ("head", "norms"))
    assert both == tuple(sorted(CHOSEN["head",] | CHOSEN["norms",]))


@pytest.mark.parametrize(
    ("names", "network", "groups", "said"),
    [
        (NAMES, "segresnet", ("encoder",), "no group of parameters named encoder"),
        (NAMES, "unet", ("head",), "unet has no group"),
        (NAMES, "", ("head",), "given has no group"),
        (("other.weight",), "segresnet", ("head",), "no parameters in the group head"),
        (("other.weight",), "segresnet", ("last_decoder",), "no parameters in the group"),
    ],
)
def test_a_group_without_parameters_is_refused(
    names: tuple[str, ...], network: str, groups: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ProtocolError, match=said):
        trainable_names(names, network, groups)
