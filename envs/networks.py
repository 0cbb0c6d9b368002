"""N classifiers of one architecture: parameters stacked on a leading axis, one forward and one SGD step for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from rlmix.errors import ConfigError
from rlmix.loss import soft_cross_entropy

Forward: TypeAlias = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""Parameters by name [N, ...] and images [N, n, C, H, W] -> logits [N, n, classes]."""


def forward_of(model: nn.Module, *, looped: bool) -> Forward:
    """Return the forward of N copies of `model` that differ in their parameters.

    Args:
        model: gives the architecture; must have no buffers, such as the statistics of BatchNorm.
        looped: one network after the other instead of stacked matrices; the faster way for convolutions on a CPU.

    Raises:
        ConfigError: the model has buffers.
    """
    if any(True for _ in model.buffers()):
        raise ConfigError("a model with buffers (BatchNorm) cannot be stacked. Use `model: mlp` or `model: cnn`.")

    def single(parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, dict(parameters), (images,))
        return logits

    if not looped:
        return vmap(single)

    def one_by_one(parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        # `unbind`, not indexing: the gradient of N indexings would be N tensors of the whole stack's size.
        apart = {name: value.unbind(0) for name, value in parameters.items()}
        rows = range(images.shape[0])
        return torch.stack([single({name: apart[name][row] for name in apart}, images[row]) for row in rows])

    return one_by_one


@final
class Stack:
    """The parameters and momentum of N classifiers.

    Args:
        forward: from `forward_of`.
        parameters: float32 [N, ...] by name.
        momentum: the same shapes.
    """

    __slots__ = ("_forward", "momentum", "parameters")

    def __init__(self, forward: Forward, parameters: Mapping[str, Tensor], momentum: Mapping[str, Tensor]) -> None:
        self._forward = forward
        self.parameters = {name: _laid_out(value.detach()).requires_grad_() for name, value in parameters.items()}
        self.momentum = {name: _laid_out(value) for name, value in momentum.items()}

    @classmethod
    def initial(cls, forward: Forward, weights: Sequence[Mapping[str, Tensor]], device: torch.device) -> Stack:
        """Return networks with the given initial weights and no momentum."""
        parameters = {name: torch.stack([one[name] for one in weights]).to(device) for name in weights[0]}
        return cls(forward, parameters, {name: torch.zeros_like(value) for name, value in parameters.items()})

    def select(self, rows: Tensor) -> Stack:
        """Return copies of some networks, each as often as it is named."""
        parameters = {name: value[rows] for name, value in self.parameters.items()}
        return Stack(self._forward, parameters, {name: value[rows] for name, value in self.momentum.items()})

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return float32 [N, n, classes] for images [N, n, C, H, W]."""
        return self._forward(self.parameters, images).float()

    def saliency(self, images: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Return what `rlmix.saliency.input_gradient` gives for the networks in `rows`: float32 [r, B, H, W].

        Args:
            images: [r, B, C, H, W].
            labels: int64 [r, B].
            rows: int64 [r].
        """
        parameters = {name: value.detach()[rows] for name, value in self.parameters.items()}
        pixels = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = self._forward(parameters, pixels).float()
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, pixels)
        return gradient.square().mean(2).sqrt()

    def descend(
        self, images: Tensor, targets: Tensor, rates: Tensor, momentum: float, weight_decay: float, alive: Tensor
    ) -> Tensor:
        """Take one step of SGD with momentum and return each network's loss.

        A network whose loss is not finite, or that is not alive, keeps its parameters.

        Args:
            images: [N, B, C, H, W].
            targets: [N, B, classes].
            rates: float32 [N], learning rates.
            momentum: in [0, 1).
            weight_decay: at least 0.
            alive: bool [N].

        Returns:
            float32 [N], the means over the batches.
        """
        leaves = list(self.parameters.values())
        losses = soft_cross_entropy(self._forward(self.parameters, images), targets).mean(1)
        gradients = list(torch.autograd.grad(losses.sum(), leaves))
        losses = losses.detach()
        finite = alive & torch.isfinite(losses)
        if not bool(finite.all()):
            gradients = [value.masked_fill(~_like(finite, value), 0.0) for value in gradients]
            rates = rates.masked_fill(~finite, 0.0)
            for value in self.momentum.values():
                value.masked_fill_(~_like(finite, value), 0.0)
        with torch.no_grad():
            if weight_decay:
                torch._foreach_add_(gradients, leaves, alpha=weight_decay)
            velocities = list(self.momentum.values())
            torch._foreach_mul_(velocities, momentum)
            torch._foreach_add_(velocities, gradients)
            for leaf, velocity in zip(leaves, velocities, strict=True):
                leaf.addcmul_(velocity, _like(rates, velocity), value=-1.0)
        return losses

    def finite(self) -> Tensor:
        """Return which networks have finite parameters: bool [N]."""
        sums = torch.stack([value.detach().flatten(1).sum(1) for value in self.parameters.values()])
        return torch.isfinite(sums.sum(0))


def _laid_out(value: Tensor) -> Tensor:
    """Return a copy in the layout that gradients come in: of matrices the transposed one.

    Updating tensors of one layout takes a third of the time of tensors of two.
    """
    if value.dim() == 3:
        return value.mT.clone(memory_format=torch.contiguous_format).mT
    return value.clone(memory_format=torch.contiguous_format)


def _like(values: Tensor, tensor: Tensor) -> Tensor:
    """Show [N] as [N, 1, ...] with the tensor's number of axes."""
    return values.view(-1, *[1] * (tensor.dim() - 1))
