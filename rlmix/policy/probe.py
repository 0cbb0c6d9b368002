"""Looking at a model without leaving a trace in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rlmix.errors import InputError
from rlmix.ops.modules import kept_random_state, unwrap

PROBE_EXAMPLES = 128
"""Unmixed training images that an observation looks at: this batch and those just before, until there are so many."""

# Predictions are made in parts of this size, so that a large validation batch needs no more memory than training.
_PART = 256


@torch.no_grad()
def forward(model: nn.Module, images: Tensor) -> Tensor:
    """Return the model's logits in evaluation mode, float32 [n, C].

    Training flags are as before for every submodule, buffers and `.grad` are not written, the global random state and
    the cache of autocast stay. `DistributedDataParallel`, `DataParallel` and compiled models are unwrapped, so no
    process waits for another and nothing is compiled anew.

    Args:
        model: maps [n, C', H, W] to logits [n, C].
        images: [n, C', H, W].

    Raises:
        InputError: the model returns something else.
    """
    network = unwrap(model)
    buffers = {name: value.detach().clone() for name, value in network.named_buffers()}
    with _evaluating(network), _without_autocast_cache(), kept_random_state(images.device):
        parts = [_logits(functional_call(network, buffers, (part,))) for part in torch.split(images, _PART)]
    return torch.cat(parts).float()


def _logits(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() != 2:
        given = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"`model` must return logits [n, num_classes], got {given}. Wrap it in a module that returns the logits."
        )
    return output


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    # The flags themselves, since `eval()` may be overridden and merge weights, and `train()` would set all alike.
    flags = [(module, module.training) for module in network.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def _without_autocast_cache() -> Iterator[None]:
    # A weight that autocast converts without gradients would be found in its cache by the training step, and get none.
    enabled = torch.is_autocast_cache_enabled()
    try:
        torch.set_autocast_cache_enabled(False)
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


@final
class RecentBatches:
    """Copies of the last unmixed batches, newest first, all of one image size."""

    __slots__ = ("_batches",)

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Keep copies of a batch, and as many earlier ones as `PROBE_EXAMPLES` need."""
        form = (images.shape[1:], images.dtype, images.device)
        earlier = [batch for batch in self._batches if (batch[0].shape[1:], batch[0].dtype, batch[0].device) == form]
        batches = [(images.detach().clone(), labels.clone()), *earlier]
        total, kept = 0, 0
        while kept < len(batches) and total < PROBE_EXAMPLES:
            total += len(batches[kept][1])
            kept += 1
        self._batches = batches[:kept]

    def joined(self) -> tuple[Tensor, Tensor]:
        """Return all kept images and labels."""
        images, labels = zip(*self._batches, strict=True)
        return torch.cat(images), torch.cat(labels)

    def clear(self) -> None:
        """Forget all."""
        self._batches = []

    def state(self) -> list[tuple[Tensor, Tensor]]:
        """Return what is kept."""
        return list(self._batches)

    def load_state(self, state: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> None:
        """Keep what `state` returned, on `device`."""
        self._batches = [(images.to(device), labels.to(device)) for images, labels in state]
