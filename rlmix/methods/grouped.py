"""Many classifiers at once, each with a method of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlmix.errors import InputError
from rlmix.methods.method import AbstractMethod, by_group
from rlmix.ops.rng import Streams
from rlmix.plan import MixPlan
from rlmix.types import MixInputs


def plan_groups(methods: Sequence[AbstractMethod], inputs: MixInputs, streams: Streams) -> MixPlan:
    """Draw the plan of a batch in which every group has its own method.

    Groups whose methods differ at most in numbers that may be tensors are drawn together, with a tensor [B] of these.
    What a group gets depends on its own key, method and rows alone.

    Args:
        methods: one for each group; parameters are floats.
        inputs: of the whole batch.
        streams: one key for each group.

    Raises:
        InputError: not one method for each group.
    """
    if len(methods) != inputs.groups:
        raise InputError(f"`methods` must be one for each group: {inputs.groups} groups, {len(methods)} methods.")
    kinds = {method: _kind(method) for method in dict.fromkeys(methods)}

    def plan(kind: Hashable, inputs: MixInputs, streams: Streams, rows: Tensor | None) -> MixPlan:
        members = [method for method in methods if kinds[method] == kind]
        return _joined(members, inputs).plan(inputs, streams)

    return by_group([kinds[method] for method in methods], inputs, streams, plan)


def _kind(method: AbstractMethod) -> Hashable:
    """Return what methods that are drawn together have in common."""
    fields = ((field.name, getattr(method, field.name)) for field in dataclasses.fields(method))
    open_names = _open(method)
    return type(method), *((name, float if name in open_names else value) for name, value in fields)


def _open(method: AbstractMethod) -> set[str]:
    """Return the names of the parameters that are numbers now and may be tensors."""
    return {
        field.name
        for field in dataclasses.fields(method)
        if "Tensor" in str(field.type) and isinstance(getattr(method, field.name), float | int)
    }


def _joined(members: Sequence[AbstractMethod], inputs: MixInputs) -> AbstractMethod:
    """Return one method for these groups, with tensors [B] of the parameters in which they differ."""
    values = {name: [getattr(member, name) for member in members] for name in _open(members[0])}
    tensors: dict[str, Any] = {
        name: _rows(given, inputs) for name, given in values.items() if any(value != given[0] for value in given)
    }
    return dataclasses.replace(members[0], **tensors) if tensors else members[0]


def _rows(values: Sequence[float], inputs: MixInputs) -> Tensor:
    """Return a number for each group as one for each of its rows, float64 [B]."""
    each = torch.tensor(values, dtype=torch.float64).to(inputs.device, non_blocking=True)
    return each.unsqueeze(1).expand(-1, inputs.group_size).reshape(-1)
