"""Names and parameters of methods, and plans of several methods at once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from rlmix import MixInputs, apply
from rlmix.errors import InputError, UnknownNameError
from rlmix.methods import get, names, parameters
from rlmix.methods.grouped import plan_groups
from rlmix.ops.rng import Streams
from rlmix.testing.methods import batch_of


def test_unknown_names_answer_with_the_nearest_known_one() -> None:
    """A misspelt parameter must not be swallowed."""
    with pytest.raises(UnknownNameError, match="there is no mix method `mixpu`. Did you mean `mixup`"):
        get("mixpu")
    with pytest.raises(UnknownNameError, match="method `rmix` has no parameter `treshold`. Did you mean `threshold`"):
        get("rmix", treshold=0.5)
    with pytest.raises(UnknownNameError, match="method `none` has no parameter `alpha`"):
        get("none", alpha=1.0)
    assert names()[0] == "none"
    assert names()[-1] == "uniform"
    assert {"mixup", "cutmix", "resizemix", "fmix", "gridmix", "smoothmix"} <= set(names())
    assert {"rmix", "grafting", "attentivemix", "guidedmixup"} <= set(names())
    assert parameters("mixup") == ("probability", "scope", "alpha", "pairing")


def test_groups_with_different_methods_get_what_each_gets_alone() -> None:
    """A pool runs many classifiers, each with its own Decision, in one call."""
    chosen = [get(name) for name in ("cutmix", "none", "rmix", "cutmix", "uniform", "grafting", "mixup")]
    images, _, inputs = batch_of(28, (8, 8), groups=7)
    assert inputs.saliency is not None
    mixed = apply(images, plan_groups(chosen, inputs, Streams(list(range(7)))))
    for group, method in enumerate(chosen):
        rows = slice(group * 4, group * 4 + 4)
        alone = method.plan(MixInputs(4, 8, 8, saliency=inputs.saliency[rows]), Streams([group]))
        assert torch.equal(mixed[rows], apply(images[rows], alone))
    with pytest.raises(InputError, match="`methods` must be one for each group: 7 groups, 1 methods"):
        plan_groups(chosen[:1], inputs, Streams(list(range(7))))


def test_plans_are_the_same_in_another_process() -> None:
    """Hash seeds and import order must not reach a plan."""
    code = (
        "import torch; from rlmix.methods import get, names; from rlmix.ops.rng import Streams;"
        "from rlmix.testing.methods import batch_of; from rlmix import apply;"
        "images, _, inputs = batch_of(8, (8, 8));"
        "print([float(apply(images, get(n).plan(inputs, Streams([5]))).double().square().sum()) for n in names()])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    images, _, inputs = batch_of(8, (8, 8))
    here = [float(apply(images, get(name).plan(inputs, Streams([5]))).double().square().sum()) for name in names()]
    assert outputs == {f"{here}\n"}


def test_saliency_and_keys_that_are_missing_are_named() -> None:
    """The message says where maps come from."""
    with pytest.raises(InputError, match="method `rmix` needs saliency maps. Give `saliency=`"):
        get("rmix").draw(MixInputs(4, 8, 8), generator=torch.Generator())
    with pytest.raises(InputError, match="`streams` must be one key for each group: 2 groups, 1 keys"):
        get("mixup").draw(MixInputs(4, 8, 8, groups=2), generator=Streams([1]))
    with pytest.raises(InputError, match="`groups` must divide the batch: 5 images, 2 groups"):
        MixInputs(5, 8, 8, groups=2)
    with pytest.raises(InputError, match=r"`saliency` must be \[B, h, w\]"):
        MixInputs(5, 8, 8, saliency=torch.rand(5, 1, 8, 8))
    with pytest.raises(InputError, match="`saliency` must be floating point"):
        MixInputs(5, 8, 8, saliency=torch.ones(5, 8, 8, dtype=torch.int64))
    with pytest.raises(InputError, match="`batch_size`, `height`, `width` and `groups` must be at least 1"):
        MixInputs(0, 8, 8)
    with pytest.raises(InputError, match="`partners` must have the shape"):
        MixInputs(5, 8, 8, partners=torch.arange(4))


def test_partners_given_are_used() -> None:
    """Pairing may be chosen outside, for example in reverse."""
    reverse = torch.arange(7).flip(0)
    plan = get("cutmix").plan(MixInputs(8 - 1, 8, 8, partners=reverse), Streams([0]))
    assert torch.equal(plan.partners[:, 0], reverse)
    with pytest.raises(InputError, match="`partners` given for a whole batch cannot be split"):
        plan_groups(
            [get("none"), get("cutmix")], MixInputs(4, 8, 8, groups=2, partners=torch.arange(4)), Streams([0, 1])
        )
