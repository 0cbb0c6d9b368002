"""Losses and accuracy on mixed targets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each image with its label distribution.

    Args:
        logits: [..., C], floating point.
        targets: [..., C], rows sum to 1.

    Returns:
        float32 [...], not below 0. Computed in float32 whatever the logits are.
    """
    return -(targets * functional.log_softmax(logits.float(), dim=-1)).sum(-1)


def mixed_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean weight that the targets give to the predicted class: a scalar in [0, 1], on the device.

    With unmixed labels this is the plain accuracy; with mixed ones a prediction of either source counts by its weight.

    Args:
        logits: [B, C].
        targets: [B, C], rows sum to 1.
    """
    return torch.gather(targets, -1, logits.argmax(-1, keepdim=True)).mean()
