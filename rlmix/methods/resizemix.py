"""ResizeMix."""

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
    check_range,
    drawn_rows,
    pair,
    rows_of,
)
from rlmix.ops import boxes, rng
from rlmix.plan import MixPlan
from rlmix.types import MixInputs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeMix(AbstractMethod):
    """Paste the whole partner, made smaller, into a random box; the label follows the box's area.

    A box of the sides `int(H * tau)` and `int(W * tau)`, tau ~ U(low, high), around a uniformly random pixel, clipped
    to the image as CutMix's. The whole partner is shown in the clipped box, by nearest neighbour: row k of a box of h
    rows shows row (k * H) // h of the partner. lam = 1 - box pixels / (H * W). An image that meets itself stays as it
    is, and so does one whose box has no pixel (an image of few pixels with a small tau).

    Use: instead of CutMix where a box often misses the object: here the whole partner is to be seen.

    Source: Qin, Fang, Zhang, Liu, Wang, Wang 2020, https://arxiv.org/abs/2012.11101. That the partner is resized to
    the clipped box (and not resized first and clipped then) and the nearest neighbour follow OpenMixup's code,
    https://github.com/Westlake-AI/openmixup.

    Args:
        low: the smallest tau in [0, 1], a float or a tensor [B].
        high: the largest tau in [low, 1], a float or a tensor [B].
        scope: "image" draws a box for each image, "batch" one.
        pairing: "random" (a permutation) or "reverse" (first with last); `partners` given in the inputs come first.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
    """

    name: ClassVar[str] = "resizemix"
    source: ClassVar[str] = "Qin et al. 2020, https://arxiv.org/abs/2012.11101"

    low: float | Tensor = 0.1
    high: float | Tensor = 0.8
    pairing: Pairing = "random"

    def _check(self) -> None:
        check_range("low", self.low, 0.0, 1.0)
        check_range("high", self.high, 0.0, 1.0)
        check_ordered("low", self.low, "high", self.high)
        check_pairing(self.pairing)

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        shape = drawn_rows(inputs, self.scope)
        tau = between(self.low, self.high, rng.uniform(streams.values, rng.SCALE, shape), inputs, self.scope)
        centres = rng.uniform(streams.values, rng.CENTRE, (*shape, 2))
        window, counts, scales, shifts = [], [], [], []
        for axis, length in enumerate(inputs.size):
            centre = (rows_of(centres[..., axis], inputs) * length).long()
            first, last = boxes.centred(centre, (rows_of(tau, inputs) * length).long(), length)
            scale, shift = boxes.fit(first, last, length)
            window.append(boxes.interval(first, last, length))
            counts.append(last - first)
            scales.append(scale)
            shifts.append(shift)
        share = (counts[0] * counts[1]) / (inputs.height * inputs.width)
        partners = pair(inputs, streams, self.pairing)
        plan = MixPlan(
            size=inputs.size,
            partners=partners.unsqueeze(1),
            shares=torch.ones(1, 1, 1, 1, device=share.device),
            label_shares=share.unsqueeze(1),
            window=(window[0], window[1]),
            place=torch.stack([*scales, *shifts], 1),
        )
        # Its own smaller picture in an image would change pixels where lam says that nothing is mixed.
        return plan.where(partners != torch.arange(inputs.batch_size, device=partners.device))
