import numpy as np
import pytest
import torch

from client.imaging.missing_sequences import ABSENT, blank, present
from client.training.augmentation import Turn, mirrored, recoloured
from client.training.crops import draw_crops
from common.study.protocol import TrainingOptions
from tests.client.training.test_crops import Prepared, options, phantom

FULL = {"augmentation": "full"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def head(side: int = 24) -> torch.Tensor:
    """Return an image of a ball of brain, smooth inside, 0 outside."""
    axis = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    brain = x**2 + y**2 + z**2 < (side / 2.5) ** 2
    channels = [(0.1 + (k + 1) * torch.sin(x / 4 + k)) * torch.cos(y / 5) for k in range(4)]
    return torch.stack(channels) * brain


def full(**changes: object) -> TrainingOptions:
    return options(**{**FULL, **changes})


def test_the_same_chance_gives_the_same_crops() -> None:
    wanted = full(crops_per_patient=6)
    one, two = (draw_crops(phantom(1, (20, 18, 22)), wanted, rng(3)) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    other = draw_crops(phantom(1, (20, 18, 22)), wanted, rng(4))
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("shape", [(16, 16, 16), (30, 20, 17), (5, 6, 40)])
def test_full_augmentation_keeps_form_and_labels(shape: tuple[int, int, int]) -> None:
    images, regions = draw_crops(phantom(2, shape), full(), rng(1), count=40)
    assert images.shape == (40, 4, 16, 16, 16)
    assert regions.shape == (40, 3, 16, 16, 16)
    assert images.dtype == torch.float32
    assert regions.dtype == torch.uint8
    assert torch.isfinite(images).all()
    assert set(torch.unique(regions).tolist()) <= {0, 1}
    whole, core, enhancing = regions.transpose(0, 1).bool()
    assert not (core & ~whole).any()
    assert not (enhancing & ~core).any()


def test_the_outside_stays_empty_and_what_is_absent_stays_absent() -> None:
    case = phantom(3, (24, 24, 24))
    image = case.image.copy()
    image[:, :, :6] = 0
    blank(image, (True, False, True, True))
    images, _ = draw_crops(Prepared(image, case.labels), full(), rng(2), count=40)
    outside = 0
    for crop in images:
        brain = (crop != 0).any(0)
        outside += int((~brain).sum())
        assert (crop[0] != 0).equal(brain)
        assert tuple(present(crop.numpy()).tolist()) == (True, False, True, True)
        assert set(torch.unique(crop[1]).tolist()) <= {0.0, ABSENT}
    assert outside > 0


def test_a_turn_takes_image_and_labels_along() -> None:
    # Where every voxel's value says whether it is tumour, it does so after any turn.
    masks = torch.zeros(3, 36, 36, 36, dtype=torch.uint8)
    masks[:, 12:22, 14:26, 10:24] = 1
    image = torch.where(masks[:1] > 0, 3.0, 1.0).expand(4, -1, -1, -1).contiguous()
    turns = [turn for turn in (Turn.draw(rng(seed)) for seed in range(60)) if turn]
    assert 12 < len(turns) < 36
    sizes = set()
    for turn in turns:
        turned, labels = turn.apply(image, masks, (24, 24, 24))
        sizes.add(int(labels[0].sum()))
        agreed = (turned[0] > 2) == (labels[0] > 0)
        assert agreed.float().mean() > 0.97
    assert len(sizes) > 5


def test_no_turn_is_what_it_was() -> None:
    image = head(24)
    regions = (image[:3] > 0.5).to(torch.uint8)
    same, labels = Turn(np.eye(3)).apply(image, regions, (16, 16, 16))
    assert torch.allclose(same, image[:, 4:20, 4:20, 4:20], atol=1e-5)
    assert torch.equal(labels, regions[:, 4:20, 4:20, 4:20])


def test_a_quarter_turn_is_exact() -> None:
    matrix = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    image = head(16)
    turned, _ = Turn(matrix).apply(image, torch.zeros(3, 16, 16, 16, dtype=torch.uint8), (16,) * 3)
    assert torch.allclose(turned, torch.rot90(image, -1, (1, 2)), atol=1e-4)


def test_colours_change_and_anatomy_does_not() -> None:
    image = head()
    changed = [recoloured(image, rng(seed)) for seed in range(60)]
    assert sum(not torch.equal(one, image) for one in changed) > 40
    for one in changed:
        assert torch.equal((one == 0).all(0), (image == 0).all(0))
        related = [
            torch.corrcoef(torch.stack([a[a != 0], b[a != 0]]))[0, 1]
            for a, b in zip(image, one, strict=True)
        ]
        assert min(related) > 0.8
    assert torch.equal(recoloured(torch.zeros(4, 8, 8, 8), rng()), torch.zeros(4, 8, 8, 8))


def test_every_mirror_is_drawn() -> None:
    image = torch.arange(2**3, dtype=torch.float32).reshape(1, 2, 2, 2)
    seen = {tuple(mirrored(image, image, rng(seed))[0].flatten().tolist()) for seed in range(60)}
    assert len(seen) == 8
