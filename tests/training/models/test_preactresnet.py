"""PreActResNet-18."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from rlmix.envs.networks import Stack, forward_of
from rlmix.errors import ConfigError
from rlmix.training.models.preactresnet import PreActBlock
from rlmix.training.models.registry import build, init


def counted(first: int, channels: int, classes: int) -> int:
    """Return the number of parameters by the arithmetic of the layers."""
    widths = [first, 2 * first, 4 * first, 8 * first]
    total = 9 * channels * first
    before = first
    for width in widths:
        for fan_in in (before, width):
            total += 2 * fan_in + 9 * fan_in * width + 2 * width + 9 * width * width
        total += before * width if before != width else 0
        before = width
    return total + 2 * before + before * classes + classes


@pytest.mark.parametrize(
    ("name", "first", "known"), [("preactresnet18", 64, 11_218_340), ("preactresnet18-narrow", 8, 182_028)]
)
def test_it_has_as_many_parameters_as_its_layers_say(name: str, first: int, known: int) -> None:
    """A wrong width or a shortcut too many is another network, and papers' figures are no measure for it."""
    model = build(name, channels=3, height=32, width=32, num_classes=100)
    assert sum(parameter.numel() for parameter in model.parameters()) == counted(first, 3, 100) == known


def test_images_shrink_three_times_and_then_are_averaged() -> None:
    """The stem for small images keeps all pixels: 32, 16, 8 and 4 to the side."""
    model = build("preactresnet18-narrow", channels=3, height=32, width=32, num_classes=5)
    assert isinstance(model, nn.Sequential)
    images, shapes = torch.zeros(2, 3, 32, 32), []
    for layer in model:
        images = layer(images)
        shapes.append(tuple(images.shape[1:]))
    blocks = [(8, 32, 32)] * 2 + [(16, 16, 16)] * 2 + [(32, 8, 8)] * 2 + [(64, 4, 4)] * 2
    assert shapes == [(8, 32, 32), *blocks, (64, 4, 4), (64, 4, 4), (64, 1, 1), (64,), (5,)]


@pytest.mark.parametrize(("fan_in", "fan_out", "stride"), [(4, 4, 1), (4, 8, 2)])
def test_a_block_is_norm_relu_convolution_twice(fan_in: int, fan_out: int, stride: int) -> None:
    """Eq. (5) of the paper, written out; after the sum nothing is rectified, so that the way around stays clean."""
    generator = torch.Generator().manual_seed(0)
    block = init(PreActBlock(fan_in, fan_out, stride), 1).eval()
    for norm in (block.norm1, block.norm2):
        norm.running_mean.copy_(torch.rand(norm.num_features, generator=generator))
        norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
    images = torch.randn(2, fan_in, 8, 8, generator=generator)

    def normed(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
        shift, scale = norm.running_mean.view(-1, 1, 1), (norm.running_var + norm.eps).rsqrt().view(-1, 1, 1)
        return (x - shift) * scale

    active = normed(images, block.norm1).clamp_min(0)
    inner = torch.conv2d(active, block.conv1.weight, stride=stride, padding=1)
    inner = torch.conv2d(normed(inner, block.norm2).clamp_min(0), block.conv2.weight, padding=1)
    around = images if stride == 1 else torch.conv2d(active, block.shortcut.weight, stride=stride)
    result = block(images)
    torch.testing.assert_close(result, around + inner, atol=1e-5, rtol=1e-5)
    assert bool((result < 0).any())


def test_the_pool_trains_it_looped() -> None:
    """Its statistics belong to one network each, so it cannot be stacked; looped it is trained as torch trains it."""
    model = build("preactresnet18-narrow", channels=1, height=8, width=8, num_classes=4)
    with pytest.raises(ConfigError, match="BatchNorm"):
        forward_of(model, looped=False)
    weights = [{name: value.detach().clone() for name, value in init(model, key).named_parameters()} for key in (0, 1)]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    stack = Stack.initial(forward_of(model, looped=True), weights, torch.device("cpu"), buffers)
    generator = torch.Generator().manual_seed(0)
    images, rates = torch.rand(2, 8, 1, 8, 8, generator=generator), torch.tensor([0.02, 0.05])
    targets = torch.eye(4)[torch.randint(4, (2, 8), generator=generator)]
    first = stack.descend(images, targets, rates, 0.9, 0.0, torch.ones(2, dtype=torch.bool))
    for _ in range(8):
        last = stack.descend(images, targets, rates, 0.9, 0.0, torch.ones(2, dtype=torch.bool))
    assert bool((last < first).all())
    alone = functional_call(model.train(), {**weights[1], **{k: v.clone() for k, v in buffers.items()}}, (images[1],))
    expected = nn.functional.cross_entropy(alone, targets[1])
    torch.testing.assert_close(first[1], expected.detach(), atol=1e-5, rtol=1e-5)
