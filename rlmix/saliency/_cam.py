"""Saliency by what the features of a layer say for a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rlmix.ops.modules import kept_random_state, unwrap
from rlmix.saliency._layers import check_features, find_layer


def cam(model: nn.Module, images: Tensor, labels: Tensor | None = None, *, layer: str | None = None) -> Tensor:
    """Return the class activation map of each image: where the features speak for its class.

    Each channel is weighed by the mean gradient of the class's logit with respect to it; what speaks against the class
    is cut off at 0. For a network that ends in an average over the positions and one linear layer, this is the class
    activation map of Zhou et al. 2016 (https://arxiv.org/abs/1512.04150) cut off at 0 and divided by the number of
    positions. The backward pass ends at the layer.

    Nothing of the model moves: buffers are cloned (BatchNorm statistics stay), no `.grad` is written, training flags
    and the global random state are as before. The model runs in the mode it is in.

    Source: Grad-CAM, Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, Eq. 1 and 2.

    Args:
        model: maps [B, C, H, W] to logits [B, num_classes], by way of a layer whose output is [B, channels, h, w].
        images: [B, C, H, W], floating point.
        labels: int64 [B], the classes to look for; None takes the class that the model predicts.
        layer: the layer's name in `model.named_modules()`; None takes the last `Conv2d`.

    Returns:
        float32 [B, h, w], not below 0, at the layer's resolution; all zero where nothing speaks for the class.

    Raises:
        InputError: no such layer, no convolution, a layer that did not run, or features that are no maps.
    """
    network = unwrap(model)
    name, module = find_layer(network, layer)
    seen: list[Any] = []

    def cut(module: nn.Module, args: Any, output: Any) -> Any:
        """Start a graph at the layer; the next layer gets a copy, for it may write into what it gets."""
        seen.append(output.detach().requires_grad_() if isinstance(output, Tensor) else output)
        return seen[-1].clone() if isinstance(output, Tensor) else output

    tensors = {name: value.detach() for name, value in network.named_parameters()}
    tensors.update({name: value.detach().clone() for name, value in network.named_buffers()})
    handle = module.register_forward_hook(cut)
    try:
        with torch.enable_grad(), kept_random_state(images.device):
            logits = functional_call(network, tensors, (images.detach(),))
            features = check_features(name, seen)
            classes = logits.detach().argmax(1) if labels is None else labels
            (gradient,) = torch.autograd.grad(logits.gather(1, classes.unsqueeze(1)).sum(), features)
    finally:
        handle.remove()
    weights = gradient.float().mean((2, 3), keepdim=True)
    return (weights * features.detach().float()).sum(1).relu_()
