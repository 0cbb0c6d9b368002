"""Attentive CutMix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from rlmix.errors import MethodError
from rlmix.methods.method import (
    AbstractMethod,
    Pairing,
    check_count,
    check_pairing,
    check_positive,
    drawn_rows,
    pair,
    per_row,
    rows_of,
    saliency_of,
    sides_of,
    usable,
)
from rlmix.ops import grid, rng
from rlmix.plan import MixPlan
from rlmix.types import MixInputs

GRID = 7


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AttentiveMix(AbstractMethod):
    """Paste the partner's most salient cells, each at its own place; the label follows the area.

    The partner's map is averaged on a grid of n cells; its k cells of the highest values are pasted (of equal values
    the first in reading order), so that lam = 1 - k / n where the grid divides the image, and the counted share of the
    pixels where it does not.

    Use: where good maps are at hand, those of a pretrained network, and every image should be mixed as strongly.

    Source: Walawalkar et al. 2020 (Attentive CutMix), https://arxiv.org/abs/2003.13048: 6 of 7x7 cells, by a pretrained
    network's feature map; here the map is whatever the caller's provider gives. `k=None`, a number of cells that
    follows lam, is an extension in OpenMixup, https://github.com/Westlake-AI/openmixup.

    Args:
        k: the number of cells, at least 1, a whole number or an int64 tensor [B]; more than there are paste them all.
            None draws it for each image: `int(n * (1 - lam))`, held in [1, n], with lam ~ Beta(alpha, alpha).
        grid: cells per side; None takes 7, or the image's side where that is smaller.
        alpha: concentration for `k=None`, above 0; a float or a tensor [B].
        scope: "image" draws lam for each image, "batch" once.
        pairing: "random" (a permutation) or "reverse" (first with last); `partners` given in the inputs come first.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
        InputError: an image side smaller than the grid that was given.
    """

    name: ClassVar[str] = "attentivemix"
    source: ClassVar[str] = "Walawalkar et al. 2020, https://arxiv.org/abs/2003.13048"

    k: int | Tensor | None = 6
    grid: int | None = None
    alpha: float | Tensor = 1.0
    pairing: Pairing = "random"

    @property
    def needs_saliency(self) -> bool:
        """True: the maps choose the cells."""
        return True

    def _check(self) -> None:
        if isinstance(self.k, Tensor):
            if self.k.dtype != torch.int64 or (self.k.device.type == "cpu" and not bool((self.k >= 1).all())):
                raise MethodError(f"`k` must be whole numbers (int64) of at least 1, got {self.k!r}.")
        elif self.k is not None and (isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1):
            raise MethodError(f"`k` must be a whole number of at least 1, an int64 tensor or None, got {self.k!r}.")
        check_count("grid", self.grid)
        check_positive("alpha", self.alpha)
        check_pairing(self.pairing)

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        sides = sides_of("grid", self.grid, (GRID, GRID), inputs)
        cells = usable(grid.pool(saliency_of(inputs), sides)).flatten(1)
        partners = pair(inputs, streams, self.pairing)
        order = cells.argsort(dim=1, descending=True, stable=True)
        # The rank of each cell: the order of the order.
        rank = order.argsort(dim=1).index_select(0, partners)
        pasted = (rank < self._count(cells.shape[1], inputs, streams)).view(-1, *sides)
        return MixPlan(
            size=inputs.size,
            partners=partners.unsqueeze(1),
            shares=pasted.unsqueeze(1),
            label_shares=grid.mean(pasted, inputs.size).unsqueeze(1),
        )

    def _count(self, cells: int, inputs: MixInputs, streams: rng.Streams) -> int | Tensor:
        """Return how many cells are pasted: a number or int64 [B, 1]."""
        if isinstance(self.k, Tensor):
            return self.k.to(inputs.device).expand(inputs.batch_size).unsqueeze(1)
        if self.k is not None:
            return self.k
        alpha = per_row(self.alpha, inputs, self.scope)
        lam = rows_of(rng.beta(streams.values, rng.LAM, drawn_rows(inputs, self.scope), alpha), inputs)
        return (cells * (1.0 - lam)).long().clamp(1, cells).unsqueeze(1)
