import pytest

from common.errors import ProtocolError
from common.study.protocol import TrainingOptions
from common.study.trained_parameters import (
    local_names,
    trainable_names,
    trained_shapes,
    update_shapes,
)

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
        (NAMES, "resnet", ("head",), "resnet has no group"),
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


SHAPES = {
    name: (8, 8, 3, 3, 3)
    if name.endswith("conv.weight")
    else (3,)
    if name.endswith("conv.bias")
    else (8,)
    for name in NAMES
} | {"up_samples.0.0.conv.weight": (8, 16, 1, 1, 1), "conv_final.2.conv.weight": (3, 8, 1, 1, 1)}
CONVOLUTIONS = {name for name in NAMES if name.endswith("conv.weight")}


@pytest.mark.parametrize(
    ("groups", "rank", "full", "thin"),
    [
        (("all",), 8, set(NAMES), set()),
        (("norms",), 8, CHOSEN["norms",], set()),
        # Eight columns are no more numbers than eight factors.
        (("low_rank",), 8, set(), CONVOLUTIONS - {"conv_final.2.conv.weight"}),
        (("low_rank",), 7, set(), CONVOLUTIONS),
        (
            ("low_rank",),
            16,
            set(),
            CONVOLUTIONS - {"conv_final.2.conv.weight", "up_samples.0.0.conv.weight"},
        ),
        (("norms", "low_rank"), 7, CHOSEN["norms",], CONVOLUTIONS),
        (
            ("low_rank", "last_decoder", "head"),
            4,
            CHOSEN["last_decoder",] | CHOSEN["head",],
            CONVOLUTIONS - CHOSEN["last_decoder",] - CHOSEN["head",],
        ),
    ],
)
def test_shapes_of_what_a_site_sends(
    groups: tuple[str, ...], rank: int, full: set[str], thin: set[str]
) -> None:
    options = TrainingOptions.model_validate(
        {"local_steps": 1, "learning_rate": 1, "trainable": groups, "rank": rank}
    )
    found = update_shapes(SHAPES, "segresnet", options)
    assert list(found) == sorted(full | thin)
    assert found == {
        name: (SHAPES[name][0], rank) if name in thin else SHAPES[name] for name in full | thin
    }


def test_low_rank_needs_no_names_of_a_network_but_convolutions() -> None:
    options = TrainingOptions(local_steps=1, learning_rate=1, trainable=("low_rank",))
    shapes = {"x.weight": (6, 4, 3, 3, 3), "linear.weight": (6, 400), "x.kernel": (6, 4, 3, 3, 3)}
    assert update_shapes(shapes, "", options) == {"x.weight": (6, 8)}
    with pytest.raises(ProtocolError, match="no convolution to change by rank 8") as error:
        update_shapes({"linear.weight": (6, 400)}, "", options)
    assert error.value.code == "model-group"
    with pytest.raises(ProtocolError, match="no group of parameters named low_rank"):
        trainable_names(shapes, "segresnet", ("low_rank",))


@pytest.mark.parametrize(
    ("trainable", "local", "sent"),
    [
        (("all",), ("norms",), set(NAMES) - CHOSEN["norms",]),
        (("all",), ("norms", "head"), set(NAMES) - CHOSEN["norms",] - CHOSEN["head",]),
        (("norms", "head"), ("norms",), CHOSEN["head",] - CHOSEN["norms",]),
        (("norms", "low_rank"), ("norms",), CONVOLUTIONS),
    ],
)
def test_local_groups_are_trained_and_not_sent(
    trainable: tuple[str, ...], local: tuple[str, ...], sent: set[str]
) -> None:
    options = TrainingOptions.model_validate(
        {"local_steps": 1, "learning_rate": 1, "trainable": trainable, "local": local, "rank": 7}
    )
    own = set(local_names(SHAPES, "segresnet", options))
    trained = trained_shapes(SHAPES, "segresnet", options)
    assert set(update_shapes(SHAPES, "segresnet", options)) == sent
    assert set(trained) == sent | own
    assert not own & sent
    assert all(trained[name] == SHAPES[name] for name in own)


def test_something_must_be_sent() -> None:
    options = TrainingOptions(
        local_steps=1, learning_rate=1, trainable=("norms", "head"), local=("head", "norms")
    )
    with pytest.raises(ProtocolError, match="would stay at the sites") as error:
        update_shapes(SHAPES, "segresnet", options)
    assert error.value.code == "model-group"
