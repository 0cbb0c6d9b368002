"""rlmix.loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import rlmix
from rlmix import mixed_accuracy, mixed_cross_entropy, mixed_loss, soft_cross_entropy
from rlmix.errors import InputError
from rlmix.loss import Pairs
from rlmix.testing.methods import OperationCounter

CLASSES = 7


def random_pairs(batch: int, slots: int, classes: int = CLASSES) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return labels (some of a row may be equal) and weights that sum to 1."""
    generator = torch.Generator().manual_seed(batch + slots)
    labels = torch.randint(classes, (batch, slots), generator=generator)
    weights = torch.rand(batch, slots, generator=generator).add(0.1)
    weights = weights / weights.sum(1, keepdim=True)
    return tuple(zip(labels.unbind(1), weights.unbind(1), strict=True))


def dense(pairs: Pairs, classes: int = CLASSES) -> Tensor:
    """Return the same targets as [B, C]."""
    targets = torch.zeros(len(pairs[0][0]), classes, dtype=torch.float64)
    for labels, weights in pairs:
        targets[torch.arange(len(labels)), labels] += weights.double()
    return targets


def logits_of(batch: int, classes: int = CLASSES, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(batch, classes, generator=torch.Generator().manual_seed(1))


def test_the_loss_is_torchs_with_class_probabilities() -> None:
    """One value an image, any leading axes, float32 from half precision."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator)
    targets = torch.rand(3, 5, 7, generator=generator).softmax(-1)
    expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1), reduction="none").view(3, 5)
    assert torch.allclose(soft_cross_entropy(logits, targets), expected, atol=1e-6)
    assert soft_cross_entropy(logits.half(), targets).dtype == torch.float32


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_the_loss_of_pairs_is_torchs_with_class_probabilities(
    slots: int, label_smoothing: float, weighted: bool, reduction: str
) -> None:
    """Value and gradient, with smoothing and class weights, for a plain label and for several sources."""
    pairs = random_pairs(6, slots)
    weight = torch.rand(CLASSES, generator=torch.Generator().manual_seed(4)).add(0.5) if weighted else None
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "reduction": reduction}
    first, second = logits_of(6).requires_grad_(), logits_of(6).double().requires_grad_()
    loss = mixed_cross_entropy(first, pairs, weight=weight, **options)
    expected = functional.cross_entropy(
        second, dense(pairs), weight=None if weight is None else weight.double(), **options
    )
    assert loss.dtype == torch.float32
    assert torch.allclose(loss.double(), expected, atol=1e-5)
    loss.sum().backward()
    expected.sum().backward()
    assert first.grad is not None
    assert second.grad is not None
    assert torch.allclose(first.grad.double(), second.grad, atol=1e-5)


def test_gradients_of_every_order_are_right() -> None:
    """Numerically in float64, for logits and for class weights; second derivatives serve meta-learning."""
    pairs = random_pairs(3, 2)
    logits = logits_of(3).double().requires_grad_()
    weight = torch.rand(CLASSES, dtype=torch.float64).add(0.5).requires_grad_()

    def loss(logits: Tensor, weight: Tensor) -> Tensor:
        return mixed_cross_entropy(logits, pairs, label_smoothing=0.2, weight=weight)

    assert loss(logits, weight).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, (logits, weight))
    assert torch.autograd.gradgradcheck(loss, (logits, weight))


@pytest.mark.parametrize("name", ["none", "mixup", "cutmix"])
def test_pairs_of_a_plan_give_the_loss_of_its_soft_targets(name: str) -> None:
    """The two ways from labels to a loss must agree."""
    labels = torch.tensor([3, 0, 3, 6, 5])
    plan = rlmix.methods.get(name).draw(rlmix.MixInputs(5, 8, 8), generator=torch.Generator().manual_seed(0))
    loss = mixed_cross_entropy(logits_of(5), plan.pairs(labels), reduction="none")
    assert torch.allclose(loss, soft_cross_entropy(logits_of(5), plan.soft_targets(labels, CLASSES)), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_class_numbers_above_256_and_weights_survive_half_precision(dtype: torch.dtype) -> None:
    """bfloat16 has 8 bits: class 257 would become 256, and a weight of .999 would become 1."""
    labels = torch.tensor([257, 999, 258])
    logits = torch.zeros(3, 1000, dtype=dtype)
    logits[torch.arange(3), labels] = 12.0
    with torch.autocast("cpu", dtype=dtype):
        inputs = rlmix.MixInputs(3, 8, 8)
        plan = rlmix.methods.get("mixup").draw(inputs, generator=torch.Generator().manual_seed(0))
        pairs = plan.pairs(labels)
        loss = mixed_cross_entropy(logits, pairs, reduction="none")
        targets = plan.soft_targets(labels, 1000)
    assert [kind.dtype for pair in pairs for kind in pair] == [torch.int64, torch.float32] * 2
    assert targets.dtype == torch.float32
    assert bool((targets[torch.arange(3), labels] > 0).all())
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, functional.cross_entropy(logits.float(), targets, reduction="none"), atol=1e-5)


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_large_logits_lose_no_digits(offset: float) -> None:
    """A difference of a log-sum and a logit of 10000 would have lost three digits; infinities none may appear."""
    pairs = random_pairs(6, 2)
    logits = (logits_of(6) * 8).round() / 8
    assert torch.equal(mixed_cross_entropy(logits + offset, pairs), mixed_cross_entropy(logits, pairs))


def test_no_table_of_classes_is_made_but_the_logarithms() -> None:
    """Soft targets of 1000 classes cost more than the loss itself."""
    pairs = random_pairs(4, 2, 1000)
    logits = logits_of(4, 1000)
    with OperationCounter() as counter:
        mixed_cross_entropy(logits, pairs)
    assert counter.read_backs == []
    assert counter.counts["aten._log_softmax.default"] == 1
    assert not [name for name in counter.counts if "zeros" in name or "scatter" in name or "one_hot" in name]


def test_the_loss_compiles_without_a_break() -> None:
    """A graph break in the loss splits every compiled training step."""
    compiled = torch.compile(mixed_cross_entropy, fullgraph=True, backend="eager")
    pairs = random_pairs(4, 2)
    assert torch.allclose(
        compiled(logits_of(4), pairs, label_smoothing=0.1),
        mixed_cross_entropy(logits_of(4), pairs, label_smoothing=0.1),
    )


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Return a loss of class numbers that is not linear in the logarithms."""
    each = functional.cross_entropy(logits, labels, reduction="none")
    return (1.0 - torch.exp(-each)) ** 2 * each


def binary(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross-entropy of each class, summed."""
    targets = functional.one_hot(labels, CLASSES).float()
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)


@pytest.mark.parametrize("loss", [focal, binary])
def test_any_loss_of_class_numbers_is_taken_to_pairs(loss: Any) -> None:
    """The weighted sum over the sources of each image, written as a loop."""
    pairs = random_pairs(5, 3)
    logits = logits_of(5)
    expected = torch.zeros(5)
    for row in range(5):
        for labels, weights in pairs:
            expected[row] += weights[row] * loss(logits[row : row + 1], labels[row : row + 1])[0]
    assert torch.allclose(mixed_loss(loss)(logits, pairs), expected, atol=1e-5)


def test_binary_cross_entropy_of_pairs_is_that_of_their_soft_targets() -> None:
    """It is linear in the targets, so both ways must agree."""
    pairs = random_pairs(5, 2)
    targets = dense(pairs).float()
    expected = functional.binary_cross_entropy_with_logits(logits_of(5), targets, reduction="none").sum(1)
    assert torch.allclose(mixed_loss(binary)(logits_of(5), pairs), expected, atol=1e-5)


def test_a_loss_that_is_averaged_already_is_refused() -> None:
    """A mean over the batch would be multiplied with every image's weight, a wrong loss without an error."""
    with pytest.raises(InputError, match='must give one value for each image, .5., got ... Give it reduction="none"'):
        mixed_loss(functional.cross_entropy)(logits_of(5), random_pairs(5, 2))


def test_accuracy_counts_a_prediction_by_the_weight_of_its_class() -> None:
    """Training accuracy on mixed labels means nothing if it asks for the heavier source only."""
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6], [1.0, 0.0, 0.0]])
    logits = torch.tensor([[0.0, 1, 0], [0, 0, 1.0], [0, 0, 1.0]])
    assert torch.allclose(mixed_accuracy(logits, targets), torch.tensor((0.3 + 0.6 + 0.0) / 3))


def test_accuracy_of_pairs_is_a_mixed_loss() -> None:
    """Whoever trains with pairs has no targets [B, C]."""
    pairs = random_pairs(30, 2)
    logits = logits_of(30)
    right = mixed_loss(lambda logits, labels: (logits.argmax(1) == labels).float())
    assert torch.allclose(right(logits, pairs).mean(), mixed_accuracy(logits, dense(pairs).float()), atol=1e-6)


PAIRS = random_pairs(5, 2)
BAD: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "targets for pairs": (logits_of(5), torch.rand(5, CLASSES), {}, "For targets .B, C. use soft_cross_entropy"),
    "two columns for pairs": (logits_of(5), torch.rand(5, 2), {}, "as many as there are rows of logits"),
    "no pairs": (logits_of(5), (), {}, "`pairs` must be .labels, weights. for each slot"),
    "another batch": (logits_of(4), PAIRS, {}, "`pairs` must hold tensors .4."),
    "class numbers in half precision": (
        logits_of(5), ((PAIRS[0][0].bfloat16(), PAIRS[0][1]),), {}, "must be int64, got torch.bfloat16. Use labels.long"
    ),
    "one image": (logits_of(5)[0], PAIRS, {}, "`logits` must be floating point .B, C."),
    "whole logits": (logits_of(5).long(), PAIRS, {}, "`logits` must be floating point"),
    "weights for images": (logits_of(5), PAIRS, {"weight": torch.ones(5)}, "`weight` must be .7., a factor for each"),
    "smoothing": (logits_of(5), PAIRS, {"label_smoothing": 1.5}, "`label_smoothing` must be in .0, 1., got 1.5"),
    "reduction": (logits_of(5), PAIRS, {"reduction": "batchmean"}, "`reduction` must be one of 'mean', 'sum', 'none'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_would_broadcast_into_a_wrong_loss_is_refused(name: str) -> None:
    """Targets and pairs look alike to a broadcasting sum."""
    logits, pairs, options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        mixed_cross_entropy(logits, pairs, **options)
