"""Saliency by the size of the features that a network computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rlmix.ops.modules import kept_random_state, unwrap
from rlmix.saliency._layers import check_features, find_layer


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
    name, module = find_layer(network, layer)
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append(_own_copy(output)))
    tensors = {name: value.detach().clone() for name, value in network.named_buffers()}
    try:
        with torch.no_grad(), kept_random_state(images.device):
            functional_call(network, tensors, (images,))
    finally:
        handle.remove()
    return check_features(name, seen).abs_().sum(1)


def _own_copy(output: Any) -> Any:
    """Return features that the next layer, an activation in place perhaps, cannot write."""
    return output.float().clone() if isinstance(output, Tensor) else output
