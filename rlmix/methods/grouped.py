"""Many classifiers at once, each with a method of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlmix.errors import InputError
from rlmix.methods.method import AbstractMethod, by_group
from rlmix.ops.rng import Streams
from rlmix.plan import MixPlan
from rlmix.types import MixInputs


def plan_groups(methods: Sequence[AbstractMethod], inputs: MixInputs, streams: Streams) -> MixPlan:
    """Draw the plan of a batch in which every group has its own method.

    Groups with equal methods are drawn together. What a group gets depends on its own key, method and rows alone.

    Args:
        methods: one for each group; parameters are floats.
        inputs: of the whole batch.
        streams: one key for each group.

    Raises:
        InputError: not one method for each group.
    """
    if len(methods) != inputs.groups:
        raise InputError(f"`methods` must be one for each group: {inputs.groups} groups, {len(methods)} methods.")
    return by_group(methods, inputs, streams, _plan_method)


def _plan_method(method: AbstractMethod, inputs: MixInputs, streams: Streams, rows: Tensor | None) -> MixPlan:
    return method.plan(inputs, streams)
