"""rlmix.saliency.input_gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlmix.saliency import input_gradient


def network() -> nn.Module:
    """Return a net with BatchNorm and dropout, in training mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(256, 5)
    )


def state(model: nn.Module) -> list[Tensor]:
    """Return copies of everything that a pass could move."""
    return [value.clone() for value in model.state_dict().values()]


def test_it_is_the_root_mean_square_of_the_gradient_by_finite_differences() -> None:
    """An oracle without autograd, in float64."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    images = torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64)
    labels = torch.tensor([2, 0])

    class Net(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return torch.tanh(pixels.flatten(1)) @ weight.T

    def loss(pixels: Tensor) -> Tensor:
        logits = torch.tanh(pixels.flatten(1)) @ weight.T
        return -(logits - logits.logsumexp(1, keepdim=True))[torch.arange(2), labels].sum()

    step = 1e-6
    gradient = torch.zeros_like(images)
    for index in torch.cartesian_prod(*map(torch.arange, images.shape)).tolist():
        up, down = images.clone(), images.clone()
        up[tuple(index)] += step
        down[tuple(index)] -= step
        gradient[tuple(index)] = (loss(up) - loss(down)) / (2 * step)
    expected = gradient.square().mean(1).sqrt().float()
    assert torch.allclose(input_gradient(Net(), images, labels), expected, atol=1e-5)


def test_nothing_of_the_model_moves() -> None:
    """BatchNorm statistics, `.grad`, training flags, random state: a saliency pass must leave no trace."""
    model = network()
    model[1].eval()
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    model(images).sum().backward()
    before, grads = (
        state(model),
        [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None],
    )
    flags, random_state = [module.training for module in model.modules()], torch.get_rng_state()
    maps = input_gradient(model, images, labels)
    assert maps.shape == (6, 8, 8)
    assert maps.dtype == torch.float32
    assert bool((maps >= 0).all())
    assert all(map(torch.equal, before, state(model)))
    assert all(map(torch.equal, grads, [p.grad for p in model.parameters() if p.grad is not None]))
    assert flags == [module.training for module in model.modules()]
    assert torch.equal(random_state, torch.get_rng_state())
    assert not images.requires_grad


def test_it_works_without_gradients_switched_on_and_for_wrapped_models() -> None:
    """Mixing often runs under no_grad; users compile and parallelise their models."""
    model = network().eval()
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    expected = input_gradient(model, images, labels)
    with torch.no_grad():
        assert torch.equal(input_gradient(model, images, labels), expected)
    assert torch.equal(input_gradient(nn.DataParallel(model), images, labels), expected)
    assert float(expected.sum()) > 0
