"""Saliency by the gradient of the loss with respect to the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from rlmix.ops.modules import kept_random_state, unwrap


def input_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the root mean square, over channels, of the gradient of each image's cross-entropy.

    Nothing of the model moves: buffers are cloned (BatchNorm statistics stay), no `.grad` is written, training flags
    and the global random state are as before. The model runs in the mode it is in.

    Source: Simonyan, Vedaldi, Zisserman 2014, https://arxiv.org/abs/1312.6034, Section 3, in the form that Puzzle Mix,
    Co-Mixup and R-Mix use in their released code (root mean square instead of the largest absolute value).

    Args:
        model: maps [B, C, H, W] to logits [B, num_classes].
        images: [B, C, H, W], floating point.
        labels: int64 [B].

    Returns:
        float32 [B, H, W], not below 0. The scale is that of the summed loss; every use is free of scale.
    """
    network = unwrap(model)
    tensors = {name: value.detach() for name, value in network.named_parameters()}
    tensors.update({name: value.detach().clone() for name, value in network.named_buffers()})
    pixels = images.detach().requires_grad_()
    with torch.enable_grad(), kept_random_state(images.device):
        logits = functional_call(network, tensors, (pixels,))
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, pixels)
    return gradient.float().square().mean(1).sqrt()
