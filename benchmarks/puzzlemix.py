"""The masks of Puzzle Mix beside a graph cut for each image, and its transport beside the published rounds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional

from benchmarks.timing import Candidate, Case, Goal
from rlmix import MixInputs
from rlmix.methods.puzzlemix import PuzzleMix
from rlmix.ops import share_labelling, transport
from rlmix.ops.share_labelling import energy

BATCH, SIDE = 100, 32
CUT, MASKS = "graph cut for each image", "rlmix masks"
ROUNDS, MOVES = "published rounds", "rlmix moves"
Problem = tuple[Tensor, Tensor, Tensor]
# Cells per side, rounds of timing, and how many times as fast as the graph cuts the masks are to be.
GRIDS = ((2, 100, 5), (4, 100, 5), (8, 60, 3), (16, 30, 3))


@cache
def inputs() -> MixInputs:
    """Return crops of two photographs, and smooth random maps with noise on them."""
    generator = torch.Generator().manual_seed(0)
    photos = [torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 255 for photo in load_sample_images().images]
    crops = []
    for image in range(BATCH):
        photo, factor = photos[image % 2], int(torch.randint(1, 5, (), generator=generator))
        window = SIDE * factor
        top, left = (int(torch.randint(side - window + 1, (), generator=generator)) for side in photo.shape[1:])
        crop = photo[:, top : top + window, left : left + window]
        crops.append(functional.avg_pool2d(crop.unsqueeze(0), factor)[0])
    smooth = functional.interpolate(
        torch.randn(BATCH, 1, 6, 6, generator=generator), (SIDE, SIDE), mode="bicubic", align_corners=False
    )[:, 0]
    maps = torch.exp(smooth + 0.5 * torch.randn(BATCH, SIDE, SIDE, generator=generator))
    partners = torch.randperm(BATCH, generator=generator)
    return MixInputs(BATCH, SIDE, SIDE, saliency=maps, images=torch.stack(crops), partners=partners)


def problem_on(side: int) -> Problem:
    """Return the batch's costs, with lam spread evenly over the images."""
    given = inputs()
    assert given.partners is not None
    lam = (torch.arange(BATCH) + 0.5) / BATCH
    return PuzzleMix().problem(given, given.partners, lam, side)


def cut(problem: Problem) -> Tensor:
    """Solve image by image with alpha-beta swaps on whole numbers, as the authors' code does."""
    unary, right, down = problem
    _, height, width, levels = unary.shape
    large = 1000 * height * width
    level = np.arange(levels)
    differences = ((level[:, None] - level) ** 2 / (levels - 1) ** 2).astype(np.float32)
    costs, across, along = ((large * part).to(torch.int32).numpy() for part in (unary, right, down))
    import gco

    labels = [
        gco.cut_grid_graph(costs[image], differences, along[image], across[image], algorithm="swap")
        for image in range(len(costs))
    ]
    return torch.from_numpy(np.stack(labels)).view(-1, height, width).long()


def compare(problem: Problem) -> dict[str, float]:
    """Return both mean energies, and the shares of the images in which the masks cost more and less than the cuts."""
    ours, theirs = energy(*problem, share_labelling.solve(*problem)), energy(*problem, cut(problem))
    # The cuts see costs rounded to a thousandth of a cell's share.
    return {
        MASKS: float(ours.mean()),
        CUT: float(theirs.mean()),
        "worse": float((ours > theirs + 1e-6).float().mean()),
        "better": float((ours < theirs - 1e-6).float().mean()),
    }


def published(gains: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Run the published rounds on the whole matrix of costs: int64 [B, h, w], -1 where nobody won."""
    batch, height, width = gains.shape
    count = height * width
    cell = torch.arange(count)
    far = (cell.unsqueeze(1) // width - cell // width) ** 2 + (cell.unsqueeze(1) % width - cell % width) ** 2
    cost = scale * far / (width - 1) ** 2 - gains.view(batch, count, 1) * seen.view(batch, 1, count)
    won = torch.zeros_like(cost)
    for _ in range(width):
        plan = torch.zeros_like(cost).scatter_(2, cost.min(2, keepdim=True).indices, 1.0)
        won = torch.zeros_like(cost).scatter_(1, (plan * cost).min(1, keepdim=True).indices, 1.0) * plan
        cost += (1 - won) * plan
    shown = won.max(1)
    return shown.indices.masked_fill(shown.values == 0, -1).view(batch, height, width)


def cases() -> list[Callable[[], Case]]:
    """Return what builds a case: masks for each grid, then moves."""
    return [*(partial(_masks, *grid) for grid in GRIDS), partial(_moves, 8, 30), partial(_moves, 16, 6)]


def _masks(side: int, rounds: int, factor: int) -> Case:
    problem = problem_on(side)
    found = compare(problem)

    def check() -> None:
        assert found[MASKS] <= found[CUT] + 1e-6, found

    return Case(
        group="puzzlemix",
        name=f"Puzzle Mix masks, B = {BATCH}, {side} x {side} cells, 3 levels",
        candidates=(
            Candidate(name=CUT, run=lambda _: cut(problem)),
            Candidate(name=MASKS, run=lambda _: share_labelling.solve(*problem)),
        ),
        rounds=rounds,
        goals=(
            Goal(
                candidate=MASKS,
                baseline=CUT,
                limit=1 / factor,
                text=f"Puzzle Mix masks of {side} x {side} cells: at least {factor} times as fast as a graph cut for "
                "each image, at no higher mean energy",
            ),
        ),
        check=check,
        notes=(
            "From costs to labels, transport apart. The graph cuts (gco-wrapper, alpha-beta swaps) run image by image "
            f"on whole numbers as in the authors' code. Mean energy {found[CUT]:.6f} of the cuts, {found[MASKS]:.6f} "
            f"of rlmix; higher than the cut's in {found['worse']:.0%} of the images, lower in {found['better']:.0%}. "
            "Crops of photographs, smooth random maps with noise."
        ),
    )


def _moves(side: int, rounds: int) -> Case:
    given = inputs()
    assert given.saliency is not None
    maps = functional.avg_pool2d(given.saliency.unsqueeze(1), SIDE // side)[:, 0]
    gains = maps / maps.sum((1, 2), keepdim=True)
    seen = share_labelling.solve(*problem_on(side)) < 2
    scale = PuzzleMix().t_eps

    def check() -> None:
        ours, theirs = transport.assign(gains, seen, scale), published(gains, seen, scale)
        assert bool(((ours == theirs) | ~seen).all())

    return Case(
        group="puzzlemix",
        name=f"Puzzle Mix transport, B = {BATCH}, {side} x {side} cells",
        candidates=(
            Candidate(name=ROUNDS, run=lambda _: published(gains, seen, scale)),
            Candidate(name=MOVES, run=lambda _: transport.assign(gains, seen, scale)),
        ),
        rounds=rounds,
        check=check,
        notes=(
            "Of one image of each pair; a batch needs two. The published rounds run on the whole matrix of costs; what "
            "is shown where the mask lets the image be seen is the same."
        ),
    )
