import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vlserve.runtime.manifest import ImageInput
from vlserve.training.augment import augment
from vlserve.training.loop import add_dropout, make_loss

MEAN, STD = torch.tensor(ImageInput(height=1, width=1).mean), torch.tensor((0.2, 0.2, 0.2))


def images(count: int = 4) -> torch.Tensor:
    pixels = torch.rand(count, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    return (pixels - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)


def changed(seed: int, count: int = 4) -> torch.Tensor:
    return augment(images(count), MEAN, STD, torch.Generator().manual_seed(seed))


def test_augmented_images_keep_their_shape_and_range_and_follow_the_seed() -> None:
    result = changed(1)
    assert result.shape == (4, 3, 16, 24)
    pixels = result * STD.view(1, 3, 1, 1) + MEAN.view(1, 3, 1, 1)
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6
    assert torch.equal(result, changed(1)) and not torch.equal(result, changed(2))


def test_every_image_is_changed_in_its_own_way() -> None:
    same = images(1).expand(4, -1, -1, -1)
    result = augment(same, MEAN, STD, torch.Generator().manual_seed(0))
    for one in range(4):
        assert not torch.allclose(result[one], same[one], atol=1e-3)
        assert not any(torch.equal(result[one], result[other]) for other in range(one))


def test_some_images_are_mirrored() -> None:
    ramp = torch.linspace(0.3, 0.7, 24).expand(40, 3, 16, 24)
    zero, one = torch.zeros(3), torch.ones(3)
    result = augment(ramp, zero, one, torch.Generator().manual_seed(0))
    rises = (result[..., -1] > result[..., 0]).all(dim=(1, 2))
    assert 5 < int(rises.sum()) < 35


def test_dropout_acts_in_training_alone_and_adds_no_parameter() -> None:
    plain = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 3))
    dropped = copy.deepcopy(plain)
    add_dropout(dropped, 0.5)
    assert dropped.state_dict().keys() == plain.state_dict().keys()
    ids = torch.tensor([1, 2, 3])
    assert torch.equal(dropped.eval()(ids), plain(ids))
    assert not torch.equal(dropped.train()(ids), plain(ids))


def test_losses_are_cross_entropy_and_binary_cross_entropy() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -0.3]])
    one = torch.tensor([[1, 0, 0], [0, 0, 1]])
    several = torch.tensor([[1, 0, 1], [0, 0, 0]])
    single = make_loss(multi_label=False, label_smoothing=0.0)(logits, one)
    assert single == pytest.approx(float(F.cross_entropy(logits, torch.tensor([0, 2]))))
    multi = make_loss(multi_label=True, label_smoothing=0.0)(logits, several)
    expected = np.log1p(np.exp(np.where(several == 1, -logits, logits))).mean()
    assert float(multi) == pytest.approx(float(expected), rel=1e-5)
