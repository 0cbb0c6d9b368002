"""R-Mix from saliency maps to mixed images, beside the published steps, whose quantile is a B x B table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import TENSOR_CODE, Candidate, Case, Goal, tensor_code
from rlmix import MixInputs, MixPlan, Streams, apply
from rlmix.methods.registry import get
from rlmix.ops import rng

SIDE, CELLS, LEVELS = 32, 4, 10
PUBLISHED, ON_GRID, DRAW, RLMIX = "published steps", "B x B quantile alone", "rlmix draw", "rlmix draw + apply"
# Batch size, rounds, and how many times as fast as the published steps draw and apply are to be together.
SIZES = ((128, 100, 3), (1024, 30, 20))


def cuts(maps: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pooled maps [B, g*g], which sum to 1, and each one's quantile [B] at its own level.

    `torch.quantile` takes one list of levels for all rows, so that a level for each row gives a table [B, B]; its
    diagonal is what is wanted.
    """
    cells = F.avg_pool2d(maps.unsqueeze(1), maps.shape[-1] // CELLS).flatten(1)
    cells = cells / cells.sum(1, keepdim=True)
    return cells, torch.quantile(cells, levels, dim=1).diagonal()


def published(maps: Tensor, levels: Tensor, lam: Tensor, partners: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Follow the published steps up to the masks at the images' size and the shares of the labels.

    Args:
        maps: [B, H, W], saliency.
        levels: [B] in [0, 1].
        lam: the weight of the own image where masks agree.
        partners: int64 [B].

    Returns:
        The mask, where the two masks agree, where they do not (each [B, 1, H, W]), and the own label's weight [B].
    """
    cells, cut = cuts(maps, levels)
    coarse = (cells >= cut.unsqueeze(1)).float().view(-1, 1, CELLS, CELLS)
    mask = F.interpolate(coarse, scale_factor=maps.shape[-1] // CELLS, mode="nearest")
    theirs = mask[partners]
    agree, differ = torch.where(mask == theirs, 1, 0), torch.where(mask != theirs, 1, 0)
    pixels = mask[0].numel()
    share = lam * agree.flatten(1).sum(1) / pixels + (differ * mask).flatten(1).sum(1) / pixels
    return mask, agree, differ, share


def blended(images: Tensor, partners: Tensor, lam: Tensor, mask: Tensor, agree: Tensor, differ: Tensor) -> Tensor:
    """Follow the published rule for the pixels: blend where the masks agree, else take the salient one's."""
    theirs = images[partners]
    return (lam * images + (1 - lam) * theirs) * agree + (images * mask + theirs * (1 - mask)) * differ


def numbers(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw levels, the weight and partners; Beta(1, 1) is uniform, and drawing it so is the cheapest."""
    levels = torch.linspace(0, 0.99, LEVELS)[torch.randint(LEVELS, (batch,), generator=generator)]
    return levels, torch.rand((), generator=generator), torch.randperm(batch, generator=generator)


def cases() -> list[Callable[[], Case]]:
    """Return what builds a case, for each batch size."""
    return [partial(_case, *size) for size in SIZES]


def _case(batch: int, rounds: int, factor: int) -> Case:
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand(batch, SIDE, SIDE, generator=generator)
    images = torch.rand(batch, 3, SIDE, SIDE, generator=generator)
    inputs = MixInputs(batch, SIDE, SIDE, saliency=maps)
    method = get("rmix", grids=(CELLS,))

    def check() -> None:
        streams = Streams([7])
        plan = method.plan(inputs, streams)
        levels = torch.linspace(0, 0.99, LEVELS)[rng.integers(streams.values, rng.LEVEL, (batch,), LEVELS)[0]]
        lam = rng.beta(streams.values, rng.LAM, (1,), 1.0)[0, 0]
        mask, agree, differ, share = published(maps, levels, lam, plan.partners[:, 0])
        weights = (lam * agree + differ * mask)[:, 0, :: SIDE // CELLS, :: SIDE // CELLS]
        torch.testing.assert_close(plan.weights[:, 0], weights, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(plan.label_weights[:, 0], share, rtol=0.0, atol=1e-6)
        mixed = blended(images, plan.partners[:, 0], lam, mask, agree, differ)
        torch.testing.assert_close(apply(images, plan), mixed, rtol=0.0, atol=1e-6)

    def literal(_: object) -> tuple[Tensor, Tensor]:
        levels, lam, partners = numbers(batch, generator)
        mask, agree, differ, share = published(maps, levels, lam, partners)
        return blended(images, partners, lam, mask, agree, differ), share

    def ours(_: object) -> tuple[Tensor, MixPlan]:
        plan = method.draw(inputs, generator=generator)
        return apply(images, plan), plan

    text = f"R-Mix: at least {factor} times as fast as the published steps"
    return Case(
        group="rmix",
        name=f"R-Mix, B = {batch}, images and maps of {SIDE}x{SIDE}, a {CELLS} x {CELLS} grid",
        candidates=(
            Candidate(name=PUBLISHED, run=literal),
            Candidate(name=ON_GRID, run=lambda _: cuts(maps, numbers(batch, generator)[0])),
            Candidate(name=DRAW, run=lambda _: method.draw(inputs, generator=generator)),
            Candidate(name=RLMIX, run=ours),
            Candidate(name=f"{RLMIX}, {TENSOR_CODE}", run=tensor_code(ours)),
        ),
        rounds=rounds,
        goals=(Goal(candidate=RLMIX, baseline=PUBLISHED, limit=1 / factor, text=text),),
        check=check,
        notes=(
            "From saliency maps to mixed images and label weights. The published steps, as the authors' code has them, "
            "bring the masks to the images' size, count pixels and blend twice; fed with the same numbers they give "
            f"the same plan and images. `{ON_GRID}` stops after the quantile: what that table costs. `{DRAW}` is the "
            "plan alone."
        ),
    )
