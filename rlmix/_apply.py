"""apply: the execution of a plan."""

from __future__ import annotations

from torch import Tensor

from rlmix.errors import PlanError
from rlmix.ops.blend import blend
from rlmix.plan import MixPlan


def apply(images: Tensor, plan: MixPlan) -> Tensor:
    """Mix a batch as a plan says.

    Pure: no randomness, no state, `images` are never written. Gradients flow to `images`. An image that the plan leaves
    unmixed comes back with its own bits.

    Args:
        images: [B, C, H, W], float32, float16, bfloat16 or float64, any device, contiguous or channels_last.
        plan: drawn for B images of H x W, its tensors on the images' device.

    Returns:
        [B, C, H, W], the dtype, device and memory format of `images`.

    Raises:
        PlanError: the plan was drawn for another batch or image size, or lives on another device; or the images are
            whole numbers.
    """
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
    return blend(images, plan.partners, plan.shares, window=plan.window, moves=plan.moves, place=plan.place)
