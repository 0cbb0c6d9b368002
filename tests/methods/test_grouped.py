"""Many classifiers at once: what is drawn together is what each gets alone."""

from __future__ import annotations

import pytest
import torch

from rlmix import apply
from rlmix.methods import registry
from rlmix.methods.grouped import plan_groups
from rlmix.methods.method import AbstractMethod
from rlmix.ops.rng import Streams
from rlmix.testing.methods import OperationCounter
from rlmix.types import MixInputs

SIDE, ROWS = 12, 7


def inputs_of(groups: int) -> MixInputs:
    saliency = torch.rand(groups * ROWS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return MixInputs(groups * ROWS, SIDE, SIDE, groups, saliency=saliency)


METHODS = (
    *(registry.get("mixup", alpha=alpha) for alpha in (0.1, 1.0, 0.2, 7.3)),
    *(registry.get("cutmix", alpha=alpha) for alpha in (0.4, 1.0, 8.0)),
    *(registry.get("rmix", threshold=level) for level in (0.0, 0.33, 0.99)),
    *(registry.get("grafting", temperature=one) for one in (0.1, 1.0, 4.0)),
    registry.get("rmix"),
    registry.get("rmix", alpha=2.0),
    registry.get("mixup", alpha=0.3, scope="batch"),
    registry.get("mixup", alpha=0.5, probability=0.5),
    registry.get("none"),
)


def test_methods_that_differ_in_numbers_get_what_each_gets_alone() -> None:
    """A training must not depend on what its neighbours in the pool chose; bit for bit on a CPU."""
    inputs, keys = inputs_of(len(METHODS)), list(range(5, 5 + len(METHODS)))
    assert inputs.saliency is not None
    images = torch.rand(inputs.batch_size, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(inputs.batch_size) % 10
    plan = plan_groups(METHODS, inputs, Streams(keys))
    mixed, targets = apply(images, plan), plan.soft_targets(labels, 10)
    for group, (method, key) in enumerate(zip(METHODS, keys, strict=True)):
        rows = slice(group * ROWS, (group + 1) * ROWS)
        alone = method.plan(MixInputs(ROWS, SIDE, SIDE, saliency=inputs.saliency[rows]), Streams([key]))
        assert torch.equal(mixed[rows], apply(images[rows], alone)), method
        assert torch.equal(targets[rows], alone.soft_targets(labels[rows], 10)), method


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_many_values_cost_no_more_operations_than_two(name: str) -> None:
    """With a number of its own for each training, a pool would otherwise draw as slowly as a loop."""

    def operations(count: int) -> int:
        methods: list[AbstractMethod] = [registry.get(name, alpha=0.1 + 0.1 * number) for number in range(count)]
        inputs, streams = inputs_of(count), Streams(list(range(count)))
        # What is computed once and kept is not counted.
        with OperationCounter():
            plan_groups(methods, inputs, streams)
        with OperationCounter() as counter:
            plan_groups(methods, inputs, streams)
        return sum(counter.counts.values())

    assert operations(24) == operations(2)
