"""SmoothMix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from rlmix.methods.method import (
    AbstractMethod,
    Pairing,
    between,
    check_ordered,
    check_pairing,
    check_positive,
    drawn_rows,
    pair,
    rows_of,
)
from rlmix.ops import rng
from rlmix.plan import MixPlan
from rlmix.types import MixInputs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothMix(AbstractMethod):
    """Fade the partner in around a random pixel, by a Gaussian instead of a box.

    The partner's weight at distance (dy, dx) from a uniformly random pixel is
    `exp(-dy**2 / (2 sy**2) - dx**2 / (2 sx**2))` with sy = s * H, sx = s * W and s ~ U(low, high): a Gaussian of the
    image's shape, a circle on a square one. The label weight of the partner is the mean of its pixel weights, so
    `lam = 1 - mean`.

    Use: instead of CutMix where a network might learn the straight edges of boxes: here there is no edge.

    Source: Lee et al., CVPR Workshops 2020, in the form and with the distribution of OpenMixup's code,
    https://github.com/Westlake-AI/openmixup, which serves square images only. That code gives the partner's mean weight
    to the own label; here each label weighs what its pixels do.

    Args:
        low: the smallest s, above 0, a float or a tensor [B].
        high: the largest s, at least `low`, a float or a tensor [B].
        scope: "image" draws a Gaussian for each image, "batch" one.
        pairing: "random" (a permutation) or "reverse" (first with last); `partners` given in the inputs come first.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
    """

    name: ClassVar[str] = "smoothmix"
    source: ClassVar[str] = (
        "Lee et al. 2020 (CVPR Workshops) in OpenMixup's form, https://github.com/Westlake-AI/openmixup"
    )

    low: float | Tensor = 0.25
    high: float | Tensor = 0.5
    pairing: Pairing = "random"

    def _check(self) -> None:
        check_positive("low", self.low)
        check_positive("high", self.high)
        check_ordered("low", self.low, "high", self.high)
        check_pairing(self.pairing)

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        shape = drawn_rows(inputs, self.scope)
        spread = between(self.low, self.high, rng.uniform(streams.values, rng.SCALE, shape), inputs, self.scope)
        centres = rng.uniform(streams.values, rng.CENTRE, (*shape, 2))
        window = []
        for axis, length in enumerate(inputs.size):
            centre = torch.floor(rows_of(centres[..., axis], inputs) * length)
            distance = torch.arange(length, device=centre.device) - centre.unsqueeze(1)
            window.append(torch.exp(-0.5 * (distance / (rows_of(spread, inputs) * length).unsqueeze(1)).square()))
        share = window[0].mean(1) * window[1].mean(1)
        return MixPlan(
            size=inputs.size,
            partners=pair(inputs, streams, self.pairing).unsqueeze(1),
            shares=torch.ones(1, 1, 1, 1, device=share.device),
            label_shares=share.unsqueeze(1),
            window=(window[0], window[1]),
        )
