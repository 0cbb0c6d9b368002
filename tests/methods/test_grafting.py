"""Saliency Grafting."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlmix import MixInputs
from rlmix.errors import InputError, MethodError
from rlmix.methods import get
from rlmix.ops import rng
from rlmix.ops.rng import Streams
from rlmix.plan import MixPlan
from rlmix.testing.methods import batch_of


def seen(cells: Tensor, mask: Tensor, norm: int) -> float:
    """Return the share of a map's norm that lies in a mask, in plain Python."""
    whole = sum(float(value) ** norm for value in cells.flatten())
    part = sum(float(value) ** norm for value, kept in zip(cells.flatten(), mask.flatten(), strict=True) if kept)
    return float((part / whole) ** (1 / norm))


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_it_follows_the_steps_of_its_description(norm: int, temperature: float) -> None:
    """Softmax with a temperature, mean threshold, Bernoulli cells, label by the saliency that is still seen."""
    _, _, inputs = batch_of(12, (8, 8))
    assert inputs.saliency is not None
    streams = Streams([5])
    plan = get("grafting", temperature=temperature, norm=norm, grid=4).plan(inputs, streams)
    cells = inputs.saliency.double().reshape(12, 4, 2, 4, 2).mean((2, 4))
    rates = rng.beta(streams.values, rng.RATE, (12,), 1.0)[0]
    chances = rng.uniform(streams.values, rng.CELLS, (12, 16))[0]
    for row, donor in enumerate(plan.partners[:, 0].tolist()):
        map_of_donor = cells[donor].flatten()
        powers = [math.exp(float(value / map_of_donor.max()) / temperature) for value in map_of_donor]
        softmax = [power / sum(powers) for power in powers]
        mask = torch.tensor(
            [softmax[cell] > 1 / 16 and float(chances[row, cell]) < float(rates[row]) for cell in range(16)]
        )
        assert torch.equal(plan.shares[row, 0].bool().flatten(), mask)
        given, kept = seen(cells[donor], mask, norm), seen(cells[row], ~mask, norm)
        assert math.isclose(float(plan.label_shares[row, 0]), given / (given + kept), abs_tol=1e-5)


def grafted(saliency: Tensor, **params: object) -> MixPlan:
    """Draw for two images that are each other's partner."""
    inputs = MixInputs(2, 8, 8, saliency=saliency, partners=torch.tensor([1, 0]))
    return get("grafting", **params).plan(inputs, Streams([1]))


def test_the_label_of_uniform_maps_has_its_closed_form() -> None:
    """With q = 1 the area share a; with q = 2 sqrt(a) / (sqrt(a) + sqrt(1 - a))."""
    # A map with two strengths that differ by a hair gives candidate cells and stays nearly uniform.
    maps = torch.ones(2, 4, 4)
    maps[:, :1] += 1e-4
    for norm in (1, 2):
        plan = grafted(maps, norm=norm, rate=1.0)
        area = plan.shares.mean((1, 2, 3))
        assert torch.allclose(area, torch.tensor(0.25))
        expected = area if norm == 1 else area.sqrt() / (area.sqrt() + (1 - area).sqrt())
        assert torch.allclose(plan.label_shares[:, 0], expected, atol=1e-4)


def test_nothing_grafted_leaves_the_receiver_and_everything_grafted_the_donor() -> None:
    """M = 0 gives lam 1, M = 1 gives lam 0."""
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    assert grafted(maps, rate=0.0).lam.tolist() == [1.0, 1.0]
    assert grafted(maps, rate=1.0, threshold="fixed", level=0.0).lam.tolist() == [0.0, 0.0]


def test_the_scale_of_either_map_changes_nothing() -> None:
    """Gradients of one image may be a million times those of the other."""
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    scaled = maps * torch.tensor([1e-15, 1e9]).view(2, 1, 1)
    first, second = grafted(maps), grafted(scaled)
    assert torch.equal(first.shares, second.shares)
    assert torch.allclose(first.label_shares, second.label_shares, atol=1e-6)


def test_grafted_cells_without_saliency_of_either_image_fall_back_to_their_area() -> None:
    """0/0: the donor shows nothing salient and the receiver's salient cells are all covered."""
    maps = torch.zeros(2, 1, 2)
    maps[0, 0, 0] = maps[1, 0, 1] = 1.0
    # Image 0 receives: its salient cell is the first. Its donor is salient in the second only.
    plan = grafted(maps, threshold="fixed", level=0.0, temperature=1e6, rate=1.0)
    assert plan.shares.min() == 1.0
    inputs = MixInputs(2, 8, 8, saliency=maps, partners=torch.tensor([1, 0]))
    one = get("grafting", threshold="fixed", level=0.49, temperature=0.01, rate=1.0).plan(inputs, Streams([1]))
    # Only the donor's salient cell is grafted: all of its saliency, and all of the receiver's, is seen.
    assert torch.allclose(one.lam, torch.tensor([0.5, 0.5]))


def test_bad_parameters_are_refused() -> None:
    """Each message names the parameter."""
    for params, message in (
        ({"temperature": 0.0}, "`temperature` must be a number above 0"),
        ({"threshold": "median"}, "`threshold` must be one of 'mean', 'quantile', 'fixed', got 'median'"),
        ({"level": 2.0}, "`level` must be a number in"),
        ({"rate": -1.0}, "`rate` must be a number in"),
        ({"norm": 3}, "`norm` must be 1 or 2, got 3"),
        ({"grid": 0}, "`grid` must be a whole number"),
    ):
        with pytest.raises(MethodError, match=message):
            get("grafting", **params)
    with pytest.raises(InputError, match="grid of 9x9 cells is finer than the image of 8x8"):
        get("grafting", grid=9).plan(batch_of(2, (8, 8))[2], Streams([0]))
