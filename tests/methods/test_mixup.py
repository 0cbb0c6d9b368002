"""Mixup."""

from __future__ import annotations

import pytest
import torch

from rlmix import apply
from rlmix.errors import MethodError
from rlmix.methods import get
from rlmix.ops.rng import Streams
from rlmix.testing.methods import batch_of


def test_it_is_the_convex_combination_of_its_paper() -> None:
    """`lam * own + (1 - lam) * partner`, per image."""
    images, labels, inputs = batch_of(9, (6, 5))
    plan = get("mixup", alpha=0.7).plan(inputs, Streams([3]))
    mixed, targets = apply(images, plan), plan.soft_targets(labels, 9)
    for row, partner in enumerate(plan.partners[:, 0].tolist()):
        weight = 1.0 - float(plan.label_shares[row, 0])
        assert torch.allclose(mixed[row], weight * images[row] + (1 - weight) * images[partner], atol=1e-6)
        assert torch.allclose(targets[row], weight * torch.eye(9)[row] + (1 - weight) * torch.eye(9)[partner])


def test_lam_follows_beta() -> None:
    """The variance of Beta(a, a) is 1 / (4 (2a + 1)); six standard errors leave a false alarm of 2e-9."""
    for alpha in (0.2, 1.0):
        plan = get("mixup", alpha=alpha).plan(batch_of(20_000, (1, 1), channels=1)[2], Streams([5]))
        weights = 1.0 - plan.label_shares[:, 0].double()
        expected = 1 / (4 * (2 * alpha + 1))
        assert abs(float(weights.mean()) - 0.5) < 6 * (expected / 20_000) ** 0.5
        assert abs(float(weights.var()) - expected) < 6 * expected / 20_000**0.5


def test_one_lam_for_the_batch() -> None:
    """The authors' code draws one; groups draw their own."""
    plan = get("mixup", scope="batch").plan(batch_of(12, (4, 4), groups=3)[2], Streams([1, 2, 3]))
    by_group = plan.label_shares.view(3, 4)
    assert torch.equal(by_group, by_group[:, :1].expand(3, 4))
    assert by_group[:, 0].unique().numel() == 3


def test_a_parameter_for_each_image_gives_what_the_same_float_gives() -> None:
    """An agent may choose a strength for each image."""
    inputs = batch_of(6, (4, 4))[2]
    alphas = torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0, 8.0])
    whole = get("mixup", alpha=alphas).plan(inputs, Streams([9]))
    for row, alpha in enumerate(alphas.tolist()):
        single = get("mixup", alpha=alpha).plan(inputs, Streams([9]))
        assert torch.equal(whole.label_shares[row], single.label_shares[row])


@pytest.mark.parametrize("alpha", [0, -0.2, float("nan"), float("inf"), "1", True, torch.tensor([1.0, 0.0])])
def test_an_alpha_that_is_not_above_zero_is_refused(alpha: object) -> None:
    """The message says how to switch mixing off instead."""
    with pytest.raises(MethodError, match=r"`alpha` must be .*above 0.* use method \"none\""):
        get("mixup", alpha=alpha)


def test_an_unknown_scope_and_a_probability_out_of_range_are_refused() -> None:
    """A misspelt scope would silently mean the other one."""
    with pytest.raises(MethodError, match="`scope` must be one of 'image', 'batch', got 'element'"):
        get("mixup", scope="element")
    for probability in (-0.1, 1.1, "0.5", torch.tensor([0.5, 1.5])):
        with pytest.raises(MethodError, match=r"`probability` must be .*in \[0, 1\]"):
            get("mixup", probability=probability)
