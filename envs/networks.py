"""N classifiers of one architecture: parameters stacked on a leading axis, one forward and one SGD step for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from rlmix.errors import ConfigError
from rlmix.loss import soft_cross_entropy

Tensors: TypeAlias = Mapping[str, Tensor]


class Forward(Protocol):
    """The forward of N networks that differ in their parameters and buffers."""

    def __call__(self, parameters: Tensors, buffers: Tensors, images: Tensor, *, training: bool) -> Tensor:
        """Return logits [N, n, classes].

        Args:
            parameters: [N, ...] by name.
            buffers: [N, ...] by name; written in training mode.
            images: [N, n, C, H, W].
            training: whether the networks run in training mode.
        """


def forward_of(model: nn.Module, *, looped: bool) -> Forward:
    """Return the forward of N copies of `model` that differ in their parameters and buffers.

    Args:
        model: gives the architecture.
        looped: one network after the other instead of stacked matrices; the faster way for convolutions on a CPU.

    Raises:
        ConfigError: the model has buffers, such as the statistics of BatchNorm, and is not looped.
    """
    if not looped and any(True for _ in model.buffers()):
        raise ConfigError("a model with buffers (BatchNorm) cannot be stacked. Use `looped=True`.")

    def single(tensors: Tensors, images: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, dict(tensors), (images,))
        return logits

    def stacked(parameters: Tensors, buffers: Tensors, images: Tensor, *, training: bool) -> Tensor:
        model.train(training)
        logits: Tensor = vmap(single)(parameters, images)
        return logits

    def one_by_one(parameters: Tensors, buffers: Tensors, images: Tensor, *, training: bool) -> Tensor:
        model.train(training)
        # `unbind`, not indexing: the gradient of N indexings would be N tensors of the whole stack's size. Buffers are
        # written through the views.
        apart = {name: value.unbind(0) for name, value in {**parameters, **buffers}.items()}
        rows = range(images.shape[0])
        return torch.stack([single({name: apart[name][row] for name in apart}, images[row]) for row in rows])

    return one_by_one if looped else stacked


@final
class Stack:
    """The parameters, momentum and buffers of N classifiers.

    Args:
        forward: from `forward_of`.
        parameters: float32 [N, ...] by name.
        momentum: the same shapes.
        buffers: [N, ...] by name, such as the statistics of BatchNorm.
    """

    __slots__ = ("_forward", "buffers", "momentum", "parameters")

    def __init__(self, forward: Forward, parameters: Tensors, momentum: Tensors, buffers: Tensors) -> None:
        self._forward = forward
        self.parameters = {name: _laid_out(value.detach()).requires_grad_() for name, value in parameters.items()}
        self.momentum = {name: _laid_out(value) for name, value in momentum.items()}
        self.buffers = {name: value.clone() for name, value in buffers.items()}

    @classmethod
    def initial(
        cls, forward: Forward, weights: Sequence[Tensors], device: torch.device, buffers: Tensors = MappingProxyType({})
    ) -> Stack:
        """Return networks with the given initial weights and no momentum, all with the same buffers."""
        parameters = {name: torch.stack([one[name] for one in weights]).to(device) for name in weights[0]}
        momentum = {name: torch.zeros_like(value) for name, value in parameters.items()}
        copies = {name: torch.stack([value.to(device)] * len(weights)) for name, value in buffers.items()}
        return cls(forward, parameters, momentum, copies)

    def select(self, rows: Tensor) -> Stack:
        """Return copies of some networks, each as often as it is named."""
        tensors = (self.parameters, self.momentum, self.buffers)
        return Stack(self._forward, *({name: value[rows] for name, value in part.items()} for part in tensors))

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return float32 [N, n, classes] for images [N, n, C, H, W], of the networks in evaluation mode."""
        return self._forward(self.parameters, self.buffers, images, training=False).float()

    def saliency(self, images: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Return what `rlmix.saliency.input_gradient` gives for the networks in `rows`: float32 [r, B, H, W].

        As there, the networks run in training mode, and their buffers stay.

        Args:
            images: [r, B, C, H, W].
            labels: int64 [r, B], or targets float32 [r, B, classes].
            rows: int64 [r].
        """
        parameters = {name: value.detach()[rows] for name, value in self.parameters.items()}
        buffers = {name: value[rows] for name, value in self.buffers.items()}
        pixels = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = self._forward(parameters, buffers, pixels, training=True).float()
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(0, 1), reduction="sum")
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
        logits = self._forward(self.parameters, self.buffers, images, training=True)
        losses = soft_cross_entropy(logits, targets).mean(1)
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
