"""A mix method of one's own, without changing rlmix: define it, then use it by hand and in a controller.

    python examples/own_method.py

docs/contributing-a-method.md goes through the class, and shows how to check its contract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

import rlmix
from rlmix.methods.method import AbstractMethod, check_positive, drawn_rows, pair, per_row, rows_of
from rlmix.ops import rng
from rlmix.plan import MixPlan
from rlmix.types import MixInputs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon(AbstractMethod):
    """Put the partner's rows below a random horizon.

    Use: to see how a method is made.

    Source: Summers and Dinneen 2019, https://arxiv.org/abs/1805.11272.

    Args:
        alpha: concentration of the Beta distribution of the horizon's height, above 0.
        scope: "image" draws a horizon for each image, "batch" one.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
    """

    name: ClassVar[str] = "horizon"
    source: ClassVar[str] = "Summers and Dinneen 2019, https://arxiv.org/abs/1805.11272"

    alpha: float | Tensor = 1.0

    def _check(self) -> None:
        check_positive("alpha", self.alpha)

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        alpha = per_row(self.alpha, inputs, self.scope)
        lam = rows_of(rng.beta(streams.values, rng.LAM, drawn_rows(inputs, self.scope), alpha), inputs)
        first = (lam * inputs.height).long()
        rows = torch.arange(inputs.height, device=lam.device) >= first.unsqueeze(1)
        return MixPlan(
            size=inputs.size,
            partners=pair(inputs, streams).unsqueeze(1),
            shares=torch.ones(1, 1, 1, 1, device=lam.device),
            label_shares=rows.float().mean(1, keepdim=True),
            window=(rows.float(), torch.ones(inputs.batch_size, inputs.width, device=lam.device)),
        )


def main() -> None:
    """Mix one batch by hand, and one through a controller."""
    images, labels = torch.rand(4, 1, 8, 8), torch.arange(4)

    batch = rlmix.mix(images, labels, Horizon(alpha=0.5), num_classes=4, generator=torch.Generator().manual_seed(0))
    print("weight of each image's own label:", batch.plan.lam.tolist())

    mixer = rlmix.MixController(Horizon(alpha=0.5), num_classes=4, total_steps=1, seed=0)
    mixed, targets = mixer(images, labels)
    print("a mixed batch:", list(mixed.shape), "with targets", list(targets.shape))
    mixer.close()


if __name__ == "__main__":
    main()
