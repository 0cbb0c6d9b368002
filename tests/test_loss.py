"""rlmix.loss."""

from __future__ import annotations

import torch
from torch.nn import functional

from rlmix import mixed_accuracy, soft_cross_entropy


def test_the_loss_is_torchs_with_class_probabilities() -> None:
    """One value an image, any leading axes, float32 from half precision."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator)
    targets = torch.rand(3, 5, 7, generator=generator).softmax(-1)
    expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1), reduction="none").view(3, 5)
    assert torch.allclose(soft_cross_entropy(logits, targets), expected, atol=1e-6)
    assert soft_cross_entropy(logits.half(), targets).dtype == torch.float32


def test_accuracy_counts_a_prediction_by_the_weight_of_its_class() -> None:
    """Training accuracy on mixed labels means nothing if it asks for the heavier source only."""
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6], [1.0, 0.0, 0.0]])
    logits = torch.tensor([[0.0, 1, 0], [0, 0, 1.0], [0, 0, 1.0]])
    assert torch.allclose(mixed_accuracy(logits, targets), torch.tensor((0.3 + 0.6 + 0.0) / 3))
