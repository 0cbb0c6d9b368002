"""Saliency by the size of the features that a network computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rlmix.errors import InputError, nearest
from rlmix.ops.modules import kept_random_state, unwrap


def feature_map(model: nn.Module, images: Tensor, layer: str | None = None) -> Tensor:
    """Return the sum, over channels, of the absolute features of one layer: a forward pass, no backward.

    Nothing of the model moves: buffers are cloned, training flags and the global random state are as before.

    Source: attention by activations, Zagoruyko and Komodakis 2017, https://arxiv.org/abs/1612.03928, Eq. 1.

    Args:
        model: any network with a layer whose output is [B, channels, h, w].
        images: [B, C, H, W], floating point.
        layer: the layer's name in `model.named_modules()`; None takes the last `Conv2d`.

    Returns:
        float32 [B, h, w], not below 0, at the layer's resolution.

    Raises:
        InputError: no such layer, no convolution, a layer that did not run, or features that are no maps.
    """
    network = unwrap(model)
    modules = dict(network.named_modules())
    if layer is None:
        convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
        if not convolutions:
            raise InputError("the model has no `Conv2d` to take features from. Name a `layer`, or use input_gradient.")
        layer = convolutions[-1]
    if layer not in modules:
        raise InputError(f"the model has no layer `{layer}`. {nearest(layer, [name for name in modules if name])}")
    seen: list[Tensor] = []
    handle = modules[layer].register_forward_hook(lambda module, args, output: seen.append(output))
    tensors = {name: value.detach().clone() for name, value in network.named_buffers()}
    try:
        with torch.no_grad(), kept_random_state(images.device):
            functional_call(network, tensors, (images,))
    finally:
        handle.remove()
    if not seen or not isinstance(seen[-1], Tensor) or seen[-1].dim() != 4:
        given = list(seen[-1].shape) if seen and isinstance(seen[-1], Tensor) else "nothing"
        raise InputError(f"layer `{layer}` must give features [B, channels, h, w], got {given}. Name another `layer`.")
    return seen[-1].float().abs().sum(1)
