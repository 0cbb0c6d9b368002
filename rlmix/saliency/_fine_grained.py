"""Saliency by the difference between a pixel and its surroundings, at six scales."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from rlmix.saliency._eight_bit import Order, grey

_RADII = (12, 24, 48, 28, 56, 112)

# On a CPU the batch is worked on in parts of this many pixels, or of two images where these are larger: intermediate
# results stay in the cache, and the memory of one part serves the next.
_CHUNK_PIXELS = 2**16
_CHUNK_IMAGES = 2


def fine_grained(images: Tensor, *, order: Order = "rgb") -> Tensor:
    """Return the fine-grained saliency of each image: how far pixels stand out from their surroundings.

    The lightness, smoothed twice, is compared with the mean of the surrounding square at six scales; where a pixel is
    lighter (on) and where it is darker (off) is summed over the scales, each of the two is scaled to its largest value,
    and both are added. No gradients, no learning, no model.

    Source: Montabone and Soto 2010, Image and Vision Computing 28(3), pages 391-402 in the form of OpenCV
    (`cv2.saliency.StaticSaliencyFineGrained`), whose bits this gives for a whole batch at once.
    https://ing.uc.cl/publicaciones/human-detection-using-a-mobile-platform-and-novel-features-derived-from-a-visual-saliency-mechanism

    Compared with OpenCV 5.0, all pixels are equal up to 256x256; above that the running sums of both are rounded, and
    of 427x640 pixels two in a thousand differ, by a level or two. Two habits of OpenCV are kept on purpose: on + off
    above 255 wraps around to a small value (rare: it takes a pixel that stands out one way at one scale and the other
    way at another), and an image without contrast gives an all-zero map.

    Args:
        images: uint8 [B, 3, H, W] of any size, or [B, 1, H, W] that is grey already; any device.
        order: "rgb" or "bgr", the order of the three channels. OpenCV takes its input for BGR: for the map that it
            gives of an image from `cv2.imread`, either say "bgr" or bring the channels to RGB.

    Returns:
        float32 [B, H, W] in [0, 1], multiples of 1/255.

    Raises:
        InputError: the images are not uint8 (`to_uint8` makes them so), not [B, 3, H, W] or [B, 1, H, W], or `order`
            is unknown.
    """
    pixels = images.shape[-1] * images.shape[-2] if images.dim() == 4 else 0
    if images.is_cuda or images.dim() != 4 or images.shape[0] * pixels <= _CHUNK_PIXELS:
        return _map(grey(images, order, "fine_grained"))
    parts = torch.split(images, max(_CHUNK_IMAGES, _CHUNK_PIXELS // pixels))
    return torch.cat([_map(grey(part, order, "fine_grained")) for part in parts])


def _map(lightness: Tensor) -> Tensor:
    """Return the saliency of lightness [B, H, W]: whole numbers in float32."""
    height, width = lightness.shape[1:]
    if height * width == 1:
        return torch.zeros_like(lightness)
    centre = _smoothed(_smoothed(lightness))
    sums = centre.cumsum(2).cumsum(1)
    # A square that reaches over the whole image from every pixel is the same for all larger radii.
    scales = Counter((min(radius, height), min(radius, width)) for radius in _RADII)
    across = max(columns for _, columns in scales)
    padded = _padded(sums, across)
    lighter, differing = torch.zeros_like(centre), torch.zeros_like(centre)
    mean, scratch = torch.empty_like(centre), torch.empty_like(centre)
    for scale, times in scales.items():
        if scale == (height, width):
            torch.sub(sums[:, -1:, -1:], centre, out=mean).div_(height * width - 1)
        else:
            _surround(padded, across, scale, centre, out=mean)
        difference = torch.sub(centre, mean, out=mean)
        # floor of what is above 0 instead of trunc, which takes several times as long.
        lighter.add_(torch.clamp(difference, min=0, out=scratch).floor_(), alpha=times)
        differing.add_(difference.abs_().floor_(), alpha=times)
    darker = differing.sub_(lighter)
    levels = _levels(lighter).add_(_levels(darker))
    return levels.bitwise_and_(255).float().mul_(1 / 255)


def _smoothed(values: Tensor) -> Tensor:
    """Return [B, H, W] smoothed by [1 2 1] / 4 along both sides, mirrored at the borders, rounded half up."""
    for axis in (2, 1):
        last = values.shape[axis] - 1
        result = values * 2
        result.narrow(axis, 1, last).add_(values.narrow(axis, 0, last))
        result.narrow(axis, 0, last).add_(values.narrow(axis, 1, last))
        # The mirror image of the second pixel stands before the first; a single pixel is its own neighbour.
        result.select(axis, 0).add_(values.select(axis, min(1, last)))
        result.select(axis, last).add_(values.select(axis, max(last - 1, 0)))
        values = result
    return values.add_(8).mul_(1 / 16).floor_()


def _padded(sums: Tensor, across: int) -> Tensor:
    """Return cumulative sums that go on to the left (zeros) and to the right (the last sums) of the image.

    The corners of squares that are clipped to the image can then be read by shifting, without an index.
    """
    batch, height, width = sums.shape
    padded = sums.new_empty(batch, height, width + 2 * across)
    padded[:, :, :across] = 0
    padded[:, :, across : across + width] = sums
    padded[:, :, across + width :] = sums[:, :, -1:]
    return padded


def _surround(padded: Tensor, across: int, scale: tuple[int, int], centre: Tensor, out: Tensor) -> None:
    """Write the mean of each pixel's surrounding square, itself left out, into `out`, float32 [B, H, W].

    The square holds the rows from y - radius + 1 to y + radius inside the image, and columns likewise. Sums are added
    in OpenCV's order, which decides how those above 2**24 are rounded.
    """
    height, width = centre.shape[1:]
    radius, columns = scale
    right = padded[:, :, across + columns : across + columns + width]
    left = padded[:, :, across - columns : across - columns + width]
    # Below the last row the sums go on unchanged, above the first they are 0.
    higher, lower, middle = out[:, : height - radius], out[:, height - radius :], out[:, radius:]
    higher.copy_(right[:, radius:])
    lower.copy_(right[:, -1:])
    middle.add_(left[:, : height - radius])
    higher.sub_(left[:, radius:])
    lower.sub_(left[:, -1:])
    middle.sub_(right[:, : height - radius])
    counts = []
    for length, reach in zip((height, width), scale, strict=True):
        place = torch.arange(length, device=centre.device)
        counts.append((place + reach + 1).clamp(max=length) - (place - reach + 1).clamp(min=0))
    out.sub_(centre).div_((counts[0].unsqueeze(1) * counts[1] - 1).float())


def _levels(values: Tensor) -> Tensor:
    """Return values [B, H, W], which it overwrites, as levels of their image's largest (255): int32, rounded down."""
    largest = values.amax((1, 2), keepdim=True).clamp_(min=1)
    return values.div_(largest).double().mul_(255).to(torch.int32)
