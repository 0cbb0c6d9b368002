"""apply: the execution of a plan."""

from __future__ import annotations

import torch
from torch import Tensor

from rlmix.errors import PlanError
from rlmix.ops.blend import Hints, blend
from rlmix.plan import MixPlan


def apply(images: Tensor, plan: MixPlan, out: Tensor | None = None) -> Tensor:
    """Mix a batch as a plan says.

    Pure: no randomness, no state, `images` are never written. Gradients flow to `images`. An image that the plan leaves
    unmixed comes back with its own bits. Nothing waits for the device. On CUDA one kernel reads each source and writes
    the result, and nothing else of the images' size is allocated; see `rlmix.ops.blend` for which gradients are summed
    in a fixed order.

    Args:
        images: [B, C, H, W], float32, float16, bfloat16 or float64, any device, contiguous or channels_last.
        plan: drawn for B images of H x W, its tensors on the images' device.
        out: a buffer for the result, to be used again from batch to batch: shape, dtype, device and memory format of
            `images`, with which it shares no memory. It takes no part in gradients.

    Returns:
        [B, C, H, W], the dtype, device and memory format of `images`; `out` itself where it is given.

    Raises:
        PlanError: the plan was drawn for another batch or image size, or lives on another device; the images are
            whole numbers; or `out` is not such a buffer, or gradients are asked for with it.
    """
    return apply_hinted(images, plan, out, None)


def apply_hinted(images: Tensor, plan: MixPlan, out: Tensor | None, hints: Hints | None) -> Tensor:
    """Do what `apply` does, and add to `hints` as `rlmix.ops.blend` says."""
    if images.dim() != 4:
        raise PlanError(f"`images` must be [B, C, H, W], got {list(images.shape)}.")
    if not images.is_floating_point():
        raise PlanError(f"`images` must be floating point, got {images.dtype}. Use images.float() / 255.")
    given = (images.shape[0], images.shape[2], images.shape[3])
    if given != (plan.batch_size, *plan.size):
        raise PlanError(
            f"the plan was drawn for {plan.batch_size} images of {plan.size[0]}x{plan.size[1]}, got {given[0]} of "
            f"{given[1]}x{given[2]}. Draw a plan for these images."
        )
    if images.device != plan.partners.device:
        raise PlanError(f"the plan is on {plan.partners.device}, the images on {images.device}. Use plan.to(device).")
    if out is not None:
        _check_buffer(out, images)
    return blend(
        images,
        plan.partners,
        plan.shares,
        window=plan.window,
        moves=plan.moves,
        place=plan.place,
        out=out,
        hints=hints,
    )


def _check_buffer(out: Tensor, images: Tensor) -> None:
    """Refuse a buffer that cannot take the mixed images.

    Raises:
        PlanError: another shape, dtype, device or memory format, shared memory, or gradients.
    """
    given = (list(out.shape), out.dtype, str(out.device))
    expected = (list(images.shape), images.dtype, str(images.device))
    if given != expected:
        words = "{} {} on {}".format
        raise PlanError(
            f"`out` must be like `images`, {words(*expected)}, got {words(*given)}. Use torch.empty_like(images)."
        )
    for memory_format in (torch.contiguous_format, torch.channels_last):
        if images.is_contiguous(memory_format=memory_format) != out.is_contiguous(memory_format=memory_format):
            raise PlanError(
                f"`out` must have the memory format of `images` (strides {images.stride()}), got {out.stride()}. "
                "Use torch.empty_like(images)."
            )
    if torch.is_grad_enabled() and (images.requires_grad or out.requires_grad):
        raise PlanError("`out` takes no part in gradients, got tensors that require them. Leave it out, or detach.")
    if not torch.compiler.is_compiling() and _overlap(images, out):
        raise PlanError("`out` must not share memory with `images`, which are read while it is written.")


def _overlap(one: Tensor, two: Tensor) -> bool:
    """Say whether the stretches of memory that two tensors lie in have a byte in common."""
    (first, end), (other_first, other_end) = (
        (tensor.data_ptr(), tensor.data_ptr() + tensor.element_size() * (1 + _last(tensor))) for tensor in (one, two)
    )
    return one.numel() > 0 and first < other_end and other_first < end


def _last(tensor: Tensor) -> int:
    """Return how many elements behind the first the last one lies."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
