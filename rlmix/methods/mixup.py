"""Mixup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

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
from rlmix.ops import rng
from rlmix.plan import MixPlan
from rlmix.types import MixInputs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Mixup(AbstractMethod):
    """Blend two images and their labels with one weight.

    `mixed = lam * own + (1 - lam) * partner`, lam ~ Beta(alpha, alpha), and the labels likewise.

    Use: first, beside CutMix: the cheapest mix, and all places of an image are treated alike.

    Source: Zhang, Cisse, Dauphin, Lopez-Paz 2018, https://arxiv.org/abs/1710.09412, Section 2. The authors' code
    draws one lam for the batch (`scope="batch"`); the default draws one for each image.

    Args:
        alpha: concentration of the Beta distribution, above 0; a float or a tensor [B].
        scope: "image" draws lam for each image, "batch" once.
        pairing: "random" (a permutation) or "reverse" (first with last); `partners` given in the inputs come first.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
    """

    name: ClassVar[str] = "mixup"
    source: ClassVar[str] = "Zhang et al. 2018, https://arxiv.org/abs/1710.09412, Section 2"

    alpha: float | Tensor = 1.0
    pairing: Pairing = "random"

    def _check(self) -> None:
        check_positive("alpha", self.alpha)
        check_pairing(self.pairing)

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        wanted = (rng.LAM, (*drawn_rows(inputs, self.scope), 2))
        partners, (drawn,) = pair_and_draw(inputs, streams, self.pairing, wanted)
        share = 1.0 - rows_of(rng.to_beta(drawn, per_row(self.alpha, inputs, self.scope)), inputs)
        return MixPlan(
            size=inputs.size,
            partners=partners.unsqueeze(1),
            shares=share.view(-1, 1, 1, 1),
            label_shares=share.unsqueeze(1),
        )
