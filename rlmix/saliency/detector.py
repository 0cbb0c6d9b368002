"""Detectors of saliency in pictures, for images as a training has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from rlmix.saliency._eight_bit import to_uint8
from rlmix.saliency._fine_grained import fine_grained


@final
@dataclass(frozen=True, slots=True)
class Detector:
    """A saliency source that looks at the picture alone, and undoes the normalisation before.

    Args:
        detect: maps uint8 [B, C, H, W] to float [B, h, w]: `fine_grained`, `spectral_residual` or one of your own.
        mean: what was subtracted from the images, one number or one a channel.
        std: what they were divided by, one number or one a channel.

    Example:
        >>> import torch, rlmix
        >>> images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
        >>> rlmix.saliency.Detector()(images, labels).shape
        torch.Size([4, 32, 32])
    """

    detect: Callable[[Tensor], Tensor] = fine_grained
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return a map for each image.

        Args:
            images: floating point [B, C, H, W], normalised by `mean` and `std` from values in [0, 1].
            labels: not looked at; there because saliency sources are called with them.

        Returns:
            float [B, h, w], what `detect` gives.

        Raises:
            InputError: images that are no floats, or that `mean` and `std` do not bring to [0, 1].
        """
        return self.detect(to_uint8(images, self.mean, self.std))
