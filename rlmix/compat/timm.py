"""`Mixup` as timm has it: the same arguments and call, on rlmix plans. timm itself is not needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor

from rlmix._apply import apply
from rlmix._mix import check_batch
from rlmix.errors import InputError, MethodError
from rlmix.methods.method import check_choice, check_range
from rlmix.ops import boxes, rng
from rlmix.plan import MixPlan

Span = tuple[Tensor, Tensor]


@final
class Mixup:
    """Mixup and CutMix of an image with the one that stands as far from the other end of the batch.

    Takes the place of `timm.data.Mixup` (https://huggingface.co/docs/timm, as of version 1.0.31). Sources of the
    methods: https://arxiv.org/abs/1710.09412 and https://arxiv.org/abs/1905.04899.

    Not imitated: the images are never written, gradients flow through them; a batch may be of any size (the image in
    the middle of an odd one stays as it is); random numbers come from torch instead of NumPy, for all images at once
    instead of in a loop; and a missing strength or an unknown `mode` is refused when the object is made.

    Args:
        mixup_alpha: concentration of mixup's Beta distribution; 0 switches mixup off.
        cutmix_alpha: concentration of CutMix's; 0 switches CutMix off.
        cutmix_minmax: (least, most) side of CutMix's box as a share of the image's, instead of `cutmix_alpha`; the box
            lies inside the image. None takes the box from the Beta distribution, cut off at the image's edge.
        prob: the share of batches (pairs, images) that are mixed, in [0, 1].
        switch_prob: the share of these that get CutMix where both are on, in [0, 1].
        mode: "batch" draws once for the batch, "pair" for each pair of images, "elem" for each image.
        correct_lam: the label's weight of a box is its true area; False leaves what was drawn.
        label_smoothing: in [0, 1]; spread evenly over the classes (with `multi_label` towards one half in each class).
        num_classes: C of the targets.
        multi_label: the labels are floating point [B, C].
        generator: a CPU generator; None takes one key a call from torch's default one, so that `torch.manual_seed`
            alone makes a training repeatable.

    Attributes:
        mixup_enabled: set it to False to get unmixed images with the same targets otherwise, as in the last epochs.

    Raises:
        MethodError: neither mixup nor CutMix is on, or an argument out of its range.

    Example:
        >>> import torch
        >>> from rlmix.compat.timm import Mixup
        >>> mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode="elem", num_classes=10)
        >>> images, targets = mixup(torch.rand(8, 3, 32, 32), torch.arange(8))
        >>> targets.shape
        torch.Size([8, 10])
    """

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: Literal["batch", "pair", "elem"] = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if cutmix_minmax is not None:
            if len(cutmix_minmax) != 2 or not 0.0 <= cutmix_minmax[0] <= cutmix_minmax[1] <= 1.0:
                raise MethodError(
                    f"`cutmix_minmax` must be (least, most) with 0 <= least <= most <= 1, got {cutmix_minmax!r}."
                )
            cutmix_alpha = 1.0
        for name, value in (("prob", prob), ("switch_prob", switch_prob), ("label_smoothing", label_smoothing)):
            check_range(name, value, 0.0, 1.0)
        for name, value in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
            check_range(name, value, 0.0, float("inf"))
        if mixup_alpha == 0 and cutmix_alpha == 0:
            raise MethodError(
                "One of mixup_alpha > 0., cutmix_alpha > 0., cutmix_minmax not None should be true. To train without "
                "mixing leave the transform out, or set `mixup_enabled` to False."
            )
        check_choice("mode", mode, ("batch", "pair", "elem"))
        self.mixup_alpha, self.cutmix_alpha, self.cutmix_minmax = mixup_alpha, cutmix_alpha, cutmix_minmax
        self.mix_prob, self.switch_prob, self.mode = prob, switch_prob, mode
        self.correct_lam, self.label_smoothing = correct_lam, label_smoothing
        self.num_classes, self.multi_label = num_classes, multi_label
        self.generator = generator
        self.mixup_enabled = True

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            x: images [B, C, H, W], floating point, any device; never written.
            target: whole numbers [B] in [0, num_classes), or floating point [B, num_classes] with `multi_label`.

        Returns:
            Images like `x`, and targets float32 [B, num_classes].

        Raises:
            InputError: images or labels of a wrong form.
        """
        if not self.multi_label:
            labels = check_batch(x, target, self.num_classes)
            plan = self.draw(x)
            return apply(x, plan), plan.soft_targets(labels, self.num_classes, self.label_smoothing)
        if target.dim() != 2 or target.shape[1] != self.num_classes:
            raise InputError(
                "Multi-label mixup expects dense targets shaped (batch, num_classes), here "
                f"[{x.shape[0]}, {self.num_classes}], got {list(target.shape)}."
            )
        plan = self.draw(x)
        dense = target.float() * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        return apply(x, plan), plan.mix_targets(dense)

    def draw(self, x: Tensor) -> MixPlan:
        """Return the plan for the next batch, of images like `x` [B, C, H, W]; takes a key from the generator."""
        batch, size, device = x.shape[0], (x.shape[2], x.shape[3]), x.device
        rows = torch.arange(batch, device=device)
        partners = rows.flip(0)
        if not self.mixup_enabled:
            nothing = torch.zeros(batch, 1, device=device)
            return MixPlan(
                size=size, partners=partners.unsqueeze(1), shares=nothing.view(-1, 1, 1, 1), label_shares=nothing
            )
        # Which draw each image follows, and how many there are.
        draws, count = {
            "batch": (torch.zeros_like(rows), 1),
            "pair": (torch.minimum(rows, partners), (batch + 1) // 2),
            "elem": (rows, batch),
        }[self.mode]
        keys = rng.streams_from(self.generator or torch.default_generator).to(device).values
        mixed = (rng.uniform(keys, rng.APPLIED, (count,)) < self.mix_prob)[0, draws]
        switch = self.switch_prob if self.mixup_alpha > 0 and self.cutmix_alpha > 0 else float(self.cutmix_alpha > 0)
        boxed = rng.uniform(keys, rng.MEMBER, (count,)) < switch
        alpha = torch.full_like(boxed, self.mixup_alpha, dtype=torch.float32).masked_fill(boxed, self.cutmix_alpha)
        partner = 1.0 - rng.beta(keys, rng.LAM, (count,), alpha)[0, draws]
        boxed = boxed[0, draws]
        place = rng.uniform(keys, rng.CENTRE, (count, 2))[0, draws]
        scale = rng.uniform(keys, rng.SCALE, (count, 2))[0, draws]
        spans = [self._span(partner, place[:, axis], scale[:, axis], size[axis]) for axis in (0, 1)]
        window = [
            boxes.interval(*span, length).masked_fill(~boxed.unsqueeze(1), 1.0)
            for span, length in zip(spans, size, strict=True)
        ]
        share = partner
        if self.correct_lam or self.cutmix_minmax is not None:
            (top, bottom), (left, right) = spans
            share = torch.where(boxed, (bottom - top) * (right - left) / (size[0] * size[1]), partner)
        return MixPlan(
            size=size,
            partners=partners.unsqueeze(1),
            shares=(partner.masked_fill(boxed, 1.0) * mixed).view(-1, 1, 1, 1),
            label_shares=(share * mixed).unsqueeze(1),
            window=(window[0], window[1]) if self.cutmix_alpha > 0 else None,
        )

    def _span(self, partner: Tensor, place: Tensor, scale: Tensor, length: int) -> Span:
        """Return [first, last) of the boxes along a side of `length` pixels, int64 [B] each.

        Args:
            partner: the partner's share as it was drawn, [B].
            place: where the box lies, uniform in [0, 1), [B].
            scale: its side where `cutmix_minmax` rules, uniform in [0, 1), [B].
            length: pixels.
        """
        if self.cutmix_minmax is not None:
            least, most = (int(length * bound) for bound in self.cutmix_minmax)
            side = least + (scale * max(most - least, 1)).long()
            first = (place * (length + 1 - side)).long()
            return first, first + side
        side = (torch.sqrt(partner) * length).long()
        centre = (place * length).long()
        # The larger half of an odd side lies after the centre: `side // 2` both ways would lose a pixel.
        return (centre - side // 2).clamp(0, length), (centre + (side + 1) // 2).clamp(0, length)
