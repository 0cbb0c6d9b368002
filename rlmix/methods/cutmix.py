"""CutMix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from rlmix.errors import MethodError
from rlmix.methods.method import (
    AbstractMethod,
    Pairing,
    check_pairing,
    check_positive,
    drawn_rows,
    pair_and_draw,
    per_row,
    rows_of,
)
from rlmix.ops import boxes, compiled, rng
from rlmix.plan import MixPlan
from rlmix.types import MixInputs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CutMix(AbstractMethod):
    """Paste a box of the partner at its own place; the label follows the area that is really covered.

    A box of side `int(side * sqrt(1 - lam))`, lam ~ Beta(alpha, alpha), around a uniformly random pixel, clipped to
    the image. The label weight of the partner is the box's pixel count over all pixels, so clipping is accounted for
    (with alpha = 1 the mean weight of the own image is therefore above one half). `exact_area=True` keeps the box
    whole: its sides are rounded up or down at random, so that their mean is `side * sqrt(1 - lam)`, and it lies inside
    the image, every place equally likely. The mean of the partner's share is then the mean of 1 - lam.

    Use: first, beside mixup: it needs nothing, and every pixel stays a real one.

    Source: Yun, Han, Oh, Chun, Choe, Yoo 2019, https://arxiv.org/abs/1905.04899, Section 3.1, Eq. 1 and 2. The authors'
    code draws one box for the batch (`scope="batch"`); the default draws one for each image.

    Args:
        alpha: concentration of the Beta distribution, above 0; a float or a tensor [B].
        exact_area: False for the published box, True for one whose mean area is that of 1 - lam.
        scope: "image" draws a box for each image, "batch" one.
        pairing: "random" (a permutation) or "reverse" (first with last); `partners` given in the inputs come first.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
    """

    name: ClassVar[str] = "cutmix"
    source: ClassVar[str] = "Yun et al. 2019, https://arxiv.org/abs/1905.04899, Section 3.1"

    alpha: float | Tensor = 1.0
    exact_area: bool = False
    pairing: Pairing = "random"

    def _check(self) -> None:
        check_positive("alpha", self.alpha)
        check_pairing(self.pairing)
        if not isinstance(self.exact_area, bool):
            raise MethodError(f"`exact_area` must be True or False, got {self.exact_area!r}.")

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        partners, share, window = self._draw(inputs, streams)
        shares = torch.ones(1, 1, 1, 1, device=share.device)
        return MixPlan(size=inputs.size, partners=partners, shares=shares, label_shares=share, window=window)

    def _draw(self, inputs: MixInputs, streams: rng.Streams) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Return partners [B, 1], the share of the pixels that are theirs [B, 1], and rows and columns of the boxes."""
        if self._is_plain(inputs) and compiled.serves(streams.values):
            # The rest of this function, in one call; only for alpha = 1 without logarithms, whose last bits differ.
            code = compiled.code("boxes_numba")
            drawn: tuple[Tensor, Tensor, tuple[Tensor, Tensor]] = code.drawn(
                streams.values, inputs.group_size, self.scope == "image", inputs.size
            )
            return drawn
        rows = drawn_rows(inputs, self.scope)
        partners, (lam, place) = pair_and_draw(
            inputs, streams, self.pairing, (rng.LAM, (*rows, 2)), (rng.CENTRE, (2, *rows))
        )
        weight = rows_of(rng.to_beta(lam, per_row(self.alpha, inputs, self.scope)), inputs)
        where = place.transpose(0, 1).expand(2, inputs.groups, inputs.group_size).reshape(2, -1)
        if self.exact_area:
            rows_seen, columns_seen = self._whole(where, torch.sqrt(1.0 - weight), inputs, streams)
            share = boxes.share(rows_seen, columns_seen)
        else:
            rows_seen, columns_seen, share = boxes.clipped(where, weight, inputs.size)
        return partners.unsqueeze(1), share.unsqueeze(1), (rows_seen, columns_seen)

    def _is_plain(self, inputs: MixInputs) -> bool:
        """Say whether random partners and published boxes with a uniform lam are drawn."""
        if self.exact_area or self.pairing != "random" or inputs.partners is not None:
            return False
        return isinstance(self.alpha, float | int) and self.alpha == 1

    def _whole(self, where: Tensor, side: Tensor, inputs: MixInputs, streams: rng.Streams) -> tuple[Tensor, Tensor]:
        """Return which rows and columns lie in a box kept whole, for places float64 [2, B] and sides, as shares [B]."""
        first, second = (
            boxes.interval(
                *boxes.inside(where[axis], self._rounded(side * length, axis, inputs, streams), length), length
            )
            for axis, length in enumerate(inputs.size)
        )
        return first, second

    def _rounded(self, sides: Tensor, axis: int, inputs: MixInputs, streams: rng.Streams) -> Tensor:
        """Return whole sides, int64 [B], whose mean is `sides`: each axis is rounded for itself."""
        chance = rng.uniform(streams.values, rng.ROUND, (*drawn_rows(inputs, self.scope), 2))
        return torch.floor(sides + rows_of(chance[..., axis], inputs)).long().clamp_max(inputs.size[axis])
