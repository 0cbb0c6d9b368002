"""No mixing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from rlmix.methods.method import AbstractMethod
from rlmix.ops.rng import Streams
from rlmix.plan import MixPlan
from rlmix.types import MixInputs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NoMix(AbstractMethod):
    """Leave every image and label as they are: empirical risk minimisation.

    Use: as what every mix is compared with, and where a training is too short, or a network too small, to fit its data.

    Source: Vapnik 1999, as the baseline of https://arxiv.org/abs/1710.09412.
    """

    name: ClassVar[str] = "none"
    source: ClassVar[str] = "empirical risk minimisation, the baseline of https://arxiv.org/abs/1710.09412"

    def _plan(self, inputs: MixInputs, streams: Streams) -> MixPlan:
        device = streams.values.device
        return MixPlan(
            size=inputs.size,
            partners=torch.zeros(inputs.batch_size, 0, dtype=torch.int64, device=device),
            shares=torch.zeros(1, 0, 1, 1, device=device),
            label_shares=torch.zeros(inputs.batch_size, 0, device=device),
        )
