"""Finding the layer whose features make a map."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rlmix.errors import InputError, nearest


def find_layer(network: nn.Module, layer: str | None) -> tuple[str, nn.Module]:
    """Return a layer with its name; None takes the last `Conv2d`.

    Raises:
        InputError: no such layer, or no convolution.
    """
    modules = dict(network.named_modules())
    if layer is None:
        convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
        if not convolutions:
            raise InputError("the model has no `Conv2d` to take features from. Name a `layer`, or use input_gradient.")
        layer = convolutions[-1]
    if layer not in modules:
        raise InputError(f"the model has no layer `{layer}`. {nearest(layer, [name for name in modules if name])}")
    return layer, modules[layer]


def check_features(layer: str, seen: list[Any]) -> Tensor:
    """Return the last features that were seen.

    Raises:
        InputError: the layer did not run, or its features are no maps [B, channels, h, w].
    """
    if not seen or not isinstance(seen[-1], Tensor) or seen[-1].dim() != 4:
        given = list(seen[-1].shape) if seen and isinstance(seen[-1], Tensor) else "nothing"
        raise InputError(f"layer `{layer}` must give features [B, channels, h, w], got {given}. Name another `layer`.")
    return seen[-1]
