"""A coarse saliency map for each training example, kept from one step of a training to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast, final

import torch
from torch import Tensor

from rlmix.errors import CheckpointError, InputError
from rlmix.ops import grid as cells
from rlmix.plan import MixPlan

_FULL = 255.0


@final
class SaliencyBank:
    """Remembers one coarse map for each training example, so that methods with saliency need no pass of their own.

    The maps are one uint8 tensor [N, h, w], each scaled to its own peak, so that only the relief inside a map is kept:
    every use of a map is free of its scale. N * h * w bytes: for the 1,281,167 training images of ImageNet-1k at 8x8
    that is 82.0 MB. A map of zeros has never been written and reads as uniform.

    The maps are refreshed by `refresh` from the gradient that a training's own backward pass gives, or by `update` from
    any provider. Under data-parallel training each process has a bank of its own, which knows the examples that this
    process has seen: give each process a fixed share of the examples.

    An example's map is kept in its own coordinates. Where a training mirrors its images, say which of them are
    `mirrored`; shifts by less than a cell may be left unsaid.

    Source: the gradient is that of Simonyan, Vedaldi, Zisserman 2014, https://arxiv.org/abs/1312.6034, Section 3, as a
    root mean square over channels; that it is taken from the mixed images of earlier steps is this library's choice.

    Args:
        num_examples: N, training examples; ids are 0 to N - 1.
        grid: cells per side, or (h, w).
        device: where the maps live; `to` moves them.
        momentum: in [0, 1), how much of the old map stays in a cell that `refresh` has seen.
        check: whether ids are read to check their values; None does so on the CPU only, since reading them would make
            the host wait for a GPU.

    Raises:
        InputError: an argument out of its range.

    Example:
        >>> import torch
        >>> bank = SaliencyBank(1000, grid=2)
        >>> bank.update(torch.tensor([7]), torch.tensor([[[0.0, 1.0], [2.0, 4.0]]]))
        >>> bank.read(torch.tensor([7, 8])).mul(255).round().tolist()
        [[[0.0, 64.0], [128.0, 255.0]], [[255.0, 255.0], [255.0, 255.0]]]
        >>> bank.nbytes
        4000
    """

    def __init__(
        self,
        num_examples: int,
        grid: int | tuple[int, int] = 8,
        *,
        device: torch.device | str | None = None,
        momentum: float = 0.5,
        check: bool | None = None,
    ) -> None:
        sides = (grid, grid) if isinstance(grid, int) else tuple(grid)
        for name, value in (("num_examples", num_examples), *(("grid", side) for side in sides)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
        if len(sides) != 2:
            raise InputError(f"`grid` must be a number of cells per side or (h, w), got {grid!r}.")
        if isinstance(momentum, bool) or not 0.0 <= momentum < 1.0:
            raise InputError(f"`momentum` must be in [0, 1), got {momentum!r}. With 1 nothing would ever be learned.")
        self._grid = (sides[0], sides[1])
        self._momentum, self._check = float(momentum), check
        self._maps = torch.zeros(num_examples, *self._grid, dtype=torch.uint8, device=device)

    def __len__(self) -> int:
        """Return N, the number of examples."""
        return self._maps.shape[0]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w), the cells of a map."""
        return self._grid

    @property
    def device(self) -> torch.device:
        """Where the maps live."""
        return self._maps.device

    @property
    def nbytes(self) -> int:
        """What the maps take, in bytes."""
        return self._maps.numel()

    @property
    def known(self) -> float:
        """The share of the examples that have a map, in [0, 1] (reads from the device)."""
        return float(self._maps.flatten(1).amax(1).gt(0).float().mean())

    def to(self, device: torch.device | str) -> SaliencyBank:
        """Move the maps to `device` and return the bank itself."""
        self._maps = self._maps.to(device)
        return self

    def rows(self, ids: Tensor) -> Tensor:
        """Return `ids` as int64 [B] on the bank's device, after checking them.

        Args:
            ids: whole numbers [B] in [0, N), each once. On the CPU, where a loader gives them, their values are checked
                even if the bank lives on a GPU, and cost no wait.

        Raises:
            InputError: ids of a wrong form, out of range, or repeated.
        """
        if not isinstance(ids, Tensor) or ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
            given = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise InputError(
                f"`ids` must be a tensor of whole numbers [B], one example number for each image, got {given}."
            )
        if (self._check if self._check is not None else ids.device.type == "cpu") and len(ids):
            ordered = ids.sort().values
            low, high = int(ordered[0]), int(ordered[-1])
            if low < 0 or high >= len(self):
                raise InputError(
                    f"`ids` must be in [0, {len(self)}), the examples of this bank; got values from {low} to {high}. "
                    "Is `num_examples` right, and are these the numbers in the training set?"
                )
            again = ordered[1:][ordered[1:] == ordered[:-1]]
            if len(again):
                raise InputError(
                    f"`ids` name example {int(again[0])} more than once. Give each image its own number; a sampler "
                    "that repeats examples inside a batch cannot be used with a bank."
                )
        return ids.to(self._maps.device, torch.int64, non_blocking=True)

    def read(self, ids: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """Return the maps of some examples.

        Args:
            ids: whole numbers [B] in [0, N), each once.
            mirrored: bool [B], whose images are shown mirrored left to right now; None stands for none of them.

        Returns:
            float32 [B, h, w] in [0, 1], each map with a peak of 1; ones where nothing is known.

        Raises:
            InputError: ids or `mirrored` of a wrong form, unknown or repeated ids.
        """
        rows = self.rows(ids)
        maps = self._stored(rows)
        return _as_shown(maps.masked_fill(maps.amax((1, 2), keepdim=True) == 0, _FULL) / _FULL, mirrored)

    @torch.no_grad()
    def update(self, ids: Tensor, maps: Tensor, mirrored: Tensor | None = None) -> None:
        """Write the maps of some examples; one that is not finite or nowhere above 0 leaves the old map.

        Args:
            ids: whole numbers [B] in [0, N), each once.
            maps: float [B, H, W], not below 0, on any grid; averaged to the bank's cells.
            mirrored: bool [B], whose images were mirrored when their maps were made.

        Raises:
            InputError: maps of another batch, arguments of a wrong form, unknown or repeated ids.
        """
        rows = self.rows(ids)
        if maps.dim() != 3 or maps.shape[0] != len(ids) or not maps.is_floating_point():
            raise InputError(
                f"`maps` must be floating point [{len(ids)}, h, w], one for each id, got {maps.dtype} "
                f"{list(maps.shape)}. Are they those of another batch?"
            )
        pooled = cells.pool(maps.detach().to(self._maps.device).float(), self._grid)
        self._write(rows, _as_shown(pooled, mirrored), self._stored(rows))

    @torch.no_grad()
    def refresh(self, ids: Tensor, plan: MixPlan, gradient: Tensor, mirrored: Tensor | None = None) -> None:
        """Learn from the gradient of a training's loss with respect to the mixed images.

        The root mean square of the gradient over channels is credited to the images that each pixel came from, at the
        place it was taken from. Only the cells of an image that were seen are changed, each as far as it was seen; what
        is new is brought to the level that the old map has over the same cells, since a loss says nothing of the cells
        that it did not see. A row whose gradient is zero or not finite (an overflow under mixed precision) says
        nothing; the scale of the loss does not matter.

        Args:
            ids: whole numbers [B] in [0, N), each once: the examples of the batch before it was mixed.
            plan: how it was mixed.
            gradient: float [B, C, H, W], of the loss with respect to the mixed images.
            mirrored: bool [B], whose images were mirrored before they were mixed.

        Raises:
            InputError: a plan or gradient of another batch, arguments of a wrong form, unknown or repeated ids.
        """
        rows = self._rows_of(ids, plan, mirrored)
        if gradient.dim() != 4 or (gradient.shape[0], *gradient.shape[2:]) != (len(ids), *plan.size):
            raise InputError(
                f"`gradient` must be [{len(ids)}, C, {plan.size[0]}, {plan.size[1]}], as the mixed images, got "
                f"{list(gradient.shape)}."
            )
        strength = gradient.detach().float().square().mean(1).sqrt()
        # Each mixed image has a loss of its own: what it says of its sources is relative to its own mean.
        level = strength.mean((1, 2), keepdim=True)
        told = torch.isfinite(level) & (level > 0)
        strength = (strength / level).masked_fill(~told, 0.0)
        credited = self._pooled(plan, strength, mirrored)
        seen = self._pooled(plan, told.float().expand_as(strength), mirrored)
        tiny = torch.finfo(torch.float32).tiny
        value = credited / seen.clamp_min(tiny)
        stored = self._stored(rows)
        new = stored.amax((1, 2), keepdim=True) == 0
        old = stored.masked_fill(new, _FULL)
        weight = seen.clamp(max=1.0)
        total = weight.sum((1, 2), keepdim=True).clamp_min(tiny)
        # Below one step of the quantisation a region could never rise again.
        before = ((old * weight).sum((1, 2), keepdim=True) / total).clamp_min(1.0)
        now = (value * weight).sum((1, 2), keepdim=True) / total
        rate = weight * (1.0 - self._momentum * (~new).float())
        # A row that nothing was told of becomes not finite here, and `_write` leaves its old map.
        self._write(rows, torch.lerp(old, value * (before / now), rate), stored)

    def watch(self, images: Tensor, ids: Tensor, plan: MixPlan, mirrored: Tensor | None = None) -> Tensor:
        """Let the backward pass of the training `refresh` the bank.

        Args:
            images: [B, C, H, W], mixed by `plan`. They become part of the graph, but get no `.grad` for this.
            ids: as in `refresh`.
            plan: as in `refresh`.
            mirrored: as in `refresh`.

        Returns:
            `images` themselves (a copy of a leaf that requires a gradient), to be given to the model. The first
            backward pass through them refreshes the bank; if there is none, nothing happens.

        Example:
            >>> import torch, rlmix
            >>> model, bank = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)), SaliencyBank(100)
            >>> images, labels, ids = torch.rand(4, 3, 8, 8), torch.arange(4), torch.tensor([3, 14, 15, 92])
            >>> batch = rlmix.mix(
            ...     images, labels, "rmix", num_classes=4, generator=torch.Generator().manual_seed(0),
            ...     saliency=bank.read(ids),
            ... )
            >>> mixed = bank.watch(batch.images, ids, batch.plan)
            >>> torch.nn.functional.cross_entropy(model(mixed), batch.targets).backward()
            >>> round(bank.known, 3)
            0.04
        """
        rows = self._rows_of(ids, plan, mirrored)

        def learn(gradient: Tensor) -> None:
            self.refresh(rows, plan, gradient, mirrored)

        # A caller may mix under no_grad, as a part of the data pipeline.
        with torch.enable_grad():
            if images.requires_grad and images.is_leaf:
                images = images.clone()
            anchor = torch.empty(0, device=images.device, requires_grad=True)
            return cast(Tensor, _Watched.apply(images, anchor, learn))

    def state_dict(self) -> dict[str, Any]:
        """Return a tree of tensors and numbers, for a checkpoint of the training."""
        return {"identity": self._identity(), "maps": self._maps.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the maps of `state_dict`, on the bank's own device.

        Raises:
            CheckpointError: the state is of another number of examples, grid or momentum, or damaged.
        """
        try:
            saved, mine, maps = state["identity"], self._identity(), state["maps"]
            different = [name for name in mine if saved[name] != mine[name]]
            if different:
                name = different[0]
                raise CheckpointError(
                    f"the maps belong to another bank: its `{name}` is {saved[name]!r}, here {mine[name]!r}."
                )
            if maps.dtype != torch.uint8 or maps.shape != self._maps.shape:
                raise CheckpointError(
                    f"the bank's maps must be uint8 {list(self._maps.shape)}, got {maps.dtype} {list(maps.shape)}."
                )
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the bank's state is damaged ({error!r}).") from error
        self._maps.copy_(maps)

    def _rows_of(self, ids: Tensor, plan: MixPlan, mirrored: Tensor | None) -> Tensor:
        """Return the rows of the batch that `plan` mixes, after checking that all are of one batch."""
        rows = self.rows(ids)
        if plan.batch_size != len(ids):
            raise InputError(
                f"`plan` mixes {plan.batch_size} images, there are {len(ids)} ids. Give the plan of the same batch."
            )
        check_mirrored(mirrored, len(ids))
        return rows

    def _identity(self) -> dict[str, Any]:
        """Return what a state must agree on."""
        return {"num_examples": len(self), "h": self._grid[0], "w": self._grid[1], "momentum": self._momentum}

    def _stored(self, rows: Tensor) -> Tensor:
        """Return the stored maps as float32 [B, h, w], values 0 to 255."""
        return self._maps.index_select(0, rows).float()

    def _pooled(self, plan: MixPlan, maps: Tensor, mirrored: Tensor | None) -> Tensor:
        """Return maps [B, H, W] of the mixed images as those of their sources, on the bank's grid and device."""
        return _as_shown(cells.pool(plan.credit(maps), self._grid).to(self._maps.device), mirrored)

    def _write(self, rows: Tensor, maps: Tensor, stored: Tensor) -> None:
        """Scale each map to its peak and write it, or what was `stored` where it is of no use."""
        maps = maps.clamp_min(0.0)
        peak = maps.amax((1, 2), keepdim=True)
        useless = ~(torch.isfinite(maps.sum((1, 2), keepdim=True)) & (peak > 0))
        scaled = torch.where(useless, stored, (maps / peak * _FULL).round())
        self._maps.index_copy_(0, rows, scaled.to(torch.uint8))


@final
class _Watched(torch.autograd.Function):
    """Images that show their gradient to a function on its way past.

    A leaf with a hook would do the same, but keep a gradient of the images' size, and refuse to be changed in place.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, anchor: Tensor, learn: Callable[[Tensor], None]) -> Tensor:
        """Return `images`; the anchor is what needs a gradient."""
        ctx.mark_dirty(images)
        ctx.learn = learn
        return images

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Show the gradient, once: a graph that somebody keeps must not keep the plan."""
        learn, ctx.learn = ctx.learn, None
        if learn is not None:
            learn(gradients[0])
        return gradients[0], None, None


def check_mirrored(mirrored: Tensor | None, batch: int) -> None:
    """Refuse what does not say of each of `batch` images whether it is mirrored."""
    if mirrored is not None and (mirrored.shape != (batch,) or mirrored.dtype != torch.bool):
        raise InputError(
            f"`mirrored` must be bool [{batch}], one for each image, got {mirrored.dtype} {list(mirrored.shape)}."
        )


def _as_shown(maps: Tensor, mirrored: Tensor | None) -> Tensor:
    """Mirror the maps [B, h, w] of the images that are `mirrored` (bool [B] or None)."""
    check_mirrored(mirrored, len(maps))
    if mirrored is None:
        return maps
    return torch.where(mirrored.to(maps.device, non_blocking=True).view(-1, 1, 1), maps.flip(2), maps)
