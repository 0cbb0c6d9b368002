"""Mirroring and shifting, as natural images are augmented before they are mixed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rlmix.ops import rng

_FLIP = 100
_ROWS = 101
_COLUMNS = 102


def mirrored(batch: int, key: int, device: torch.device) -> Tensor:
    """Return which images `augmented` mirrors: bool [batch]."""
    return rng.uniform(torch.tensor([key], device=device), _FLIP, (batch,))[0] < 0.5


def augmented(images: Tensor, key: int) -> Tensor:
    """Return each image mirrored with probability one half and shifted by up to an eighth of its height and width.

    What comes in at the edges is black. Source: He, Zhang, Ren, Sun 2016, https://arxiv.org/abs/1512.03385,
    Section 4.2 (4 pixels of 32).

    Args:
        images: float [B, C, H, W], any device; not written.
        key: whole number in [0, 2**63); the result is a function of it.

    Returns:
        [B, C, H, W], new memory.
    """
    batch, _, height, width = images.shape
    pads = (height // 8, width // 8)
    keys = torch.tensor([key], device=images.device)
    flips = mirrored(batch, key, images.device)
    tops, lefts = (
        rng.integers(keys, purpose, (batch,), 2 * pad + 1)[0]
        for purpose, pad in zip((_ROWS, _COLUMNS), pads, strict=True)
    )
    rows = tops.unsqueeze(1) + torch.arange(height, device=images.device)
    across = torch.arange(width, device=images.device).expand(batch, -1)
    columns = lefts.unsqueeze(1) + torch.where(flips.unsqueeze(1), across.flip(1), across)
    padded = functional.pad(images, (pads[1], pads[1], pads[0], pads[0]))
    chosen = torch.arange(batch, device=images.device)
    # Indexing around a slice puts the indexed axes first: [B, H, W, C].
    return padded[chosen[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
