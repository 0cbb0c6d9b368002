"""The one-call front door, and the checks of values that belong to front doors."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlmix._apply import apply, apply_hinted
from rlmix.errors import InputError
from rlmix.methods.method import AbstractMethod
from rlmix.methods.registry import get
from rlmix.ops.blend import Hints, hint
from rlmix.ops.rng import Streams, streams_from
from rlmix.plan import MixPlan
from rlmix.saliency.input_gradient import input_gradient
from rlmix.types import MixedBatch, MixInputs, SaliencySource


def mix(
    images: Tensor,
    labels: Tensor,
    method: str | AbstractMethod = "cutmix",
    *,
    num_classes: int,
    generator: torch.Generator | Streams,
    saliency: Tensor | SaliencySource | None = None,
    model: nn.Module | None = None,
    label_smoothing: float = 0.0,
    check: bool | None = None,
    **params: Any,
) -> MixedBatch:
    """Mix a batch and its labels.

    Args:
        images: [B, C, H, W], floating point, any device. Never written.
        labels: class numbers, whole [B] in [0, num_classes); or dense targets, floating point [B, num_classes] in
            [0, 1], for soft labels or several labels an image.
        method: a method's name, with its parameters in `params`, or a method.
        num_classes: C of the targets.
        generator: a CPU generator (one key is taken from it), or `Streams` with a key for each group of the batch.
        saliency: float [B, h, w] for methods that need maps, or what gives them: a callable (images, labels) -> maps,
            asked only where the method that was settled on needs them.
        model: computes the maps by `rlmix.saliency.input_gradient` where they are needed and `saliency` is not given.
        label_smoothing: in [0, 1]; this much of each target row is spread evenly over the classes. For class numbers
            only: dense targets are smoothed, as they need it, before they are mixed.
        check: whether values (label range, NaN images, empty maps) are checked; None checks on the CPU only, since
            reading them would make the host wait for a GPU.
        params: the method's parameters.

    Returns:
        MixedBatch(images, targets, plan). With `plan.pairs(labels)` and `rlmix.mixed_cross_entropy` the targets are
        not needed.

    Raises:
        InputError: images, labels, maps or smoothing of a wrong shape, dtype or value.
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
    dense = labels.dim() == 2 and labels.is_floating_point()
    labels = (check_dense if dense else check_classes)(images, labels, num_classes, check=dense and check)
    if not 0.0 <= label_smoothing <= (0.0 if dense else 1.0):
        limits = "0 with dense labels (smooth these before they are mixed)" if dense else "in [0, 1]"
        raise InputError(f"`label_smoothing` must be {limits}, got {label_smoothing!r}.")
    streams = streams_from(generator)
    if len(streams) == 1:
        key = streams.keys[0]
        chosen, settled = chosen.settle(key)
        streams = streams if settled == key else Streams([settled])
    # Where nothing looks at the pixels before they are mixed, they are checked while the cache holds them mixed, and
    # labels where they are made targets (on the CPU: elsewhere a label out of its range would stop the device).
    reads = _reads(images, check)
    early = reads and (chosen.needs_saliency or chosen.looks_at_images)
    if early:
        _check_finite(images, hint(images))
    if not dense and reads and (early or not labels.is_cpu):
        check_class_numbers(labels, num_classes, check=True)
    maps, provider = saliency, "`saliency`"
    if maps is None and model is not None:
        maps, provider = partial(input_gradient, model), "rlmix.saliency.input_gradient"
    if callable(maps):
        provider = provider if saliency is None else getattr(saliency, "__qualname__", type(saliency).__name__)
        maps = maps(images, labels) if chosen.needs_saliency else None
    if maps is not None:
        check_saliency(maps, provider, check=check)
    size = (images.shape[2], images.shape[3])
    inputs = MixInputs(
        len(images), *size, groups=len(streams), saliency=maps, images=images, labels=None if dense else labels
    )
    plan = chosen.plan(inputs, streams)
    targets = _targets(plan, labels, num_classes, label_smoothing)
    if early or not reads:
        return MixedBatch(apply(images, plan), targets, plan)
    hints: Hints = []
    mixed = apply_hinted(images, plan, None, hints)
    _check_finite(images, *hints)
    return MixedBatch(mixed, targets, plan)


def _targets(plan: MixPlan, labels: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """Return the targets of class numbers or of dense labels."""
    if labels.is_floating_point():
        return plan.mix_targets(labels)
    try:
        return plan.soft_targets(labels, num_classes, label_smoothing)
    except RuntimeError:
        # Torch, and compiled code, say that an index is out of bounds; whose, and what to do, is said here.
        check_class_numbers(labels, num_classes)
        raise


def check_batch(images: Tensor, labels: Tensor, num_classes: int, *, check: bool | None = None) -> Tensor:
    """Check a batch with class numbers at a front door and return its labels as int64.

    Args:
        images: [B, C, H, W], floating point.
        labels: whole numbers [B] in [0, num_classes).
        num_classes: at least 1.
        check: whether values are read; None reads them on the CPU only.

    Raises:
        InputError: what is wrong, what was expected, how to mend it.
    """
    numbers = check_classes(images, labels, num_classes, check=check)
    if _reads(images, check):
        _check_finite(images, hint(images))
    return numbers


def check_classes(images: Tensor, labels: Tensor, num_classes: int, *, check: bool | None = None) -> Tensor:
    """Check a batch with class numbers, but not its pixels; as `check_batch` otherwise."""
    _check_shapes(images, labels, num_classes)
    if labels.dim() != 1:
        raise InputError(
            f"`labels` must be [{images.shape[0]}], one class number for each image, got {list(labels.shape)}. "
            "One-hot labels become class numbers by labels.argmax(1); soft labels and several labels an image are "
            "given as floating point, labels.float(), where they are taken (rlmix.mix)."
        )
    return check_class_numbers(labels, num_classes, check=check)


def check_class_numbers(labels: Tensor, num_classes: int, *, check: bool | None = None) -> Tensor:
    """Check class numbers at a front door and return them as int64.

    Args:
        labels: whole numbers in [0, num_classes), of any shape.
        num_classes: at least 1.
        check: as in `check_batch`.

    Raises:
        InputError: what is wrong, what was expected, how to mend it.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"`labels` must be whole numbers (int64), got {labels.dtype}. Use labels.long().")
    if _reads(labels, check):
        low, high = (int(bound) for bound in torch.aminmax(labels))
        if low < 0 or high >= num_classes:
            raise InputError(
                f"`labels` must be in [0, {num_classes}), got values from {low} to {high}. Is `num_classes` right?"
            )
    return labels.long()


def check_dense(images: Tensor, labels: Tensor, num_classes: int, *, check: bool | None = None) -> Tensor:
    """Check a batch with dense labels, but not its pixels, at a front door and return the labels as float32.

    Args:
        images: [B, C, H, W], floating point.
        labels: floating point [B, num_classes] in [0, 1].
        num_classes: at least 1.
        check: as in `check_batch`.

    Raises:
        InputError: what is wrong, what was expected, how to mend it.
    """
    _check_shapes(images, labels, num_classes)
    if labels.shape[1:] != (num_classes,):
        raise InputError(
            f"dense `labels` must be [{images.shape[0]}, {num_classes}], a value for each class, got "
            f"{list(labels.shape)}. Is `num_classes` right?"
        )
    if _reads(images, check):
        low, high = torch.aminmax(labels)
        if not bool((low >= 0) & (high <= 1)):
            raise InputError(
                f"dense `labels` must be in [0, 1], got values from {float(low):g} to {float(high):g}. Are they logits?"
            )
    return labels.float()


def _check_shapes(images: Tensor, labels: Tensor, num_classes: int) -> None:
    """Refuse a batch whose images are none, or whose labels cannot be theirs."""
    if images.dim() != 4 or images.shape[0] == 0:
        raise InputError(
            f"`images` must be [B, C, H, W] with B at least 1, got {list(images.shape)}. A single image needs a batch "
            "axis: image.unsqueeze(0)."
        )
    if not images.is_floating_point():
        bytes_ = "" if images.dtype == torch.bool else " / 255"
        raise InputError(f"`images` must be floating point, got {images.dtype}. Use images.float(){bytes_}.")
    if labels.dim() == 0 or labels.shape[0] != images.shape[0]:
        raise InputError(
            f"`labels` must be [{images.shape[0]}], one class number for each image, got {list(labels.shape)}."
        )
    if labels.device != images.device:
        raise InputError(f"`labels` are on {labels.device}, `images` on {images.device}. Use labels.to(images.device).")
    if num_classes < 1:
        raise InputError(f"`num_classes` must be at least 1, got {num_classes}.")


def _reads(images: Tensor, check: bool | None) -> bool:
    """Say whether values are read: as asked, or where that does not make the host wait."""
    return check if check is not None else images.device.type == "cpu"


def _check_finite(images: Tensor, *hints: Tensor | float) -> None:
    """Refuse images that hold a value that is not finite, where `rlmix.ops.blend.hint` says that they may."""
    if not all(math.isfinite(float(number)) for number in hints) and not bool(torch.isfinite(images).all()):
        raise InputError("`images` hold values that are not finite. Look for a division by zero in the transforms.")


def check_saliency(maps: object, provider: str, *, check: bool | None = None) -> None:
    """Refuse what is no tensor, and a batch in which no map has a finite value above zero (single ones are uniform).

    Args:
        maps: float [B, h, w].
        provider: what gave them, for the message.
        check: as in `check_batch`.

    Raises:
        InputError: no map is usable.
    """
    if not isinstance(maps, Tensor):
        raise InputError(f"`saliency` must be a tensor [B, h, w], got {type(maps).__name__} from {provider}.")
    if _reads(maps, check) and not bool((torch.isfinite(maps) & (maps > 0)).any()):
        raise InputError(
            f"no saliency map of the batch has a finite value above zero; they came from {provider}. Is the loss "
            "exactly zero, or has the training diverged?"
        )
