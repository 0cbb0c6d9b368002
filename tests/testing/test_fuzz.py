"""Random calls of every method, and that a method which breaks a promise is found by them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from rlmix.methods import registry
from rlmix.methods.method import AbstractMethod
from rlmix.methods.mixup import Mixup
from rlmix.ops.rng import Streams
from rlmix.plan import MixPlan
from rlmix.testing.fuzz import fuzz
from rlmix.types import MixInputs


def test_random_calls_of_every_method_keep_every_promise() -> None:
    """The whole run is `python -m rlmix.testing.fuzz`; this is its beginning."""
    outcome = fuzz(60 * len(registry.names()), seed=1)
    assert not outcome.findings, outcome.text
    # A method of which nearly every call is refused would not have been tried.
    assert all(outcome.done.get(name, 0) >= 15 for name in registry.names()), outcome.text


def test_equal_seeds_make_equal_calls() -> None:
    """A finding has to be made again to be mended."""
    assert fuzz(100, seed=3).text == fuzz(100, seed=3).text
    assert fuzz(100, seed=3).text != fuzz(100, seed=4).text


@dataclass(frozen=True, slots=True, kw_only=True)
class Careless(AbstractMethod):
    """Mixup whose labels are those of the image twice as much."""

    name: ClassVar[str] = "careless"
    source: ClassVar[str] = "https://example.org"

    def _plan(self, inputs: MixInputs, streams: Streams) -> MixPlan:
        plan = Mixup().plan(inputs, streams)
        return replace(plan, label_shares=plan.label_shares * 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dividing(AbstractMethod):
    """Mixup by the saliency's share, without a guard."""

    name: ClassVar[str] = "dividing"
    source: ClassVar[str] = "https://example.org"

    def _plan(self, inputs: MixInputs, streams: Streams) -> MixPlan:
        plan = Mixup().plan(inputs, streams)
        assert inputs.saliency is not None
        total = inputs.saliency.float().sum((1, 2))
        return replace(plan, shares=plan.shares * (total / total).view(-1, 1, 1, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rigid(AbstractMethod):
    """A method that takes square images for granted."""

    name: ClassVar[str] = "rigid"
    source: ClassVar[str] = "https://example.org"

    def _plan(self, inputs: MixInputs, streams: Streams) -> MixPlan:
        torch.zeros(inputs.height, inputs.width).diagonal().view(inputs.height)
        return Mixup().plan(inputs, streams)


@pytest.mark.parametrize(
    ("careless", "broken"),
    [(Careless, "a target is below 0"), (Dividing, "the images are not finite"), (Rigid, "raised RuntimeError")],
)
def test_a_broken_promise_is_found(
    careless: type[AbstractMethod], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fuzz that cannot fail proves nothing."""
    monkeypatch.setitem(registry.METHODS, careless.name, careless)
    outcome = fuzz(60, methods=[careless.name])
    assert any(broken in finding.broken for finding in outcome.findings), outcome.text
