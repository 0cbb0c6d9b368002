"""Saliency Grafting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from rlmix.errors import MethodError
from rlmix.methods.method import (
    AbstractMethod,
    Pairing,
    check_choice,
    check_count,
    check_pairing,
    check_positive,
    check_range,
    drawn_rows,
    pair,
    per_row,
    rows_of,
    saliency_of,
    sides_of,
    usable,
)
from rlmix.ops import grid, rng
from rlmix.ops.quantile import row_quantile
from rlmix.plan import MixPlan
from rlmix.types import MixInputs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Grafting(AbstractMethod):
    """Graft randomly chosen salient cells of the partner, and weigh the label by saliency instead of area.

    The partner is the donor, the own image receives. The donor's map S is brought to a grid, sharpened by a softmax
    with a temperature and cut at a threshold; of the cells above it, each is grafted with a probability of its own draw
    (mask M). The label weight of the donor is `I(S_d, M) / (I(S_d, M) + I(S_r, 1 - M))` with
    `I(S, M) = ||S * M||_q / ||S||_q`: the share of each image's saliency that is still to be seen.

    Use: where labels should follow what is to be seen instead of how large it is.

    Source: Park, Yang, Shin, Hwang, Yang 2022, https://arxiv.org/abs/2112.08796. No code of the authors could be found.
    Random choice of salient cells after scaling and thresholding, Bernoulli sampling and the saliency-weighted label
    are described in readable sources; the following are this library's choices, each an option: the scale of the map
    before the softmax (divided by its maximum, so that a temperature means the same for every provider), the threshold
    (the mean), the Bernoulli rate (Beta(alpha, alpha) for each image), the norm (q = 2), the grid, and the map itself
    (whatever the caller's provider gives: `feature_map` or `input_gradient`).

    Args:
        temperature: of the softmax, above 0, a float or a tensor [B]: small values leave few candidate cells.
        threshold: "mean" (the mean of the softmax, 1 / cells), "quantile" (of the softmax, at `level`) or "fixed"
            (`level` itself, as a share of the whole map).
        level: in [0, 1], for the thresholds "quantile" and "fixed"; a float or a tensor [B].
        rate: the Bernoulli probability of each candidate cell in [0, 1], a float or a tensor [B]; None draws it from
            Beta(alpha, alpha) for each image.
        alpha: concentration for `rate=None`, above 0; a float or a tensor [B].
        norm: q of the label's norm, 1 or 2.
        grid: cells per side; None takes the map's own, up to 7 a side and no finer than the image.
        scope: "image" draws the rate and the cells' chances for each image, "batch" once.
        pairing: "random" (a permutation) or "reverse" (first with last); `partners` given in the inputs come first.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
        InputError: an image side smaller than the grid that was given.
    """

    name: ClassVar[str] = "grafting"
    source: ClassVar[str] = "Park et al. 2022, https://arxiv.org/abs/2112.08796 (a reconstruction)"

    temperature: float | Tensor = 1.0
    threshold: Literal["mean", "quantile", "fixed"] = "mean"
    level: float | Tensor = 0.5
    rate: float | Tensor | None = None
    alpha: float | Tensor = 1.0
    norm: int = 2
    grid: int | None = None
    pairing: Pairing = "random"

    @property
    def needs_saliency(self) -> bool:
        """True: the maps choose the cells and weigh the label."""
        return True

    @property
    def labels_by_area(self) -> bool:
        """False: labels follow the saliency that is still to be seen."""
        return False

    def _check(self) -> None:
        check_positive("temperature", self.temperature)
        check_choice("threshold", self.threshold, ("mean", "quantile", "fixed"))
        check_range("level", self.level, 0.0, 1.0)
        if self.rate is not None:
            check_range("rate", self.rate, 0.0, 1.0)
        check_positive("alpha", self.alpha)
        check_pairing(self.pairing)
        if self.norm not in (1, 2):
            raise MethodError(f"`norm` must be 1 or 2, got {self.norm!r}.")
        check_count("grid", self.grid)

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        maps = saliency_of(inputs)
        sides = sides_of("grid", self.grid, (min(maps.shape[1], 7), min(maps.shape[2], 7)), inputs)
        cells = usable(grid.pool(maps, sides)).flatten(1)
        partners = pair(inputs, streams, self.pairing)
        rows = drawn_rows(inputs, self.scope)
        if self.rate is None:
            rate = rng.beta(streams.values, rng.RATE, rows, per_row(self.alpha, inputs, self.scope))
            rate = rows_of(rate, inputs)
        else:
            rate = _column(self.rate, cells).expand(inputs.batch_size, 1).flatten()
        chance = rng.uniform(streams.values, rng.CELLS, (*rows, cells.shape[1]))
        chance = chance.expand(-1, inputs.group_size, -1).flatten(0, 1)
        # The draws belong to the receiver, the candidate cells to its donor.
        grafted = (self._candidates(cells).index_select(0, partners) & (chance < rate.unsqueeze(1))).float()
        share = grafted.view(-1, *sides)
        area = grid.mean(share, inputs.size)
        return MixPlan(
            size=inputs.size,
            partners=partners.unsqueeze(1),
            shares=share.unsqueeze(1),
            label_shares=self._label(cells, partners, grafted, area).unsqueeze(1),
        )

    def _candidates(self, cells: Tensor) -> Tensor:
        """Return which cells may be grafted: bool [B, n] for maps [B, n]."""
        peak = cells.amax(1, keepdim=True)
        scaled = torch.softmax(cells / peak / _column(self.temperature, cells), 1)
        if self.threshold == "mean":
            return scaled > scaled.mean(1, keepdim=True)
        if self.threshold == "fixed":
            return scaled > _column(self.level, cells)
        levels = _column(self.level, cells).expand(cells.shape[0], 1).flatten()
        return scaled > row_quantile(scaled, levels).unsqueeze(1)

    def _label(self, cells: Tensor, partners: Tensor, grafted: Tensor, area: Tensor) -> Tensor:
        """Return the donor's label weight, float32 [B]: the area where no saliency is to be seen of either image."""
        donor = self._seen(cells.index_select(0, partners), grafted)
        receiver = self._seen(cells, 1.0 - grafted)
        both = donor + receiver
        return torch.where(both > 0, donor / both.clamp_min(torch.finfo(torch.float32).tiny), area)

    def _seen(self, cells: Tensor, mask: Tensor) -> Tensor:
        """Return I(S, M): the share of a map's norm that lies in the mask."""
        # Divided by the peak first, so that squares of very small gradients do not vanish.
        cells = cells / cells.amax(1, keepdim=True)
        part, whole = ((cells * mask) ** self.norm).sum(1), (cells**self.norm).sum(1)
        return (part / whole) if self.norm == 1 else torch.sqrt(part / whole)


def _column(value: float | Tensor, like: Tensor) -> Tensor:
    """Show a float or [B] as float32 [1, 1] or [B, 1]."""
    return rng.on_device(value, torch.float32, like.device).reshape(-1, 1)
