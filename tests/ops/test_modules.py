"""rlmix.ops.modules."""

from __future__ import annotations

import torch
from torch import nn

from rlmix.ops.modules import kept_random_state, unwrap


def test_wrappers_are_taken_off() -> None:
    """A compiled or parallel model keeps its parameters under other names."""
    model = nn.Linear(2, 2)
    assert unwrap(model) is model
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(torch.compile(model)) is model  # type: ignore[arg-type]
    assert unwrap(torch.compile(nn.DataParallel(model))) is model  # type: ignore[arg-type]


def test_the_random_state_is_put_back() -> None:
    """Dropout inside must not change what the training draws next."""
    before = torch.get_rng_state()
    with kept_random_state(torch.device("cpu")):
        torch.nn.functional.dropout(torch.ones(10))
    assert torch.equal(before, torch.get_rng_state())
