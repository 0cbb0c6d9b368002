"""rlmix.saliency.input_gradient."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rlmix.errors import InputError
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


def gradients(model: nn.Module) -> list[Tensor]:
    """Return copies of the parameters' gradients."""
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_clean_weight_adds_the_gradient_of_the_clean_loss(weight: float) -> None:
    """One backward pass for both: after that of the mixed batch, `.grad` is that of the sum of the two losses."""
    model = network().eval()
    images, labels, mixed = torch.rand(6, 3, 8, 8), torch.arange(6) % 5, torch.rand(6, 3, 8, 8)
    loss = weight * functional.cross_entropy(model(images), labels) + functional.cross_entropy(model(mixed), labels)
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    maps = input_gradient(model, images, labels, clean_weight=weight)
    functional.cross_entropy(model(mixed), labels).backward()
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(gradients(model), expected, strict=True))
    assert torch.allclose(maps, input_gradient(model, images, labels), rtol=1e-5, atol=1e-8)
    assert not maps.requires_grad


def test_the_clean_gradient_is_added_and_frozen_or_unused_parameters_are_left_alone() -> None:
    """A gradient that was there before stays; a parameter that shares its gradient with another is not scaled twice."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (nn.Parameter(torch.zeros(5)) for _ in range(2))
            self.frozen = nn.Parameter(torch.ones(12, 5), requires_grad=False)
            self.unused = nn.Parameter(torch.ones(3))

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1) @ self.frozen + (self.one + self.two)

    model = Net()
    images, labels = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 2])
    model.one.grad = torch.ones(5)
    input_gradient(model, images, labels, clean_weight=1.0)
    target = torch.eye(5)[labels].mean(0)
    expected = torch.softmax(model(images).detach(), 1).mean(0) - target
    assert model.one.grad is not None
    assert model.two.grad is not None
    assert torch.allclose(model.one.grad, expected + 1.0, atol=1e-6)
    assert torch.allclose(model.two.grad, expected, atol=1e-6)
    assert model.frozen.grad is None
    assert model.unused.grad is None


def test_a_clean_weight_moves_nothing_but_gradients() -> None:
    """BatchNorm statistics stay even so: the mixed pass moves them."""
    model = network()
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    before, random_state = state(model), torch.get_rng_state()
    input_gradient(model, images, labels, clean_weight=1.0)
    assert all(map(torch.equal, before, state(model)))
    assert torch.equal(random_state, torch.get_rng_state())


@pytest.mark.parametrize("clean_weight", [None, 1.0])
def test_statistics_move_when_asked_for(clean_weight: float | None) -> None:
    """As in the authors' scripts, where the clean pass is one of the model's own."""
    model, twin = network(), network()
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    twin(images)
    input_gradient(model, images, labels, update_statistics=True, clean_weight=clean_weight)
    assert all(map(torch.equal, state(model), state(twin)))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_mode_holds_for_the_call_only(mode: Literal["train", "eval"]) -> None:
    """Maps of the frozen model in the middle of a training, and every flag back in its place, also after an error."""
    model, twin = network(), network().train(mode == "train")
    model.train(mode != "train")
    model[3].train(mode == "train")
    flags = [module.training for module in model.modules()]
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    # Dropout draws: the same numbers for both.
    torch.manual_seed(3)
    maps = input_gradient(model, images, labels, mode=mode)
    assert torch.equal(maps, input_gradient(twin, images, labels))
    assert flags == [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="channels"):
        input_gradient(model, torch.rand(6, 2, 8, 8), labels, mode=mode)
    assert flags == [module.training for module in model.modules()]
    with pytest.raises(InputError, match="`mode` must be 'as_is', 'train' or 'eval', got 'test'"):
        input_gradient(model, images, labels, mode="test")  # type: ignore[arg-type]


def test_labels_may_be_distributions_or_serve_a_loss_of_ones_own() -> None:
    """Soft labels, and several classes at once."""
    model = network().eval()
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    expected = input_gradient(model, images, labels)
    onehot = torch.eye(5)[labels]
    assert torch.allclose(input_gradient(model, images, onehot), expected, rtol=1e-5, atol=1e-8)

    def binary(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)

    pixels = images.clone().requires_grad_()
    binary(model(pixels), onehot).sum().backward()
    assert pixels.grad is not None
    several = input_gradient(model, images, onehot, loss=binary)
    assert torch.allclose(several, pixels.grad.square().mean(1).sqrt(), rtol=1e-5, atol=1e-8)
    with pytest.raises(InputError, match=r"`loss` must give one value for each image, \[6\], got \[\]"):
        input_gradient(model, images, labels, loss=functional.cross_entropy)


def test_autocast_gives_finite_gradients_and_leaves_the_mixed_pass_its_own() -> None:
    """Autocast remembers the weights it has cast: what a saliency pass left there must not break the next backward."""
    model = network().eval()
    images, labels, mixed = torch.rand(6, 3, 8, 8), torch.arange(6) % 5, torch.rand(6, 3, 8, 8)
    exact = input_gradient(model, images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        functional.cross_entropy(model(images), labels).backward()
        functional.cross_entropy(model(mixed), labels).backward()
    expected = gradients(model)
    for clean_weight in (None, 1.0):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            maps = input_gradient(model, images, labels, clean_weight=clean_weight)
            functional.cross_entropy(model(mixed), labels).backward()
        assert maps.dtype == torch.float32
        assert bool(torch.isfinite(maps).all())
        assert float((maps - exact).abs().max()) < 0.05 * float(exact.max())
        assert len(gradients(model)) == len(expected)
    pairs = zip(gradients(model), expected, strict=True)
    assert all(float((one - two).norm()) <= 0.05 * float(two.norm()) for one, two in pairs)
