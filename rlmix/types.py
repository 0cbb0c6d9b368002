"""What goes into a mix and what comes out, and the one meaning of lam.

**lam** is the weight of an image's *own* label, for image b of the output that is b's own image: 1 means unmixed. The
own image is the one that receives: the background of CutMix and Grafting, image 1 of mixup and R-Mix. A plan computes
lam from the labels' shares; it is never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch import Tensor

from rlmix.errors import InputError

if TYPE_CHECKING:
    from rlmix.plan import MixPlan

SaliencySource = Callable[[Tensor, Tensor], Tensor]
"""Gives saliency maps: (images [B, C, H, W], labels as they were given) -> float [B, h, w], not below 0."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class MixInputs:
    """What a method may look at when it draws a plan.

    Args:
        batch_size: B, the number of images.
        height: H, rows of pixels.
        width: W, columns of pixels.
        groups: number of equal, consecutive groups of rows; partners never cross a group. One group is one
            classifier's batch.
        device: where the plan's tensors live; taken from `images`, `saliency` or `partners` if None, else the CPU.
        saliency: [B, h, w] float, not below 0, on its own grid (an image-sized map or a coarse one), or None.
        images: [B, C, H, W] or None, for methods that look at pixels.
        labels: int64 [B] or None, for methods that look at labels.
        partners: int64 [B], the partner of each image, or None to let the method pair at random.

    Raises:
        InputError: sizes below 1, groups that do not divide the batch, or tensors of another shape or on two devices.
    """

    batch_size: int
    height: int
    width: int
    groups: int = 1
    device: torch.device | str | None = None
    saliency: Tensor | None = None
    images: Tensor | None = None
    labels: Tensor | None = None
    partners: Tensor | None = None

    def __post_init__(self) -> None:
        """Check ranks and shapes; values are checked at the front doors only."""
        if min(self.batch_size, self.height, self.width, self.groups) < 1:
            raise InputError(
                f"`batch_size`, `height`, `width` and `groups` must be at least 1, got {self.batch_size}, "
                f"{self.height}, {self.width} and {self.groups}."
            )
        if self.batch_size % self.groups:
            raise InputError(f"`groups` must divide the batch: {self.batch_size} images, {self.groups} groups.")
        if self.saliency is not None and (self.saliency.dim() != 3 or self.saliency.shape[0] != self.batch_size):
            raise InputError(
                f"`saliency` must be [B, h, w] with B = {self.batch_size}, got {list(self.saliency.shape)}. Give one "
                "map for each image, without a channel axis."
            )
        if self.saliency is not None and not self.saliency.is_floating_point():
            raise InputError(f"`saliency` must be floating point, got {self.saliency.dtype}. Use saliency.float().")
        for name, value in (("labels", self.labels), ("partners", self.partners)):
            if value is not None and value.shape != (self.batch_size,):
                raise InputError(f"`{name}` must have the shape [{self.batch_size}], got {list(value.shape)}.")
        known = [tensor for tensor in (self.images, self.saliency, self.partners) if tensor is not None]
        if len({tensor.device for tensor in known}) > 1:
            devices = ", ".join(str(tensor.device) for tensor in known)
            raise InputError(
                f"`images`, `saliency` and `partners` must be on one device, got {devices}. "
                "Use saliency.to(images.device)."
            )
        if self.device is None:
            object.__setattr__(self, "device", known[0].device if known else torch.device("cpu"))
        else:
            object.__setattr__(self, "device", torch.device(self.device))

    @property
    def group_size(self) -> int:
        """Rows of one group."""
        return self.batch_size // self.groups

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.height, self.width

    def select(self, rows: Tensor, groups: int) -> MixInputs:
        """Return the inputs of some whole groups: `rows` int64 [groups * group_size] in the groups' order."""
        if self.partners is not None:
            raise InputError("`partners` given for a whole batch cannot be split by method. Leave `partners` out.")
        return MixInputs(
            rows.shape[0],
            self.height,
            self.width,
            groups,
            self.device,
            None if self.saliency is None else self.saliency.index_select(0, rows),
            None if self.images is None else self.images.index_select(0, rows),
            None if self.labels is None else self.labels.index_select(0, rows),
        )


@final
class MixedBatch(NamedTuple):
    """What `rlmix.mix` returns.

    Attributes:
        images: [B, C, H, W], the dtype, device and memory format of the input.
        targets: float32 [B, num_classes]; rows sum to 1 where the labels were class numbers.
        plan: the plan that was applied; `plan.lam` is each image's own label weight.
    """

    images: Tensor
    targets: Tensor
    plan: MixPlan
