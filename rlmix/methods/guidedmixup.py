"""GuidedMixup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from rlmix.methods.method import AbstractMethod, check_choice, pair, saliency_of, usable
from rlmix.ops import grid, rng
from rlmix.ops.blur import gaussian_blur
from rlmix.plan import MixPlan
from rlmix.types import MixInputs

RADIUS = 3
SIGMA = 3.0
ROUNDS = 8
"""Rounds of mutual choice; the rows that are left then are paired in order."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedMixup(AbstractMethod):
    """Weigh each pixel of two images by their saliency there, and pair images whose saliency lies apart.

    The maps are blurred (7x7 pixels, sigma 3) and brought to the sum 1. The own image's weight in a pixel is
    S_own / (S_own + S_partner), one half where neither map has any, and its label weight is the mean of that. Partners
    are chosen by the Euclidean distance of the maps, within each group of rows.

    Use: to blend by saliency without a solver; with `pairing="mutual"` where a GPU must not wait.

    Source: Kang and Kim 2023, https://arxiv.org/abs/2306.16612, and the authors' code,
    https://github.com/3neutronstar/GuidedMixup; OpenMixup's form of it computes the pairing and then mixes with another
    one. The maps are those that the caller's provider gives (the paper's are `rlmix.saliency.spectral_residual`), and
    everything happens on their own grid, held to the image's size: a coarse map costs little, and is blurred over the
    same part of the image (not at all below a sixth of its size).

    Args:
        pairing: "cycle" is the paper's greedy one: from the row of the greatest distance, go to the farthest row that
            was not visited yet, until all are; each row's partner is the next, the first's that of the last. It takes
            some tensor operations for each row. "mutual" takes the same number for any batch: 8 rounds in which rows
            that choose each other as farthest become a pair, after which the rows left over are paired in order (an odd
            one with itself). "random" (a permutation) and "reverse" (first with last) look at no map. `partners` given
            in the inputs come first.
        scope: "batch" decides once whether anything is mixed, "image" for each image.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
    """

    name: ClassVar[str] = "guidedmixup"
    source: ClassVar[str] = "Kang and Kim 2023, https://arxiv.org/abs/2306.16612"

    pairing: Literal["cycle", "mutual", "random", "reverse"] = "cycle"

    @property
    def needs_saliency(self) -> bool:
        """True: the maps are the weights."""
        return True

    @property
    def operations_grow(self) -> bool:
        """Whether partners are chosen by a chain through all rows."""
        return self.pairing == "cycle"

    def _check(self) -> None:
        check_choice("pairing", self.pairing, ("cycle", "mutual", "random", "reverse"))

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        maps = saliency_of(inputs)
        sides = (min(maps.shape[1], inputs.height), min(maps.shape[2], inputs.width))
        cells = usable(grid.pool(maps, sides))
        reduced = [side / length for side, length in zip(sides, inputs.size, strict=True)]
        reach = (round(RADIUS * reduced[0]), round(RADIUS * reduced[1]))
        cells = gaussian_blur(cells, reach, (SIGMA * reduced[0], SIGMA * reduced[1]))
        cells = cells / cells.sum((1, 2), keepdim=True)
        partners = self._partners(cells, inputs, streams)
        theirs = cells.index_select(0, partners)
        # Maps are finite, so that only 0 / 0 is no number.
        share = theirs.div_(cells + theirs).nan_to_num_(nan=0.5).half()
        return MixPlan(
            size=inputs.size,
            partners=partners.unsqueeze(1),
            shares=share.unsqueeze(1),
            label_shares=grid.mean(share, inputs.size).unsqueeze(1),
        )

    def _partners(self, cells: Tensor, inputs: MixInputs, streams: rng.Streams) -> Tensor:
        """Return each image's partner, int64 [B]."""
        if inputs.partners is not None or self.pairing == "random":
            return pair(inputs, streams)
        if self.pairing == "reverse":
            return pair(inputs, streams, "reverse")
        distances = _distances(cells.view(inputs.groups, inputs.group_size, -1))
        within = _cycle(distances) if self.pairing == "cycle" else _mutual(distances)
        first = torch.arange(inputs.groups, device=within.device).unsqueeze(1) * inputs.group_size
        return (within + first).flatten()


def _distances(maps: Tensor) -> Tensor:
    """Return the squared distances between the maps of a group, float32 [G, n, n], -inf of a row from itself.

    By the product of the maps in double precision: as quick as `torch.cdist`, and rounded to float32 the result does
    not show how many groups were multiplied beside each other.
    """
    exact = maps.double()
    products = exact @ exact.transpose(1, 2)
    lengths = products.diagonal(dim1=1, dim2=2)
    distances = (lengths.unsqueeze(2) + lengths.unsqueeze(1) - 2.0 * products).float()
    return distances.masked_fill(torch.eye(maps.shape[1], dtype=torch.bool, device=maps.device), -torch.inf)


def _cycle(distances: Tensor) -> Tensor:
    """Return the partners along one greedy cycle through all rows, int64 [G, n], for distances [G, n, n]."""
    groups, count, _ = distances.shape
    start = distances.flatten(1).argmax(1, keepdim=True) // count
    rows = torch.arange(count, device=distances.device)
    partners = start.expand(groups, count)
    here = start
    left = torch.zeros(groups, count, device=distances.device)
    for _ in range(count - 1):
        left = left.masked_fill(rows == here, -torch.inf)
        reach = distances.gather(1, here.unsqueeze(2).expand(groups, 1, count)).squeeze(1)
        there = (reach + left).argmax(1, keepdim=True)
        partners = partners.scatter(1, here, there)
        here = there
    return partners


def _mutual(distances: Tensor) -> Tensor:
    """Return the partners by rounds of mutual farthest choice, int64 [G, n], for distances [G, n, n]."""
    groups, count, _ = distances.shape
    rows = torch.arange(count, device=distances.device).expand(groups, count)
    partners, free = rows, torch.ones(groups, count, dtype=torch.bool, device=distances.device)
    for _ in range(ROUNDS):
        choice = distances.masked_fill(~free.unsqueeze(1), -torch.inf).argmax(2)
        # A row alone chooses itself or one that is taken already; only two free rows can choose each other.
        met = free & free.gather(1, choice) & (choice.gather(1, choice) == rows) & (choice != rows)
        partners = torch.where(met, choice, partners)
        free = free & ~met
    order = free.logical_not().long().argsort(dim=1, stable=True)
    place = torch.where(free, free.cumsum(1) - 1, rows)
    neighbour = place ^ 1
    paired = free & (neighbour < free.sum(1, keepdim=True))
    return torch.where(paired, order.gather(1, neighbour.clamp_max(count - 1)), partners)
