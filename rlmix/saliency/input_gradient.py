"""Saliency by the gradient of the loss with respect to the input."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from rlmix.errors import InputError
from rlmix.ops.modules import kept_random_state, unwrap

Loss = Callable[[Tensor, Tensor], Tensor]
Mode = Literal["as_is", "train", "eval"]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each image's cross-entropy, float32 [B], for labels int64 [B] or distributions [B, num_classes]."""
    return functional.cross_entropy(logits, labels, reduction="none")


def input_gradient(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    loss: Loss = cross_entropy,
    mode: Mode = "as_is",
    update_statistics: bool = False,
    clean_weight: float | None = None,
) -> Tensor:
    """Return the root mean square, over channels, of the gradient of each image's loss.

    Nothing of the model moves, unless asked for: buffers are cloned (BatchNorm statistics stay), no `.grad` is written,
    training flags and the global random state are as before.

    With `clean_weight` the backward pass that is made anyway also trains: the gradient of the loss of the unmixed
    batch is added to the parameters' `.grad`, so that after the backward pass of the mixed batch they hold both. Call
    it after `optimizer.zero_grad()`. This is the only case in which `.grad` is touched. The wrapper of
    `DistributedDataParallel` is not called: the gradients add up locally, as under `no_sync()`, and are averaged with
    those of the mixed batch.

    Under autocast the model runs in the ambient precision, the loss in float32. The loss is summed, not averaged, over
    the batch, so the gradients do not shrink with its size; float16 can still lose those below 6e-8 (to zero, never to
    NaN). With a `GradScaler`, `clean_weight=scaler.get_scale()` gives the clean gradient the scale of the mixed one.

    Source: Simonyan, Vedaldi, Zisserman 2014, https://arxiv.org/abs/1312.6034, Section 3, in the form that Puzzle Mix,
    Co-Mixup and R-Mix use in their released code (root mean square instead of the largest absolute value; their
    ImageNet scripts keep the clean gradient with weight 1, R-Mix's script for CIFAR discards it).

    Args:
        model: maps [B, C, H, W] to logits [B, num_classes].
        images: [B, C, H, W], floating point.
        labels: what `loss` takes: int64 [B] or distributions float [B, num_classes] for the default.
        loss: (logits float32, labels) -> the loss of each image, [B]. For labels of several classes at once, for
            example, the binary cross-entropy with `reduction="none"`, summed over the classes.
        mode: the model runs as it is, or in training or evaluation mode for this call ("train", "eval").
        update_statistics: whether this pass may move buffers (BatchNorm statistics, in training mode).
        clean_weight: how much of the gradient of the mean loss is added to `.grad`; None adds nothing.

    Returns:
        float32 [B, H, W], not below 0. The scale is that of the summed loss; every use is free of scale.

    Raises:
        InputError: a loss that is not [B], or an unknown mode.
    """
    network = unwrap(model)
    trained = [] if clean_weight is None else [value for value in network.parameters() if value.requires_grad]
    tensors = {} if trained else {name: value.detach() for name, value in network.named_parameters()}
    if not update_statistics:
        tensors.update({name: value.detach().clone() for name, value in network.named_buffers()})
    pixels = images.detach().requires_grad_()
    with torch.enable_grad(), kept_random_state(images.device), _in_mode(network, mode):
        losses = loss(functional_call(network, tensors, (pixels,)).float(), labels)
        if losses.shape != (images.shape[0],):
            raise InputError(
                f"`loss` must give one value for each image, [{images.shape[0]}], got {list(losses.shape)}. Use "
                'reduction="none" and sum over the classes.'
            )
        gradient, *others = torch.autograd.grad(losses.sum(), [pixels, *trained], allow_unused=True)
    for parameter, other in zip(trained, others, strict=True):
        if other is not None and clean_weight is not None:
            # Not in place: two parameters may have been given one and the same tensor.
            _accumulate(parameter, other * (clean_weight / images.shape[0]))
    return gradient.float().square().mean(1).sqrt()


def _accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """Add to `.grad`, as a backward pass does."""
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad.add_(gradient)


@contextlib.contextmanager
def _in_mode(network: nn.Module, mode: Mode) -> Iterator[None]:
    """Run in a mode, and put every submodule's training flag back afterwards."""
    if mode not in ("as_is", "train", "eval"):
        raise InputError(f"`mode` must be 'as_is', 'train' or 'eval', got {mode!r}.")
    flags = [(module, module.training) for module in network.modules()]
    try:
        if mode != "as_is":
            network.train(mode == "train")
        yield
    finally:
        for module, training in flags:
            module.training = training
