"""rlmix.saliency.cam."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rlmix.errors import InputError
from rlmix.saliency import cam


def network(*, in_place: bool = False) -> nn.Sequential:
    """Return convolutions with BatchNorm in training mode and dropout, an average over positions and a linear head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(inplace=in_place), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def test_it_is_the_class_activation_map_of_a_network_with_average_and_linear_head() -> None:
    """Zhou et al. 2016, Eq. 2, where it speaks for the class, over the number of positions."""
    model = network().eval()
    images, labels = torch.rand(4, 3, 8, 6), torch.tensor([2, 0, 4, 2])
    features = model[:6](images).detach()
    head = model[8].weight.detach()
    expected = torch.zeros(4, 8, 6)
    for row, label in enumerate(labels.tolist()):
        for channel in range(6):
            expected[row] += head[label, channel] * features[row, channel]
    maps = cam(model, images, labels, layer="5")
    torch.testing.assert_close(maps, expected.clamp_min(0) / 48, rtol=1e-5, atol=1e-8)
    assert bool((maps > 0).any())


def test_it_is_grad_cam_by_finite_differences_at_the_last_convolution() -> None:
    """An oracle without autograd: the logit's change when a channel's position is moved, averaged over positions."""
    model = network().eval().double()
    images, labels = torch.rand(2, 3, 4, 4, dtype=torch.float64), torch.tensor([1, 3])
    features = model[:5](images).detach()
    step = 1e-6
    weights = torch.zeros(2, 6, dtype=torch.float64)
    for channel in range(6):
        for y in range(4):
            for x in range(4):
                moved = [features.clone() for _ in range(2)]
                moved[0][:, channel, y, x] += step
                moved[1][:, channel, y, x] -= step
                logits = [model[5:](value).detach().gather(1, labels.unsqueeze(1)).squeeze(1) for value in moved]
                weights[:, channel] += (logits[0] - logits[1]) / (2 * step) / 16
    expected = (weights.view(2, 6, 1, 1) * features).sum(1).clamp_min(0)
    maps = cam(model, images, labels)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.double(), expected, rtol=1e-4, atol=1e-6)


def test_without_labels_it_looks_for_the_class_that_is_predicted() -> None:
    """What the model sees, rather than what it should see."""
    model = network().eval()
    images = torch.rand(3, 3, 8, 8)
    assert torch.equal(cam(model, images), cam(model, images, model(images).argmax(1)))


def test_an_activation_in_place_does_not_harm_it() -> None:
    """Many networks overwrite the features of their convolutions."""
    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    plain, in_place = network().eval(), network(in_place=True).eval()
    assert torch.equal(cam(in_place, images, labels), cam(plain, images, labels))


def state(model: nn.Module) -> list[Tensor]:
    """Return copies of everything that a pass could move."""
    return [value.clone() for value in model.state_dict().values()]


def test_nothing_of_the_model_moves_and_no_hook_stays() -> None:
    """BatchNorm statistics, `.grad`, training flags, random state: a saliency pass must leave no trace."""
    model = network()
    model[3].eval()
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    before, random_state = state(model), torch.get_rng_state()
    flags = [module.training for module in model.modules()]
    with torch.no_grad():
        maps = cam(model, images, labels)
    assert not maps.requires_grad
    assert all(map(torch.equal, before, state(model)))
    assert torch.equal(random_state, torch.get_rng_state())
    assert flags == [module.training for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())
    with pytest.raises(RuntimeError, match="size"):
        cam(model, torch.rand(3, 2, 8, 8))
    assert all(not module._forward_hooks for module in model.modules())


def test_layers_that_do_not_serve_are_refused() -> None:
    """A vector of features is no map."""
    model = network()
    images = torch.rand(3, 3, 8, 8)
    with pytest.raises(InputError, match="the model has no layer `9`"):
        cam(model, images, layer="9")
    with pytest.raises(InputError, match=r"layer `8` must give features \[B, channels, h, w\], got \[3, 5\]"):
        cam(model, images, layer="8")
