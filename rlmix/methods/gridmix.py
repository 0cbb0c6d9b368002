"""GridMix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from rlmix.methods.method import (
    AbstractMethod,
    Pairing,
    check_choice,
    check_count,
    check_pairing,
    check_positive,
    drawn_rows,
    pair,
    per_row,
    rows_of,
    sides_of,
)
from rlmix.ops import boxes, grid, rng
from rlmix.plan import MixPlan
from rlmix.types import MixInputs

HOLES = 20
CELLS = 8


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GridMix(AbstractMethod):
    """Show the partner in many small squares that are spread over the whole image.

    With `variant="holes"` square holes stand on a lattice, `count` of them across the image: a period is
    ceil(W / count) pixels along both sides, and a hole, at the beginning of each period, has the side
    `int(period * sqrt(1 - lam))`, at least 1 and at most period - 1, with lam ~ Beta(alpha, alpha). (An image of one
    row or column has no room for a lattice and stays unmixed.) With `variant="cells"` each cell of a grid of
    `count` x `count` shows the partner with probability 1 - lam. The label follows the pixels that are counted, and
    the loss of the paper on the cells' own labels is left out.

    Use: where the evidence for a class is spread over the whole image, as in textures.

    Source: Baek et al. 2021, https://www.sciencedirect.com/science/article/pii/S0031320320303976. "holes" has the form
    of OpenMixup's code, https://github.com/Westlake-AI/openmixup; the number of cells and their probability in "cells"
    are this library's choice.

    Args:
        variant: "holes" or "cells".
        count: holes or cells across; None takes 20 holes or 8 cells. Of holes there are at most W // 2; a grid of
            cells that is given must not be finer than the image, the default is no finer than it.
        alpha: concentration of the Beta distribution, above 0; a float or a tensor [B].
        scope: "image" draws lam and the cells for each image, "batch" once.
        pairing: "random" (a permutation) or "reverse" (first with last); `partners` given in the inputs come first.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
        InputError: an image side smaller than the grid of cells that was given.
    """

    name: ClassVar[str] = "gridmix"
    source: ClassVar[str] = "Baek et al. 2021, https://www.sciencedirect.com/science/article/pii/S0031320320303976"

    variant: Literal["holes", "cells"] = "holes"
    count: int | None = None
    alpha: float | Tensor = 1.0
    pairing: Pairing = "random"

    def _check(self) -> None:
        check_choice("variant", self.variant, ("holes", "cells"))
        check_count("count", self.count)
        check_positive("alpha", self.alpha)
        check_pairing(self.pairing)

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        shape = drawn_rows(inputs, self.scope)
        lam = rng.beta(streams.values, rng.LAM, shape, per_row(self.alpha, inputs, self.scope))
        partners = pair(inputs, streams, self.pairing)
        if self.variant == "holes":
            return self._holes(inputs, partners, rows_of(lam, inputs))
        return self._cells(inputs, partners, lam, streams)

    def _holes(self, inputs: MixInputs, partners: Tensor, lam: Tensor) -> MixPlan:
        across = max(min(self.count or HOLES, inputs.width // 2), 1)
        period = -(-inputs.width // across)
        side = (period * torch.sqrt(1.0 - lam)).long().clamp_min(1).clamp_max(period - 1)
        rows, columns = (boxes.lattice(side, period, length) for length in inputs.size)
        share = rows.sum(1) * columns.sum(1) / (inputs.height * inputs.width)
        return MixPlan(
            size=inputs.size,
            partners=partners.unsqueeze(1),
            shares=torch.ones(1, 1, 1, 1, device=share.device),
            label_shares=share.unsqueeze(1),
            window=(rows, columns),
        )

    def _cells(self, inputs: MixInputs, partners: Tensor, lam: Tensor, streams: rng.Streams) -> MixPlan:
        sides = sides_of("count", self.count, (CELLS, CELLS), inputs)
        chance = rng.uniform(streams.values, rng.CELLS, (*drawn_rows(inputs, self.scope), *sides))
        shown = (chance >= lam[..., None, None]).expand(-1, inputs.group_size, -1, -1).flatten(0, 1)
        return MixPlan(
            size=inputs.size,
            partners=partners.unsqueeze(1),
            shares=shown.unsqueeze(1),
            label_shares=grid.mean(shown, inputs.size).unsqueeze(1),
        )
