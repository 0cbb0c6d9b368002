"""The table of models, and initial weights that depend on a key alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import nn

from rlmix.errors import InputError, UnknownNameError, nearest
from rlmix.ops.modules import kept_random_state
from rlmix.training.models.cnn import cnn
from rlmix.training.models.convnet import convnet, convnet_batchnorm, lenet
from rlmix.training.models.mlp import mlp
from rlmix.training.models.preactresnet import preactresnet18
from rlmix.training.models.resnet import resnet, resnet8

MODELS: dict[str, Callable[[int, int, int, int], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "convnet": convnet,
    "convnet-batchnorm": convnet_batchnorm,
    "lenet": lenet,
    "resnet8": resnet8,
    "resnet18": functools.partial(resnet, 18),
    "resnet34": functools.partial(resnet, 34),
    "resnet50": functools.partial(resnet, 50),
    "preactresnet18": functools.partial(preactresnet18, 64),
    "preactresnet18-narrow": functools.partial(preactresnet18, 8),
}


def names() -> tuple[str, ...]:
    """Return the names of all models."""
    return tuple(MODELS)


def build(name: str, *, channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """Return a model on the CPU that maps [B, channels, height, width] to logits [B, num_classes].

    Its weights are those of `init(model, 0)`; the global random state is untouched.

    Raises:
        UnknownNameError: no model of this name; the message has the nearest known one.
        InputError: a size below 1.
    """
    if name not in MODELS:
        raise UnknownNameError(f"there is no model `{name}`. {nearest(name, MODELS)}")
    if min(channels, height, width, num_classes) < 1:
        raise InputError(
            "`channels`, `height`, `width` and `num_classes` must be at least 1, got "
            f"{channels}, {height}, {width} and {num_classes}."
        )
    with kept_random_state(torch.device("cpu")):
        model = MODELS[name](channels, height, width, num_classes)
    return init(model, 0)


@torch.no_grad()
def init(model: nn.Module, key: int) -> nn.Module:
    """Give `model` the initial weights that belong to `key`, in place, and return it.

    Matrices are uniform within 1/sqrt(fan in), as torch's own linear layers; convolutions are normal with variance
    2/fan out (He, Zhang, Ren, Sun 2015, https://arxiv.org/abs/1502.01852, Section 2.2), as torchvision's ResNets;
    vectors are 1 where they scale (`weight`) and 0 where they shift. Buffers stay. The numbers come from a generator
    of their own, in the order of the parameters.

    Args:
        model: its parameters must be on the CPU.
        key: a whole number in [0, 2**63).
    """
    generator = torch.Generator().manual_seed(key)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            bound = 1.0 / math.sqrt(parameter.shape[1])
            parameter.uniform_(-bound, bound, generator=generator)
        elif parameter.dim() > 2:
            fan_out = parameter.shape[0] * math.prod(parameter.shape[2:])
            parameter.normal_(0.0, math.sqrt(2.0 / fan_out), generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return model
