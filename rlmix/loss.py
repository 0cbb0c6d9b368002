"""Losses and accuracy on mixed targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from rlmix.errors import InputError

Pairs = Sequence[tuple[Tensor, Tensor]]
"""What `MixPlan.pairs` returns: (labels int64 [B], weights float32 [B]) for each slot."""

Reduction = Literal["mean", "sum", "none"]
_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"mean": Tensor.mean, "sum": Tensor.sum, "none": lambda each: each}


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each image with its label distribution.

    Args:
        logits: [..., C], floating point.
        targets: [..., C], rows sum to 1.

    Returns:
        float32 [...], not below 0. Computed in float32 whatever the logits are.
    """
    return -(targets * functional.log_softmax(logits.float(), dim=-1)).sum(-1)


def mixed_cross_entropy(
    logits: Tensor,
    pairs: Pairs,
    *,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the cross-entropy with mixed labels, from class numbers and weights: no [B, C] target is made.

    What `torch.nn.functional.cross_entropy` gives for `plan.soft_targets(labels, C)` and the same options, in the time
    of its form for plain class numbers: one log-softmax, of which only the entries of the sources' classes are read.
    Class numbers stay int64 (bfloat16 would round those above 256), weights float32.

    Args:
        logits: [B, C], floating point; half precision is computed in float32.
        pairs: what `plan.pairs(labels)` returns: (labels int64 [B] in [0, C), weights float32 [B]) for each slot.
        label_smoothing: in [0, 1]; this much of each row's target is spread evenly over the classes (Szegedy et al.
            2016, https://arxiv.org/abs/1512.00567, Section 7).
        weight: float [C], a factor for each class, or None for ones.
        reduction: "mean" over the images (as PyTorch's with class probabilities, it does not divide by `weight`), "sum"
            or "none".

    Returns:
        float32 (float64 for such logits): a scalar, or [B] for the reduction "none".

    Raises:
        InputError: logits, pairs or class weights of other shapes, or an option out of its range.

    Example:
        >>> import torch, rlmix
        >>> labels = torch.tensor([0, 3, 2])
        >>> inputs = rlmix.MixInputs(3, 8, 8)
        >>> plan = rlmix.methods.get("cutmix").draw(inputs, generator=torch.Generator().manual_seed(0))
        >>> rlmix.mixed_cross_entropy(torch.zeros(3, 4), plan.pairs(labels))
        tensor(1.3863)
    """
    labels, weights = _stacked(logits, pairs)
    if reduction not in _REDUCTIONS:
        raise InputError(f"`reduction` must be one of {', '.join(map(repr, _REDUCTIONS))}, got {reduction!r}.")
    if not 0.0 <= label_smoothing <= 1.0:
        raise InputError(f"`label_smoothing` must be in [0, 1], got {label_smoothing!r}.")
    classes = logits.shape[1]
    if weight is not None and weight.shape != (classes,):
        raise InputError(f"`weight` must be [{classes}], a factor for each class, got {list(weight.shape)}.")
    logs = functional.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
    if weight is not None:
        weights = weights * weight[labels]
    each = -(logs.gather(1, labels) * weights).sum(1)
    if label_smoothing > 0.0:
        spread = logs.sum(1) if weight is None else (logs * weight).sum(1)
        each = (1.0 - label_smoothing) * each - label_smoothing / classes * spread
    return _REDUCTIONS[reduction](each)


def mixed_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Pairs], Tensor]:
    """Return a loss of class numbers as a loss of mixed labels: the sum over slots of weight * loss(logits, labels).

    Args:
        loss: (logits [B, ...], labels int64 [B]) -> one value for each image, [B]: a focal loss, a margin loss, binary
            cross-entropy on `one_hot(labels)`; or what is right for a single label, such as
            `lambda logits, labels: (logits.argmax(1) == labels).float()` for the accuracy. It runs once a slot.

    Returns:
        (logits, `plan.pairs(labels)`) -> [B].

    Raises:
        InputError: from the returned function, where `loss` has not given one value for each image.

    Example:
        >>> import torch, rlmix
        >>> def focal(logits, labels):
        ...     each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        ...     return (1 - torch.exp(-each)) ** 2 * each
        >>> pairs = ((torch.tensor([0, 1]), torch.tensor([0.7, 1.0])), (torch.tensor([1, 1]), torch.tensor([0.3, 0.0])))
        >>> rlmix.mixed_loss(focal)(torch.zeros(2, 2), pairs)
        tensor([0.1733, 0.1733])
    """

    def mixed(logits: Tensor, pairs: Pairs) -> Tensor:
        labels, weights = _stacked(logits, pairs)
        total = torch.zeros((), device=logits.device)
        for slot in range(labels.shape[1]):
            each = loss(logits, labels[:, slot])
            if each.shape != logits.shape[:1]:
                raise InputError(
                    f"the loss must give one value for each image, [{logits.shape[0]}], got {list(each.shape)}. Give "
                    'it reduction="none", and take the mean of what comes back.'
                )
            total = total + weights[:, slot] * each
        return total

    return mixed


def mixed_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean weight that the targets give to the predicted class: a scalar in [0, 1], on the device.

    With unmixed labels this is the plain accuracy; with mixed ones a prediction of either source counts by its weight.
    (Of pairs, `mixed_loss(lambda logits, labels: (logits.argmax(1) == labels).float())(logits, pairs).mean()` is the
    same.)

    Args:
        logits: [B, C].
        targets: [B, C], rows sum to 1.
    """
    return torch.gather(targets, -1, logits.argmax(-1, keepdim=True)).mean()


def _stacked(logits: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return labels int64 [B, K] and weights [B, K], refusing what would broadcast into a wrong loss."""
    if logits.dim() != 2 or not logits.is_floating_point():
        raise InputError(f"`logits` must be floating point [B, C], got {logits.dtype} {list(logits.shape)}.")
    batch = logits.shape[:1]
    if len(pairs) == 0 or any(len(pair) != 2 for pair in pairs):
        raise InputError(
            "`pairs` must be (labels, weights) for each slot, as `plan.pairs(labels)` gives them. For targets [B, C] "
            "use soft_cross_entropy(logits, targets)."
        )
    if any(tensor.shape != batch for pair in pairs for tensor in pair):
        shapes = [list(tensor.shape) for pair in pairs for tensor in pair]
        raise InputError(f"`pairs` must hold tensors [{batch[0]}], as many as there are rows of logits, got {shapes}.")
    if any(labels.dtype != torch.int64 for labels, _ in pairs):
        dtypes = sorted({str(labels.dtype) for labels, _ in pairs})
        raise InputError(f"the labels in `pairs` must be int64, got {', '.join(dtypes)}. Use labels.long().")
    return torch.stack([labels for labels, _ in pairs], 1), torch.stack([weights for _, weights in pairs], 1)
