"""SaliencyMix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from rlmix.methods.method import (
    AbstractMethod,
    Pairing,
    check_choice,
    check_pairing,
    check_positive,
    drawn_rows,
    pair,
    per_row,
    rows_of,
    saliency_of,
    usable,
)
from rlmix.ops import boxes, grid, rng
from rlmix.plan import MixPlan
from rlmix.types import MixInputs

Mode = Literal["paper", "released"]
Placement = Literal[
    "salient-corresponding", "salient-salient", "salient-nonsalient", "nonsalient-salient", "nonsalient-nonsalient"
]

PLACEMENTS = {
    "salient-corresponding": (torch.argmax, None),
    "salient-salient": (torch.argmax, torch.argmax),
    "salient-nonsalient": (torch.argmax, torch.argmin),
    "nonsalient-salient": (torch.argmin, torch.argmax),
    "nonsalient-nonsalient": (torch.argmin, torch.argmin),
}
"""Which pixel of the partner's map the box is cut around, and of the own map pasted around (None: the same place)."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SaliencyMix(AbstractMethod):
    """Paste a box around the most salient pixel of the partner; the label follows the area that is covered.

    The sides of the box are `int(side * sqrt(1 - lam))`, lam ~ Beta(alpha, alpha). In mode "paper" each image has a box
    of its own, centred on the peak of its partner's map and moved just so far that it lies inside the image: it keeps
    its size and always holds the peak. In mode "released" all images of the batch (of each group) share one box, that
    of the partner of the first image; it reaches half a side, rounded down, to either side of the peak, and is clipped
    at the border.

    Use: instead of CutMix where objects are small or off centre; a detector or a saliency bank costs no pass.

    Source: Uddin, Monira, Shin, Chung, Bae 2021, https://arxiv.org/abs/2006.01791, Section 3. The authors' code hands
    the normalised floating-point image to a detector made for 8-bit images, whose map then says nothing about the
    image; neither mode repeats that. For the detector as it was meant, give the maps of
    `rlmix.saliency.Detector(rlmix.saliency.fine_grained, mean=..., std=...)` as `saliency`. The released code mixes a
    part of the batches: that is `scope="batch"` with a `probability`.

    Of a map coarser than the image, the peak is the pixel in the middle of its highest cell; of several highest pixels
    the first counts (the top left corner for a map without relief).

    Args:
        alpha: concentration of the Beta distribution, above 0; a float or a tensor [B].
        mode: "paper" or "released".
        placement: what is cut out of the partner, and where it is pasted: "salient-corresponding" (the box around the
            partner's peak, pasted at the same place), "salient-salient" (pasted around the own peak),
            "salient-nonsalient" (around the least salient own pixel), "nonsalient-salient" and "nonsalient-nonsalient"
            (the box around the partner's least salient pixel). The paper compares them and settles on the first. A
            box that is pasted at another place leaves an image that was paired with itself unmixed; in mode "released"
            it is clipped where either place reaches over the border.
        scope: "image" draws lam for each image, "batch" once; in mode "released" it is always drawn once, and `scope`
            only says whether `probability` is drawn for each image or once.
        pairing: "random" (a permutation) or "reverse" (first with last); `partners` given in the inputs come first.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
    """

    name: ClassVar[str] = "saliencymix"
    source: ClassVar[str] = "Uddin et al. 2021, https://arxiv.org/abs/2006.01791, Section 3"

    alpha: float | Tensor = 1.0
    mode: Mode = "paper"
    placement: Placement = "salient-corresponding"
    pairing: Pairing = "random"

    @property
    def needs_saliency(self) -> bool:
        """True: the maps say where the boxes are."""
        return True

    def _check(self) -> None:
        check_positive("alpha", self.alpha)
        check_choice("mode", self.mode, ("paper", "released"))
        check_choice("placement", self.placement, tuple(PLACEMENTS))
        check_pairing(self.pairing)

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        partners = pair(inputs, streams, self.pairing)
        shared = self.mode == "released"
        scope = "batch" if shared else self.scope
        drawn = per_row(self.alpha, inputs, scope)
        lam = rng.beta(streams.values, rng.LAM, drawn_rows(inputs, scope), drawn)
        side = torch.sqrt(1.0 - rows_of(lam, inputs))
        sources, targets = self._spots(inputs, partners)
        cut = _clipped if shared else _moved_inside
        window, counts, shifts = [], [], []
        for length, source, target in zip(inputs.size, sources, targets, strict=True):
            start, first, last = cut(source, target, (side * length).long(), length)
            window.append(boxes.interval(first, last, length))
            counts.append(last - first)
            shifts.append(first - start)
        share = (counts[0] * counts[1]) / (inputs.height * inputs.width)
        place = None
        if PLACEMENTS[self.placement][1] is not None:
            # An image's own box at another place would change its pixels and not its label.
            apart = (partners != torch.arange(inputs.batch_size, device=partners.device)).float()
            share, window[0] = share * apart, window[0] * apart.unsqueeze(1)
            scales = torch.ones_like(share)
            place = torch.stack([scales, scales, shifts[0].float(), shifts[1].float()], 1)
        return MixPlan(
            size=inputs.size,
            partners=partners.unsqueeze(1),
            shares=torch.ones(1, 1, 1, 1, device=share.device),
            label_shares=share.unsqueeze(1),
            window=(window[0], window[1]),
            place=place,
        )

    def _spots(self, inputs: MixInputs, partners: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return (rows, columns) around which is cut out of the partners and pasted into the images, int64 [B] each."""
        maps = saliency_of(inputs)
        # A map finer than the image is averaged to its pixels.
        shape = (min(maps.shape[1], inputs.height), min(maps.shape[2], inputs.width))
        cells = usable(grid.pool(maps, shape)).flatten(1)
        find_source, find_target = PLACEMENTS[self.placement]
        source = find_source(cells, 1)[partners]
        target = source if find_target is None else find_target(cells, 1)
        if self.mode == "released":
            source, target = (rows_of(cell.view(inputs.groups, -1)[:, :1], inputs) for cell in (source, target))
        return _middle(source, shape, inputs.size), _middle(target, shape, inputs.size)


def _middle(cell: Tensor, shape: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return row and column of the pixel in the middle of a cell (row-major), int64 [B] each."""
    places = []
    for index, count, length in zip((cell // shape[1], cell % shape[1]), shape, size, strict=True):
        edges = grid.starts(length, count, cell.device)
        pixels = torch.diff(edges, append=edges.new_full((1,), length))
        places.append((edges + pixels // 2)[index])
    return places[0], places[1]


def _moved_inside(source: Tensor, target: Tensor, side: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a box's start in the source and [first, last) in the target: its whole side, wherever it is centred."""
    start, first = ((centre - side // 2).clamp_min(0).minimum(length - side) for centre in (source, target))
    return start, first, first + side


def _clipped(source: Tensor, target: Tensor, side: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a box's start in the source and [first, last) in the target: what lies inside the image at both places."""
    half = side // 2
    before = half.minimum(source).minimum(target)
    after = half.minimum(length - source).minimum(length - target)
    return source - before, target - before, target + after
