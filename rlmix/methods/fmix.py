"""FMix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from rlmix.errors import MethodError
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
    sides_of,
)
from rlmix.ops import grid, rng, spectrum
from rlmix.plan import MixPlan
from rlmix.types import MixInputs

GRID = 64


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FMix(AbstractMethod):
    """Show the partner in blobs of a random shape, cut from a random field of low frequencies.

    A Gaussian field is drawn in the spectrum, its amplitude falling as 1 / max(f, 1 / max(H, W)) ** decay with the
    frequency f in cycles per pixel. The lam * n highest of its n cells show the own image, the others the partner, with
    lam ~ Beta(alpha, alpha) and the number rounded up or down, each half of the time. The label follows the pixels.

    Use: instead of CutMix where boxes are too simple a pattern: masks have many shapes, and every pixel stays a real
    one.

    Source: Harris et al. 2020, https://arxiv.org/abs/2002.12047. `mode="paper"` is the field that the paper
    describes. The authors' code, https://github.com/ecs-vlc/FMix, takes the first two rows of the spectrum for its real
    and imaginary part, so that its fields hold but the lowest frequencies along the width: another algorithm, which
    `mode="released"` gives. Both draw a value for each pixel, which `grid=H` does on square images; the default grid
    of at most 64x64 cells leaves out the frequencies that are too high for it, and costs much less at 224 pixels.

    Args:
        alpha: concentration of the Beta distribution, above 0; a float or a tensor [B].
        decay: how fast the amplitude falls, at least 0.
        mode: "paper" or "released".
        grid: cells per side; None takes 64, or the image's side where that is smaller.
        scope: "image" draws a mask for each image, "batch" one.
        pairing: "random" (a permutation) or "reverse" (first with last); `partners` given in the inputs come first.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
        InputError: an image side smaller than the grid that was given.
    """

    name: ClassVar[str] = "fmix"
    source: ClassVar[str] = "Harris et al. 2020, https://arxiv.org/abs/2002.12047"

    alpha: float | Tensor = 1.0
    decay: float = 3.0
    mode: Literal["paper", "released"] = "paper"
    grid: int | None = None
    pairing: Pairing = "random"

    def _check(self) -> None:
        check_positive("alpha", self.alpha)
        if isinstance(self.decay, bool) or not isinstance(self.decay, int | float) or not 0 <= self.decay < 100:
            raise MethodError(f"`decay` must be a number in [0, 100), got {self.decay!r}.")
        check_choice("mode", self.mode, ("paper", "released"))
        check_count("grid", self.grid)
        check_pairing(self.pairing)

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        sides = sides_of("grid", self.grid, (GRID, GRID), inputs)
        shape = drawn_rows(inputs, self.scope)
        lam = rng.beta(streams.values, rng.LAM, shape, per_row(self.alpha, inputs, self.scope))
        cells = sides[0] * sides[1]
        up = rng.uniform(streams.values, rng.ROUND, shape) < 0.5
        count = torch.where(up, torch.ceil(lam * cells), torch.floor(lam * cells))
        order = self._field(sides, inputs, streams).flatten(-2).argsort(dim=-1, descending=True, stable=True)
        beyond = torch.arange(cells, device=order.device) >= count.unsqueeze(-1)
        theirs = torch.zeros_like(beyond).scatter_(-1, order, beyond)
        theirs = theirs.expand(inputs.groups, inputs.group_size, cells).reshape(-1, *sides)
        return MixPlan(
            size=inputs.size,
            partners=pair(inputs, streams, self.pairing).unsqueeze(1),
            shares=theirs.unsqueeze(1),
            label_shares=grid.mean(theirs, inputs.size).unsqueeze(1),
        )

    def _field(self, sides: tuple[int, int], inputs: MixInputs, streams: rng.Streams) -> Tensor:
        """Return the field of each row that is drawn: float32 [G, b or 1, h, w]."""
        drawn = drawn_rows(inputs, self.scope)
        if self.mode == "paper":
            noise = spectrum.noise(streams.values, rng.SPECTRUM, (*drawn, sides[0], sides[1] // 2 + 1))
            return spectrum.field(noise, sides, inputs.size, self.decay).float()
        noise = spectrum.noise(streams.values, rng.SPECTRUM, (*drawn, spectrum.released_columns(sides[1]), 2))
        return spectrum.released_field(noise, sides, inputs.size, self.decay).float()
