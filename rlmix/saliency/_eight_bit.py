"""Images as whole numbers from 0 to 255, which is what detectors of saliency in pictures are defined on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rlmix.errors import InputError

Order = Literal["rgb", "bgr"]

# Half a grey level: what rounding to half precision may leave outside [0, 1] is inside it.
_TOLERANCE = 0.5 / 255


def to_uint8(
    images: Tensor,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    *,
    check: bool | None = None,
) -> Tensor:
    """Undo a normalisation, and return the images as whole numbers from 0 to 255.

    Detectors of saliency in pictures are defined on these. Given normalised floats instead, OpenCV's fine-grained
    detector reads single bytes of them as pixels, and its map then says nothing about the image; that is why the
    detectors of this library refuse floats.

    Args:
        images: [B, C, H, W], floating point, normalised as `(x - mean) / std` from x in [0, 1].
        mean: what was subtracted, one number or one a channel.
        std: what was divided by, one number or one a channel.
        check: whether values are checked; None checks on the CPU only, since reading them would make the host wait for
            a GPU. Unchecked values outside [0, 1] are clamped.

    Returns:
        uint8 [B, C, H, W], rounded to the nearest level.

    Raises:
        InputError: images that are no floats or of another rank, a mean or std of another length, or values outside
            [0, 1] after the normalisation is undone.

    Example:
        >>> import torch, rlmix
        >>> normalised = (torch.tensor([0.0, 0.2, 1.0]).view(1, 3, 1, 1) - 0.5) / 0.25
        >>> rlmix.saliency.to_uint8(normalised, mean=0.5, std=0.25).flatten().tolist()
        [0, 51, 255]
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise InputError(
            f"`images` must be floating point [B, C, H, W], got {images.dtype} {list(images.shape)}. Images that are "
            "uint8 already go to a detector as they are."
        )
    offset, scale = (_by_channel(name, given, images) for name, given in (("mean", mean), ("std", std)))
    values = images.detach().float() * scale + offset
    if check if check is not None else images.device.type == "cpu":
        low, high = (float(bound) for bound in torch.aminmax(values))
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
            raise InputError(
                f"`images` must lie in [0, 1] after `mean` and `std` are undone, got values from {low:.3g} to "
                f"{high:.3g}. Give the `mean` and `std` that the images were normalised with; for images from 0 to 255 "
                "use images.to(torch.uint8)."
            )
    return values.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _by_channel(name: str, given: float | Sequence[float], images: Tensor) -> Tensor:
    """Show one number, or one a channel, as float32 [1, 1 or C, 1, 1] on the images' device."""
    value = torch.tensor(given, dtype=torch.float32).view(1, -1, 1, 1)
    if value.shape[1] not in (1, images.shape[1]):
        raise InputError(
            f"`{name}` must be one number or one for each of the {images.shape[1]} channels, got {value.shape[1]}."
        )
    return value.to(images.device, non_blocking=True)


def grey(images: Tensor, order: Order, detector: str) -> Tensor:
    """Return the images' lightness as OpenCV rounds it: whole numbers from 0 to 255 in float32 [B, H, W].

    The sums stay below 2**24, so float32 holds them exactly.

    Args:
        images: uint8 [B, 3, H, W], or [B, 1, H, W] that is grey already.
        order: which way round the three channels are.
        detector: who asks, for messages.

    Raises:
        InputError: images that are not 8-bit pictures, or no such order.
    """
    if images.dtype != torch.uint8:
        raise InputError(
            f"`{detector}` needs 8-bit images (uint8, values 0 to 255), got {images.dtype}. It is defined on whole "
            "levels of lightness; of normalised floats it would map something else than the image. Undo the "
            f"normalisation: {detector}(rlmix.saliency.to_uint8(images, mean=..., std=...)), or use "
            f"rlmix.saliency.Detector({detector}, mean=..., std=...), which does it at each call."
        )
    if images.dim() != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise InputError(
            f"`{detector}` needs images [B, 3, H, W] or [B, 1, H, W], got {list(images.shape)}. Images with their "
            "channels last become so by images.permute(0, 3, 1, 2)."
        )
    if order not in ("rgb", "bgr"):
        raise InputError(f"`order` must be 'rgb' or 'bgr', got {order!r}.")
    if images.shape[1] == 1:
        return images[:, 0].float()
    first, green, last = images.unbind(1)
    red, blue = (first, last) if order == "rgb" else (last, first)
    # One channel at a time, so that little memory is touched.
    total = blue.float().mul_(3735).add_(green.float(), alpha=19235).add_(red.float(), alpha=9798)
    return total.add_(2**14).mul_(2.0**-15).floor_()
