"""R-Mix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

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
    pair_and_draw,
    per_row,
    rows_of,
    saliency_of,
    usable,
)
from rlmix.ops import grid, rng
from rlmix.ops.quantile import row_quantile
from rlmix.plan import MixPlan
from rlmix.types import MixInputs

LEVELS = 10
"""The released code draws the threshold from this many equal steps from 0 to 0.99."""
HIGHEST_LEVEL = 0.99


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RMix(AbstractMethod):
    """Copy the cell that is salient in one image only; blend the cells on which both images agree.

    The saliency map of each image is averaged to a g x g grid and cut at a quantile of its own cells: k = 1 in the
    cells at or above it. Where the two images' k differ, the salient cell is copied; where they agree, the cells are
    blended with lam ~ Beta(alpha, alpha). The label follows the pixels. In the compact form used here, the own
    image's weight in a cell is `lam if k_own == k_partner else k_own`, and its label weight is the mean over pixels.

    The released code holds three more rules, which none of its scripts uses. Own weight of a cell, by `rule`:

    - "blend": the published one, as above.
    - "least": `lam if k_own == k_partner else 1 - k_own`; the cell that is *not* salient is copied. The released code
      credits the label of the salient side all the same, which `released_labels=True` reproduces.
    - "top": `k_own`; the own salient cells are cut and pasted on the partner.
    - "differ": `1 if k_own == k_partner else 0`; the partner shows where the images disagree.

    Use: for saliency at nearly the price of CutMix: no solver, and with a saliency bank no pass of its own.

    Source: Minh-Long Luu et al., https://arxiv.org/abs/2212.04875, as in the authors' released code (the training
    script for CIFAR). The quantile does not change with the scale of a map, so the normalisation of the released code,
    which divides by zero for an all-zero map, is left out; a map without a finite value above zero counts as uniform.
    The official material gives three values for alpha (0.2, 1 and 2); 1 is the default of the CIFAR script.

    Args:
        alpha: concentration of the Beta distribution, above 0; a float or a tensor [B] (with `scope="batch"` the first
            of each group counts).
        threshold: the quantile level in [0, 1], a float or a tensor [B]; None draws each image's level from the
            released code's ten equal steps from 0 to 0.99.
        grids: cells per side, one of which is drawn for the batch; the released CIFAR script uses 4 and 2.
        rule: what is done with the cells: "blend", "least", "top" or "differ"; the last two draw no lam.
        released_labels: whether labels follow "blend" while the pixels follow "least"; for that rule only.
        scope: "batch" draws one lam for the batch, as published; "image" one for each image.
        pairing: "random" (a permutation) or "reverse" (first with last); `partners` given in the inputs come first.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
        InputError: an image side smaller than a grid.
    """

    name: ClassVar[str] = "rmix"
    source: ClassVar[str] = "Luu et al. 2022, https://arxiv.org/abs/2212.04875 and its released code"

    alpha: float | Tensor = 1.0
    threshold: float | Tensor | None = None
    grids: tuple[int, ...] = (4, 2)
    rule: Literal["blend", "least", "top", "differ"] = "blend"
    released_labels: bool = False
    scope: Scope = "batch"
    pairing: Pairing = "random"

    @property
    def needs_saliency(self) -> bool:
        """True: the maps decide which cells are copied."""
        return True

    @property
    def labels_by_area(self) -> bool:
        """Whether labels follow the pixels: not with the labels of the released code."""
        return not self.released_labels

    def _check(self) -> None:
        check_positive("alpha", self.alpha)
        if self.threshold is not None:
            check_range("threshold", self.threshold, 0.0, 1.0)
        object.__setattr__(self, "grids", tuple(self.grids))
        if not self.grids or not all(isinstance(side, int) and side >= 1 for side in self.grids):
            raise MethodError(f"`grids` must be whole numbers of at least 1, got {self.grids!r}.")
        check_choice("rule", self.rule, ("blend", "least", "top", "differ"))
        if self.released_labels not in (False, self.rule == "least"):
            raise MethodError(
                f"`released_labels` must be True or False, and True is for rule='least' only, got "
                f"{self.released_labels!r} with rule={self.rule!r}."
            )
        check_pairing(self.pairing)

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        if min(inputs.size) < max(self.grids):
            raise InputError(
                f"`grids` {self.grids} need images of at least {max(self.grids)} pixels a side, got "
                f"{inputs.height}x{inputs.width}. Give a smaller grid, for example grids=({min(inputs.size)},)."
            )
        if len(self.grids) == 1:
            return self._plan_on(self.grids[0], inputs, streams, None)
        chosen = [self.grids[rng.host_integer(key, rng.GRID, len(self.grids))] for key in streams.keys]
        return by_group(chosen, inputs, streams, self._plan_on)

    def _plan_on(self, side: int, inputs: MixInputs, streams: rng.Streams, rows: Tensor | None) -> MixPlan:
        alpha, threshold = _select(self.alpha, rows), self.threshold
        blends = self.rule in ("blend", "least")
        wanted = [(rng.LAM, (*drawn_rows(inputs, self.scope), 2))] if blends else []
        wanted += [(rng.LEVEL, (inputs.group_size,))] if threshold is None else []
        partners, drawn = pair_and_draw(inputs, streams, self.pairing, *wanted)
        cells = usable(grid.pool(saliency_of(inputs), (side, side)))
        if threshold is None:
            levels = torch.floor(drawn[-1].flatten() * LEVELS).float() * (HIGHEST_LEVEL / (LEVELS - 1))
        else:
            given = _select(threshold, rows)
            levels = rng.on_device(given, torch.float32, cells.device).expand(inputs.batch_size)
        cut = row_quantile(cells.flatten(1), levels)
        salient = (cells >= cut.view(-1, 1, 1)).float()
        lam = rows_of(rng.to_beta(drawn[0], per_row(alpha, inputs, self.scope)), inputs) if blends else None
        share, credited = self._shares(salient, salient.index_select(0, partners), lam)
        return MixPlan(
            size=inputs.size,
            partners=partners.unsqueeze(1),
            shares=share.unsqueeze(1),
            label_shares=grid.mean(credited, inputs.size).unsqueeze(1),
        )

    def _shares(self, own: Tensor, theirs: Tensor, lam: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the partner's weight in each cell, float32 [B, h, w], and what its label is credited for there."""
        agree = (own == theirs).float()
        if lam is None:
            share = 1.0 - (own if self.rule == "top" else agree)
            return share, share
        blended = 1.0 - lam.view(-1, 1, 1)
        # What torch.where would say, without its branch in every cell; a weight of 0 or 1 gives the very end.
        if self.rule == "blend":
            share = torch.lerp(theirs, blended, agree)
            return share, share
        share = torch.lerp(own, blended, agree)
        return share, torch.lerp(theirs, blended, agree) if self.released_labels else share


def _select(value: float | Tensor, rows: Tensor | None) -> float | Tensor:
    """Return the parameter of these rows."""
    return value[rows.to(value.device)] if isinstance(value, Tensor) and rows is not None and value.dim() else value
