"""The one-call front door, and the checks of values that belong to front doors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlmix._apply import apply
from rlmix.errors import InputError
from rlmix.methods.method import AbstractMethod
from rlmix.methods.registry import get
from rlmix.ops.rng import Streams, streams_from
from rlmix.saliency.input_gradient import input_gradient
from rlmix.types import MixedBatch, MixInputs


def mix(
    images: Tensor,
    labels: Tensor,
    method: str | AbstractMethod = "cutmix",
    *,
    num_classes: int,
    generator: torch.Generator | Streams,
    saliency: Tensor | None = None,
    model: nn.Module | None = None,
    check: bool | None = None,
    **params: Any,
) -> MixedBatch:
    """Mix a batch and its labels.

    Args:
        images: [B, C, H, W], floating point, any device. Never written.
        labels: whole numbers [B] in [0, num_classes).
        method: a method's name, with its parameters in `params`, or a method.
        num_classes: C of the targets.
        generator: a CPU generator (one key is taken from it), or `Streams` with a key for each group of the batch.
        saliency: float [B, h, w] for methods that need maps.
        model: computes the maps by `rlmix.saliency.input_gradient` where they are needed and `saliency` is not given.
        check: whether values (label range, NaN images, empty maps) are checked; None checks on the CPU only, since
            reading them would make the host wait for a GPU.
        params: the method's parameters.

    Returns:
        MixedBatch(images, targets, plan).

    Raises:
        InputError: images, labels or maps of a wrong shape, dtype or value.
        MethodError: a parameter out of its range.
        UnknownNameError: no such method or parameter.

    Example:
        >>> import torch, rlmix
        >>> images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
        >>> batch = rlmix.mix(images, labels, "cutmix", num_classes=10, generator=torch.Generator().manual_seed(0))
        >>> batch.targets.shape
        torch.Size([8, 10])
    """
    chosen = get(method, **params) if isinstance(method, str) else method
    if params and not isinstance(method, str):
        raise InputError(f"parameters {sorted(params)} were given beside a finished method. Give the method's name.")
    labels = check_batch(images, labels, num_classes, check=check)
    streams = streams_from(generator)
    if len(streams) == 1:
        chosen, key = chosen.settle(streams.keys[0])
        streams = Streams([key])
    if chosen.needs_saliency and saliency is None and model is not None:
        saliency = input_gradient(model, images, labels)
    if saliency is not None:
        check_saliency(saliency, "rlmix.saliency.input_gradient" if model is not None else "`saliency`", check=check)
    size = (images.shape[2], images.shape[3])
    inputs = MixInputs(len(images), *size, groups=len(streams), saliency=saliency, images=images, labels=labels)
    plan = chosen.plan(inputs, streams)
    return MixedBatch(apply(images, plan), plan.soft_targets(labels, num_classes), plan)


def check_batch(images: Tensor, labels: Tensor, num_classes: int, *, check: bool | None = None) -> Tensor:
    """Check a batch at a front door and return its labels as int64.

    Args:
        images: [B, C, H, W], floating point.
        labels: whole numbers [B] in [0, num_classes).
        num_classes: at least 1.
        check: whether values are read; None reads them on the CPU only.

    Raises:
        InputError: what is wrong, what was expected, how to mend it.
    """
    if images.dim() != 4 or images.shape[0] == 0:
        raise InputError(
            f"`images` must be [B, C, H, W] with B at least 1, got {list(images.shape)}. A single image needs a batch "
            "axis: image.unsqueeze(0)."
        )
    if not images.is_floating_point():
        raise InputError(f"`images` must be floating point, got {images.dtype}. Use images.float() / 255.")
    if labels.dim() != 1 or labels.shape[0] != images.shape[0]:
        raise InputError(
            f"`labels` must be [{images.shape[0]}], one class number for each image, got {list(labels.shape)}. "
            "One-hot labels become class numbers by labels.argmax(1)."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"`labels` must be whole numbers (int64), got {labels.dtype}. Use labels.long().")
    if labels.device != images.device:
        raise InputError(f"`labels` are on {labels.device}, `images` on {images.device}. Use labels.to(images.device).")
    if num_classes < 1:
        raise InputError(f"`num_classes` must be at least 1, got {num_classes}.")
    if check if check is not None else images.device.type == "cpu":
        low, high = (int(bound) for bound in torch.aminmax(labels))
        if low < 0 or high >= num_classes:
            raise InputError(
                f"`labels` must be in [0, {num_classes}), got values from {low} to {high}. Is `num_classes` right?"
            )
        # A NaN or an infinity survives a sum, which costs a tenth of looking at every pixel.
        total = images.detach().sum(dtype=torch.float32)
        if not bool(torch.isfinite(total)) and not bool(torch.isfinite(images).all()):
            raise InputError("`images` hold values that are not finite. Look for a division by zero in the transforms.")
    return labels.long()


def check_saliency(maps: Tensor, provider: str, *, check: bool | None = None) -> None:
    """Refuse a batch in which no map has a finite value above zero (single ones count as uniform).

    Args:
        maps: float [B, h, w].
        provider: what gave them, for the message.
        check: as in `check_batch`.

    Raises:
        InputError: no map is usable.
    """
    if (check if check is not None else maps.device.type == "cpu") and not bool(
        (torch.isfinite(maps) & (maps > 0)).any()
    ):
        raise InputError(
            f"no saliency map of the batch has a finite value above zero; they came from {provider}. Is the loss "
            "exactly zero, or has the training diverged?"
        )
