"""rlmix.saliency.feature_map."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlmix.errors import InputError
from rlmix.saliency import feature_map


def network() -> nn.Sequential:
    """Return two convolutions with BatchNorm in training mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


def test_it_is_the_sum_of_absolute_features_of_the_last_convolution() -> None:
    """Taken before the activation, at the layer's own resolution."""
    model = network().eval()
    images = torch.rand(3, 3, 8, 8)
    expected = model[:3](images).abs().sum(1)
    assert torch.allclose(feature_map(model, images), expected)
    assert torch.allclose(feature_map(model, images, layer="0"), model[0](images).abs().sum(1))
    assert feature_map(model, images).shape == (3, 2, 2)
    assert not feature_map(model, images).requires_grad


def test_nothing_of_the_model_moves_and_no_hook_stays() -> None:
    """A hook left behind would keep every batch alive."""
    model = network()
    before = [value.clone() for value in model.state_dict().values()]
    images = torch.rand(3, 3, 8, 8)
    random_state = torch.get_rng_state()
    feature_map(model, images)
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(not module._forward_hooks for module in model.modules())
    with pytest.raises(RuntimeError, match="size"):
        feature_map(model, torch.rand(3, 2, 8, 8))
    assert all(not module._forward_hooks for module in model.modules())


def test_layers_that_do_not_serve_are_refused() -> None:
    """A vector of features is no map."""
    model = network()
    images = torch.rand(3, 3, 8, 8)
    with pytest.raises(InputError, match="the model has no layer `7`"):
        feature_map(model, images, layer="7")
    with pytest.raises(InputError, match=r"must give features \[B, channels, h, w\], got \[3, 5\]"):
        feature_map(model, images, layer="5")
    with pytest.raises(InputError, match="the model has no `Conv2d`"):
        feature_map(nn.Flatten(), images)


def test_an_activation_in_place_does_not_change_the_map() -> None:
    """Many networks overwrite the features of their convolutions."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    in_place = nn.Sequential(plain[0], nn.ReLU(inplace=True))
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(feature_map(in_place, images), feature_map(plain, images))
