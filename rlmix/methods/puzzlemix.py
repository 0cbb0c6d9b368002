"""Puzzle Mix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from torch.nn import functional

from rlmix.errors import InputError, MethodError
from rlmix.methods.method import (
    AbstractMethod,
    Pairing,
    Scope,
    by_group,
    check_choice,
    check_pairing,
    check_positive,
    check_range,
    drawn_rows,
    pair,
    per_row,
    rows_of,
    saliency_of,
    usable,
)
from rlmix.ops import grid, rng, share_labelling
from rlmix.ops.transport import assign
from rlmix.plan import MixPlan
from rlmix.types import MixInputs

GRIDS = (2, 4, 8, 16)
"""The published cells per side."""

_SOLVERS = {
    "auto": share_labelling.solve,
    "exact": share_labelling.exact,
    "chains": share_labelling.chains,
}

# The published recipes move cells of 4 pixels on CIFAR and Tiny-ImageNet, and those of the mask on ImageNet.
_T_SIZE, _T_SIDE = 4, 64


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PuzzleMix(AbstractMethod):
    """Choose cells so that saliency is kept and neighbours agree, then move salient cells to where they are seen.

    The own image is image 1 of the paper and m(p) its share of cell p, one of `levels` equal steps from 0 to 1. With
    both maps s1, s2 averaged to the grid and scaled to sum 1, the mask minimises

        sum_p [m s2 + (1 - m) s1]                        saliency lost
        + sum_{p~p'} [m m' d11 + m (1 - m') d10 + (1 - m) m' d01 + (1 - m) (1 - m') d00]
        + b sum_{p~p'} (m - m')^2                        b = beta / (16 g) on a g x g grid
        - eta / g^2 sum_p log Binomial(m; lam)           the prior, lam ~ Beta(alpha, alpha)

    where d_ab is b * gamma times the mean colour difference between image a and image b across the border of the two
    cells. Then, if `transport`, each image's cells are moved to where the mask shows the image: showing cell i at place
    j costs `t_eps |i - j|^2 / (W - 1)^2 - s_i` where it is seen, and the cells bid for their cheapest places. The label
    follows the area of the mask.

    Use: where accuracy matters more than time: a mask is solved for each pair.

    Source: Kim, Choo, Song 2020, https://arxiv.org/abs/2009.06962, as in the authors' released code, with these
    differences. The released code solves each mask by a graph cut on whole numbers; here narrow grids are solved
    exactly and others by chains along rows and columns (`rlmix.ops.share_labelling`). A map without a finite value
    above zero counts as uniform. A place that no cell has won keeps its own cell, where the released code shows zeros;
    that happens only to a cell without saliency. The grid need not divide the image. The variant with adversarial noise
    is left out.

    Without `images` in the inputs the colour term is left out, as with gamma = 0.

    Args:
        alpha: concentration of the Beta distribution, above 0; a float or a tensor [B] (with `scope="batch"` the first
            of each group counts).
        levels: the number of shares, at least 2; the released code uses 3.
        beta: weight of the label smoothness, at least 0.
        gamma: weight of the colour differences relative to it, at least 0.
        eta: weight of the prior, at least 0.
        neighbour: pixels per side over which colours are averaged at a border, held to the cell's size.
        deviation: what the images' channels were divided by when they were normalised, a number or one for each
            channel: colour differences are measured in the images' original range of 0 to 1.
        transport: whether cells are moved.
        t_eps: cost of a move across the image, above 0.
        t_size: pixels per side of the cells that are moved, held to the mask's cell; None takes the published 4 for
            images of up to 64 pixels a side and the mask's cells above, as the ImageNet recipe does.
        grids: cells per side, one of which is drawn for the batch; None takes those of the published 2, 4, 8 and 16
            that the image admits.
        solver: "auto" (exact where that is cheap), "exact" (at most 6561 labellings of a side: 8 cells and 3 levels) or
            "chains".
        scope: "batch" draws one lam for the batch, as published; "image" one for each image.
        pairing: "random" (a permutation) or "reverse" (first with last); `partners` given in the inputs come first.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
        InputError: an image side smaller than a grid that was asked for, or a `deviation` for other channels.
    """

    name: ClassVar[str] = "puzzlemix"
    source: ClassVar[str] = "Kim et al. 2020, https://arxiv.org/abs/2009.06962 and its released code"

    alpha: float | Tensor = 1.0
    levels: int = 3
    beta: float = 1.2
    gamma: float = 0.5
    eta: float = 0.2
    neighbour: int = 4
    deviation: float | tuple[float, ...] = 1.0
    transport: bool = True
    t_eps: float = 0.8
    t_size: int | None = None
    grids: tuple[int, ...] | None = None
    solver: Literal["auto", "exact", "chains"] = "auto"
    scope: Scope = "batch"
    pairing: Pairing = "random"

    @property
    def looks_at_images(self) -> bool:
        """Whether colours count."""
        return self.gamma > 0

    @property
    def needs_saliency(self) -> bool:
        """True: the maps are what the mask keeps."""
        return True

    def _check(self) -> None:
        check_positive("alpha", self.alpha)
        for name in ("beta", "gamma", "eta"):
            check_range(name, getattr(self, name), 0.0, math.inf)
        check_positive("t_eps", self.t_eps)
        check_choice("solver", self.solver, tuple(_SOLVERS))
        check_pairing(self.pairing)
        for name, least in (("levels", 2), ("neighbour", 1), ("t_size", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise MethodError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")
        if self.grids is not None:
            object.__setattr__(self, "grids", tuple(self.grids))
            if not self.grids or not all(isinstance(side, int) and side >= 1 for side in self.grids):
                raise MethodError(f"`grids` must be whole numbers of at least 1 or None, got {self.grids!r}.")
        if not isinstance(self.deviation, float | int):
            object.__setattr__(self, "deviation", tuple(self.deviation))
        for value in self._deviations:
            check_positive("deviation", value)

    @property
    def _deviations(self) -> tuple[float, ...]:
        return self.deviation if isinstance(self.deviation, tuple) else (self.deviation,)

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        grids = self.grids or tuple(side for side in GRIDS if side <= min(inputs.size)) or (1,)
        if min(inputs.size) < max(grids):
            raise InputError(
                f"`grids` {grids} need images of at least {max(grids)} pixels a side, got "
                f"{inputs.height}x{inputs.width}. Give a smaller grid, for example grids=({min(inputs.size)},)."
            )
        alpha = per_row(self.alpha, inputs, self.scope)
        lam = rows_of(rng.beta(streams.values, rng.LAM, drawn_rows(inputs, self.scope), alpha), inputs)
        plan_on = partial(self._plan_on, lam)
        if len(grids) == 1:
            return plan_on(grids[0], inputs, streams, None)
        chosen = [grids[rng.host_integer(key, rng.GRID, len(grids))] for key in streams.keys]
        return by_group(chosen, inputs, streams, plan_on)

    def _plan_on(self, lam: Tensor, side: int, inputs: MixInputs, streams: rng.Streams, rows: Tensor | None) -> MixPlan:
        lam = lam if rows is None else lam.index_select(0, rows)
        partners = pair(inputs, streams, self.pairing)
        labels = _SOLVERS[self.solver](*self.problem(inputs, partners, lam, side))
        share = labels.float() / (self.levels - 1)
        return MixPlan(
            size=inputs.size,
            partners=partners.unsqueeze(1),
            shares=share.unsqueeze(1),
            # Areas of cells of different sizes may add up to a little more than 1.
            label_shares=grid.mean(share, inputs.size).clamp_max(1.0).unsqueeze(1),
            moves=self._moves(inputs, partners, share) if self.transport else None,
        )

    def problem(self, inputs: MixInputs, partners: Tensor, lam: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the solvers of `rlmix.ops.share_labelling` take, level l being the partner's share l / (L - 1).

        The bilinear colour term is rewritten as in the released code: half of the four differences to each of the two
        cells, linear in m, and the rest to `(m - m')^2`. For shares of 0 and 1 that is the same but for a constant.

        Args:
            inputs: of B images, with maps, and images or None.
            partners: int64 [B].
            lam: float32 [B], of the prior.
            side: g, cells per side.

        Returns:
            unary float32 [B, g, g, L], right [B, g, g-1] and down [B, g-1, g].
        """
        weight = self.beta / (16 * side)
        own = _scaled(grid.pool(saliency_of(inputs), (side, side)))
        theirs = own.index_select(0, partners)
        # What the whole cell costs when it shows the own image, and the partner.
        costs = torch.stack([theirs, own])
        right = down = own.new_full((1, 1, 1), weight)
        if inputs.images is not None and self.gamma > 0:
            colours = self._colours(inputs.images, partners, side)
            costs, less = _with_borders(costs, weight * self.gamma * _differences(colours, side))
            down = down + less
            costs, less = _with_borders(costs.mT, weight * self.gamma * _differences(colours.mT, side))
            costs, right = costs.mT, right + less.mT
        right, down = right.expand(own.shape[0], side, side - 1), down.expand(own.shape[0], side - 1, side)
        last = self.levels - 1
        unary = [
            (costs[0] * (last - level) + costs[1] * level) / last + prior.view(-1, 1, 1) * (self.eta / side**2)
            for level, prior in enumerate(self._prior(lam))
        ]
        return torch.stack(unary, 3), right, down

    def _prior(self, lam: Tensor) -> list[Tensor]:
        """Return -log Binomial of each level: [B] each."""
        last = self.levels - 1
        # The released code's guard for lam = 0 or 1.
        return [
            -torch.log(math.comb(last, level) * lam ** (last - level) * (1.0 - lam) ** level + 1e-8)
            for level in range(self.levels)
        ]

    def _colours(self, images: Tensor, partners: Tensor, side: int) -> Tensor:
        """Return the own images' and the partners' colours: [2, C, B, k * g, q * g], averages of small squares."""
        batch, channels, height, width = images.shape
        if len(self._deviations) not in (1, channels):
            raise InputError(
                f"`deviation` must be a number or one for each of {channels} channels, got {self.deviation!r}."
            )
        # A grid in which the mask's nests.
        shape = side * self._parts(height // side, self.neighbour), side * self._parts(width // side, self.neighbour)
        colours = grid.pool(images.detach().float().flatten(0, 1), shape).view(batch, channels, *shape)
        deviations = self._deviations * (channels // len(self._deviations))
        scaled = [colour * deviation for colour, deviation in zip(colours.unbind(1), deviations, strict=True)]
        own = torch.stack(scaled)
        return torch.stack([own, own.index_select(1, partners)])

    @staticmethod
    def _parts(block: int, size: int) -> int:
        """Return into how many parts of at least `size` pixels the side of a cell falls."""
        return block // min(size, block)

    def _moves(self, inputs: MixInputs, partners: Tensor, share: Tensor) -> Tensor:
        """Return `MixPlan.moves` for the partner's share [B, g, g]."""
        side, batch = share.shape[1], inputs.batch_size
        t_size = self.t_size or (_T_SIZE if max(inputs.size) <= _T_SIDE else max(inputs.size))
        shape = (side * self._parts(inputs.height // side, t_size), side * self._parts(inputs.width // side, t_size))
        own = _scaled(grid.pool(saliency_of(inputs), shape))
        share = grid.expand(share, shape)
        gains = torch.cat([own, own.index_select(0, partners)])
        shown = assign(gains, torch.cat([share < 1, share > 0]), self.t_eps)
        moves = torch.stack([shown[:batch], shown[batch:]], 1)
        # An image that is its own partner stays as it is.
        still = torch.arange(shape[0] * shape[1], dtype=torch.int32, device=moves.device).view(1, 1, *shape)
        alone = partners == torch.arange(batch, device=partners.device)
        return torch.where(alone.view(-1, 1, 1, 1), still, moves)


def _scaled(cells: Tensor) -> Tensor:
    """Return maps [B, h, w] with sum 1; one that is not finite or nowhere above 0 counts as uniform."""
    cells = usable(cells)
    return cells / cells.sum((1, 2), keepdim=True)


def _differences(colours: Tensor, side: int) -> Tensor:
    """Return the mean colour differences across the borders of cells that lie above each other.

    Args:
        colours: [2, C, B, k * g, q * g].
        side: g.

    Returns:
        [2, 2, B, g-1, g], by the image shown above and by the one shown below (0 the own, 1 the partner).
    """
    inner = colours.shape[3] // side
    above, below = colours[:, :, :, inner - 1 : -1 : inner], colours[:, :, :, inner::inner]
    far = (above.unsqueeze(1) - below.unsqueeze(0)).abs().mean(2)
    return far.reshape(*far.shape[:-1], side, far.shape[-1] // side).mean(-1)


def _with_borders(costs: Tensor, borders: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cells' costs [2, B, g, g] with half of what borders cost, and the weight of the squared difference.

    Args:
        costs: [2, B, g, g], of showing the own image, and of the partner.
        borders: [2, 2, B, g-1, g], as from `_differences`.
    """
    costs = costs + functional.pad(borders.mean(1), (0, 0, 0, 1)) + functional.pad(borders.mean(0), (0, 0, 1, 0))
    return costs, (borders[0, 1] + borders[1, 0] - borders[0, 0] - borders[1, 1]) / 2
