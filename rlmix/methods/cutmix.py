"""CutMix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from rlmix.methods.method import (
    AbstractMethod,
    Pairing,
    check_pairing,
    check_positive,
    drawn_rows,
    pair,
    per_row,
    rows_of,
)
from rlmix.ops import boxes, rng
from rlmix.plan import MixPlan
from rlmix.types import MixInputs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CutMix(AbstractMethod):
    """Paste a box of the partner at its own place; the label follows the area that is really covered.

    A box of side `int(side * sqrt(1 - lam))`, lam ~ Beta(alpha, alpha), around a uniformly random pixel, clipped to
    the image. The label weight of the partner is the box's pixel count over all pixels, so clipping is accounted for
    (with alpha = 1 the mean weight of the own image is therefore above one half).

    Source: Yun, Han, Oh, Chun, Choe, Yoo 2019, https://arxiv.org/abs/1905.04899, Section 3.1, Eq. 1 and 2. The authors'
    code draws one box for the batch (`scope="batch"`); the default draws one for each image.

    Args:
        alpha: concentration of the Beta distribution, above 0; a float or a tensor [B].
        scope: "image" draws a box for each image, "batch" one.
        pairing: "random" (a permutation) or "reverse" (first with last); `partners` given in the inputs come first.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
    """

    name: ClassVar[str] = "cutmix"
    source: ClassVar[str] = "Yun et al. 2019, https://arxiv.org/abs/1905.04899, Section 3.1"

    alpha: float | Tensor = 1.0
    pairing: Pairing = "random"

    def _check(self) -> None:
        check_positive("alpha", self.alpha)
        check_pairing(self.pairing)

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        shape = drawn_rows(inputs, self.scope)
        lam = rng.beta(streams.values, rng.LAM, shape, per_row(self.alpha, inputs, self.scope))
        side = torch.sqrt(1.0 - rows_of(lam, inputs))
        place = rng.uniform(streams.values, rng.CENTRE, (*shape, 2))
        window, counts = [], []
        for axis, length in enumerate(inputs.size):
            centre = (rows_of(place[..., axis], inputs) * length).long()
            first, last = boxes.centred(centre, (side * length).long(), length)
            window.append(boxes.interval(first, last, length))
            counts.append(last - first)
        share = (counts[0] * counts[1]) / (inputs.height * inputs.width)
        return MixPlan(
            size=inputs.size,
            partners=pair(inputs, streams, self.pairing).unsqueeze(1),
            shares=torch.ones(1, 1, 1, 1, device=share.device),
            label_shares=share.unsqueeze(1),
            window=(window[0], window[1]),
        )
