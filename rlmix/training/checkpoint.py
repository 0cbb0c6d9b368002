"""Where a training stands, in one file that runs no code when it is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

from torch import nn
from torch.optim import SGD

from rlmix._files import load_tree, save_tree
from rlmix.errors import CheckpointError

FORMAT = "rlmix.train/1"


def save(
    path: str | os.PathLike[str],
    *,
    identity: Mapping[str, Any],
    model: nn.Module,
    optimizer: SGD,
    rest: Mapping[str, Any],
) -> None:
    """Write a checkpoint, atomically.

    Args:
        path: the file.
        identity: what decides the course of the training, by name.
        model: its parameters and buffers are kept.
        optimizer: its momentum is kept; its settings belong to `identity`.
        rest: what else is needed to go on, a tree for `rlmix._files.save_tree`.

    Raises:
        OutputError: the folder cannot be written.
    """
    momentum = [optimizer.state[parameter].get("momentum_buffer") for parameter in _parameters(optimizer)]
    tree = {
        "format": FORMAT,
        "identity": dict(identity),
        "model": dict(model.state_dict()),
        "momentum": momentum,
        "rest": dict(rest),
    }
    save_tree(path, tree)


def restore(
    path: str | os.PathLike[str], *, identity: Mapping[str, Any], model: nn.Module, optimizer: SGD
) -> dict[str, Any]:
    """Put a checkpoint into a model and its optimizer, and return the rest.

    Raises:
        CheckpointError: the file is missing, damaged, or belongs to another training; the message says what differs.
    """
    tree = load_tree(path)
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise CheckpointError(f"`{path}` is no checkpoint of a training. Give the folder of an earlier run.")
    saved = tree["identity"]
    differing = [name for name in {**saved, **identity} if saved.get(name) != identity.get(name)]
    if differing:
        told = "; ".join(f"`{name}` was {saved.get(name)!r}, now {identity.get(name)!r}" for name in differing)
        raise CheckpointError(f"`{path}` belongs to another training: {told}. Give another output folder.")
    try:
        model.load_state_dict(tree["model"])
        for parameter, momentum in zip(_parameters(optimizer), tree["momentum"], strict=True):
            if momentum is not None:
                optimizer.state[parameter]["momentum_buffer"] = momentum.to(parameter.device)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"`{path}` does not fit the model ({error}).") from error
    return cast(dict[str, Any], tree["rest"])


def _parameters(optimizer: SGD) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
