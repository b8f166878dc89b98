import pytest
import torch
from monai.losses.focal_loss import FocalLoss
from torch.nn import functional

from client.training.losses import LOSSES, dice_bce, dice_focal, over_levels


def some(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=made, dtype=torch.float64)
    return logits, torch.randint(0, 2, shape, generator=made)


@pytest.mark.parametrize("name", LOSSES)
def test_a_sample_has_its_own_loss(name: str) -> None:
    loss = LOSSES[name]
    logits, truth = some(0, 3, 3, 6, 5, 4)
    alone = torch.cat([loss(logits[k : k + 1], truth[k : k + 1]) for k in range(3)])
    assert torch.allclose(loss(logits, truth), alone)
    assert loss((truth - 0.5) * 200, truth).max() < 1e-6
    assert loss((0.5 - truth) * 200, truth).min() > 1


def test_focal_entropy_is_that_of_monai() -> None:
    logits, truth = some(1, 2, 3, 6, 5, 4)
    entropy = functional.binary_cross_entropy_with_logits(
        logits, truth.double(), reduction="none"
    ).flatten(1)
    found = dice_focal(logits, truth) - dice_bce(logits, truth) + entropy.mean(1)
    theirs = FocalLoss(gamma=2.0, reduction="none")(logits, truth.double()).flatten(1).mean(1)
    assert torch.allclose(found, theirs.double(), atol=1e-6)


def test_levels_weigh_half_of_the_finer_one() -> None:
    logits, truth = some(2, 2, 3, 7, 6, 4)
    half, _ = some(3, 2, 3, 4, 3, 2)
    quarter, _ = some(4, 2, 3, 2, 2, 1)
    coarse = functional.avg_pool3d(truth.double(), 2, ceil_mode=True, count_include_pad=False)
    coarser = functional.avg_pool3d(coarse, 2, ceil_mode=True, count_include_pad=False)
    expected = (
        4 * dice_bce(logits, truth) + 2 * dice_bce(half, coarse) + dice_bce(quarter, coarser)
    ) / 7
    assert torch.allclose(over_levels(dice_bce, [logits, half, quarter], truth), expected)
    assert torch.equal(over_levels(dice_bce, [logits], truth), dice_bce(logits, truth))
    # The truth of a coarser voxel is the share of what it covers, also at the border.
    full = functional.avg_pool3d(
        torch.ones(1, 1, 7, 6, 5), 2, ceil_mode=True, count_include_pad=False
    )
    assert torch.equal(full, torch.ones(1, 1, 4, 3, 3))
