"""MixPlan: what every method draws, the label rule, and how plans of different methods are joined."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from rlmix.errors import PlanError
from rlmix.ops import grid
from rlmix.ops.blend import blend, coordinates, partner_weights


@final
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MixPlan:
    """How each image of a batch is mixed.

    Output pixel (y, x) of image b is `W_0 * own + sum_j W_j * partner_j` with
    `W_j = rows[b, y] * cols[b, x] * shares[b, j, cell(y, x)]`, `W_0 = 1 - sum_j W_j` and `cell` as in `rlmix.ops.grid`.
    J, the number of partners, may be 0. The fields with h and w have a grid of their own each, which need not divide
    the image.

    Args:
        size: (H, W), what it was drawn for; `apply` refuses another.
        partners: int64 [B, J], or [B, J, h, w] with a partner for each cell.
        shares: [B, J, h, w] with values in [0, 1]; float32, or bool or float16 for masks of full resolution. A leading
            1 stands for one mask for the whole batch.
        label_shares: float32, the shape of `partners`: the label weights of the partners (of each cell's partner).
        window: (rows float32 [B, H], cols float32 [B, W]) or None for ones.
        moves: int32 [B, J+1, h, w] or None: the cell (row-major) of the source that is shown in each cell; slot 0 is
            the image itself; -1 shows zeros.
        place: float32 [B, 4] or None: (scale_y, scale_x, shift_y, shift_x) of the first partner, whose source row is
            floor((y - shift_y) * scale_y), held inside the image; columns likewise.

    Raises:
        PlanError: ranks, shapes or dtypes that contradict each other.
    """

    size: tuple[int, int]
    partners: Tensor
    shares: Tensor
    label_shares: Tensor
    window: tuple[Tensor, Tensor] | None = None
    moves: Tensor | None = None
    place: Tensor | None = None

    def __post_init__(self) -> None:
        """Check ranks, shapes and dtypes."""
        if self.partners.dim() not in (2, 4) or self.partners.dtype != torch.int64:
            raise PlanError(
                "`partners` must be int64 [B, J] or [B, J, h, w], got "
                f"{self.partners.dtype} {list(self.partners.shape)}."
            )
        batch, count = self.partners.shape[:2]
        if self.label_shares.shape != self.partners.shape or self.label_shares.dtype != torch.float32:
            raise PlanError(
                f"`label_shares` must be float32 of the shape of `partners` {list(self.partners.shape)}, got "
                f"{self.label_shares.dtype} {list(self.label_shares.shape)}."
            )
        if self.shares.dim() != 4 or self.shares.shape[0] not in (1, batch) or self.shares.shape[1] != count:
            raise PlanError(f"`shares` must be [{batch} or 1, {count}, h, w], got {list(self.shares.shape)}.")
        if self.window is not None:
            given, expected = [list(side.shape) for side in self.window], [[batch, side] for side in self.size]
            if given != expected:
                raise PlanError(f"`window` must be rows and columns of the shapes {expected}, got {given}.")
        if self.moves is not None and (self.moves.dim() != 4 or self.moves.shape[:2] != (batch, count + 1)):
            raise PlanError(f"`moves` must be [{batch}, {count + 1}, h, w], got {list(self.moves.shape)}.")
        if self.place is not None and self.place.shape != (batch, 4):
            raise PlanError(f"`place` must be [{batch}, 4], got {list(self.place.shape)}.")

    @property
    def batch_size(self) -> int:
        """B, the number of images."""
        return self.partners.shape[0]

    @property
    def sources(self) -> Tensor:
        """Where each slot's pixels come from, own image first: int64 [B, J+1], or [B, J+1, h, w]."""
        own = self._own.view(-1, 1, *[1] * (self.partners.dim() - 2))
        return torch.cat([own.expand(-1, 1, *self.partners.shape[2:]), self.partners], 1)

    @property
    def weights(self) -> Tensor:
        """The slots' pixel weights, own image first: float32 [B, J+1, h, w] (h, w the image's size with a window)."""
        partners = partner_weights(self.shares, self.window, self.size).expand(self.batch_size, -1, -1, -1)
        return torch.cat([1.0 - partners.sum(1, keepdim=True), partners], 1)

    @property
    def label_weights(self) -> Tensor:
        """The label weights of `sources`, own image first: float32 [B, J+1], or [B, 1 + J*h*w] by cell."""
        shares = self.label_shares.flatten(1)
        return torch.cat([1.0 - shares.sum(1, keepdim=True), shares], 1)

    @property
    def lam(self) -> Tensor:
        """The weight of each image's own label: float32 [B] in [0, 1], 1 = unmixed; a pair with itself counts."""
        partners, shares = self.partners.flatten(1), self.label_shares.flatten(1)
        own = partners == self._own.unsqueeze(1)
        return 1.0 - shares.sum(1) + (shares * own).sum(1)

    @property
    def _own(self) -> Tensor:
        return torch.arange(self.batch_size, device=self.partners.device)

    def pairs(self, labels: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return the mixed target as weighted labels, for any loss that takes class numbers.

        Args:
            labels: int64 [B].

        Returns:
            `(labels_k int64 [B], weight_k float32 [B])` for each slot, own image first; the loss of the batch is the
            sum over k of `weight_k * loss(logits, labels_k)`. Weights of a row sum to 1.
        """
        classes = torch.cat([labels.unsqueeze(1), labels[self.partners.flatten(1)]], 1)
        return tuple(zip(classes.unbind(1), self.label_weights.unbind(1), strict=True))

    def soft_targets(self, labels: Tensor, num_classes: int, label_smoothing: float = 0.0) -> Tensor:
        """Return the mixed label distribution of each image.

        Args:
            labels: int64 [B], values in [0, num_classes).
            num_classes: C.
            label_smoothing: in [0, 1]; this much of each row is spread evenly over the classes.

        Returns:
            float32 [B, C]; rows sum to 1, exactly so with one partner and no smoothing.
        """
        classes = torch.cat([labels.unsqueeze(1), labels[self.partners.flatten(1)]], 1)
        targets = torch.zeros(self.batch_size, num_classes, device=labels.device)
        targets = targets.scatter_add_(1, classes, self.label_weights.to(labels.device))
        if label_smoothing == 0.0:
            return targets
        return targets * (1.0 - label_smoothing) + label_smoothing / num_classes

    def credit(self, maps: Tensor) -> Tensor:
        """Return maps of the mixed images, given back to the images that each pixel came from.

        The adjoint of `apply` on single-channel images: what a pixel of the mixed image is worth goes to its sources
        by their weights, at the place where they were taken from.

        Args:
            maps: float [B, h, w] on a grid of their own.

        Returns:
            float32 [B, h, w], on the same grid.
        """
        pixels = grid.expand(maps.float().unsqueeze(1), self.size)
        with torch.enable_grad():
            images = torch.zeros(self.batch_size, 1, *self.size, device=maps.device, requires_grad=True)
            mixed = blend(images, self.partners, self.shares, window=self.window, moves=self.moves, place=self.place)
            (credited,) = torch.autograd.grad(mixed, images, pixels)
        return grid.pool(credited.squeeze(1), (maps.shape[1], maps.shape[2]))

    def where(self, applied: Tensor) -> MixPlan:
        """Return the plan in which the rows that are not `applied` (bool [B]) stay unmixed."""
        kept = applied.view(-1, 1, 1, 1)
        label_kept = applied.view(-1, *[1] * (self.partners.dim() - 1))
        moves = self.moves
        if moves is not None:
            still = torch.arange(math.prod(moves.shape[2:]), dtype=torch.int32, device=moves.device)
            moves = torch.where(kept, moves, still.view(1, 1, *moves.shape[2:]))
        shares = self.shares.expand(self.batch_size, -1, -1, -1)
        return replace(self, shares=shares * kept, label_shares=self.label_shares * label_kept, moves=moves)

    @staticmethod
    def merge(parts: Sequence[tuple[Tensor, MixPlan]], batch_size: int) -> MixPlan:
        """Join the plans of different rows, drawn by different methods, into the plan of one batch.

        Args:
            parts: (rows int64 [b], plan for these rows) each; together the rows are 0..B-1, each once. The plans'
                partners count within their own rows.
            batch_size: B.

        Raises:
            PlanError: no part, parts of different sizes, or rows that do not add up to B.
        """
        counts = [rows.shape[0] for rows, _ in parts]
        if not parts or sum(counts) != batch_size:
            raise PlanError(f"`parts` must hold {batch_size} rows together, got {counts}.")
        if any(rows.shape[0] != plan.batch_size for rows, plan in parts):
            raise PlanError("`parts` must pair each plan with as many rows as it has.")
        aligned = _aligned([(rows, replace(plan, partners=rows[plan.partners])) for rows, plan in parts])
        order = torch.cat([rows for rows, _ in parts])

        def join(fields: list[Tensor]) -> Tensor:
            whole = torch.cat(fields)
            return torch.empty_like(whole).index_copy_(0, order, whole)

        return _map_fields(aligned, join)

    @staticmethod
    def select(plans: Sequence[MixPlan], choice: Tensor) -> MixPlan:
        """Return the plan whose row b is row b of `plans[choice[b]]`; all plans are for the same batch.

        Args:
            plans: plans of B rows each.
            choice: int64 [B], values in [0, len(plans)).
        """
        own = torch.arange(choice.shape[0], device=choice.device)
        aligned = _aligned([(own, plan) for plan in plans])
        return _map_fields(aligned, lambda fields: torch.stack(fields)[choice, own])

    def equal(self, other: MixPlan) -> bool:
        """Say whether two plans have the same fields bit for bit (reads from the device)."""
        mine, theirs = self._tensors(), other._tensors()
        return (
            self.size == other.size
            and len(mine) == len(theirs)
            and all(
                (one is None and two is None)
                or (one is not None and two is not None and one.dtype == two.dtype and torch.equal(one, two))
                for one, two in zip(mine, theirs, strict=True)
            )
        )

    def to(self, device: torch.device | str) -> MixPlan:
        """Return the plan with its tensors on `device`."""
        return _map_fields([self], lambda fields: fields[0].to(device, non_blocking=True))

    def _tensors(self) -> tuple[Tensor | None, ...]:
        rows, columns = self.window or (None, None)
        return self.partners, self.shares, self.label_shares, rows, columns, self.moves, self.place


def _map_fields(plans: Sequence[MixPlan], combine: Callable[[list[Tensor]], Tensor]) -> MixPlan:
    """Return the plan whose every field is `combine` of the plans' fields; all plans have the same ones."""
    first = plans[0]
    window = None
    if first.window is not None:
        sides = [plan.window for plan in plans if plan.window is not None]
        window = (combine([rows for rows, _ in sides]), combine([columns for _, columns in sides]))
    return MixPlan(
        size=first.size,
        partners=combine([plan.partners for plan in plans]),
        shares=combine([plan.shares for plan in plans]),
        label_shares=combine([plan.label_shares for plan in plans]),
        window=window,
        moves=None if first.moves is None else combine([plan.moves for plan in plans if plan.moves is not None]),
        place=None if first.place is None else combine([plan.place for plan in plans if plan.place is not None]),
    )


def _aligned(parts: Sequence[tuple[Tensor, MixPlan]]) -> list[MixPlan]:
    """Bring plans to one layout: the same number of partners, grids and optional fields, with the same meaning.

    Args:
        parts: rows in the whole batch (the partner in a slot that a plan does not have), and the plan, whose partners
            count in the whole batch.
    """
    plans = [plan for _, plan in parts]
    size = plans[0].size
    if any(plan.size != size for plan in plans):
        raise PlanError(f"plans of different image sizes cannot be joined: {[plan.size for plan in plans]}.")
    count = max(plan.partners.shape[1] for plan in plans)
    share_grid = _common_grid([(plan.shares.shape[2], plan.shares.shape[3]) for plan in plans], size)
    by_cell = [(plan.partners.shape[2], plan.partners.shape[3]) for plan in plans if plan.partners.dim() == 4]
    label_grid = _common_grid(by_cell, size) if by_cell else None
    windowed = any(plan.window is not None for plan in plans)
    moved = any(plan.moves is not None for plan in plans)
    placed = any(plan.place is not None for plan in plans)
    shares_dtype = plans[0].shares.dtype
    if any(plan.shares.dtype != shares_dtype for plan in plans):
        shares_dtype = torch.float32
    result = []
    for rows, plan in parts:
        device = plan.partners.device
        missing = count - plan.partners.shape[1]
        partners, label_shares = _partners_on(plan, label_grid)
        own = rows.view(-1, 1, *[1] * (partners.dim() - 2)).expand(-1, missing, *partners.shape[2:])
        shares = grid.expand(plan.shares, share_grid).to(shares_dtype).expand(plan.batch_size, -1, -1, -1)
        window = plan.window
        if windowed and window is None:
            window = (
                torch.ones(plan.batch_size, size[0], device=device),
                torch.ones(plan.batch_size, size[1], device=device),
            )
        place = plan.place
        if placed and place is None:
            place = torch.tensor([1.0, 1.0, 0.0, 0.0], device=device).expand(plan.batch_size, 4)
        result.append(
            MixPlan(
                size=size,
                partners=torch.cat([partners, own], 1),
                shares=torch.cat([shares, shares.new_zeros(plan.batch_size, missing, *share_grid)], 1),
                label_shares=torch.cat([label_shares, torch.zeros_like(own, dtype=torch.float32)], 1),
                window=window,
                moves=_moves_by_pixel(plan, count) if moved else None,
                place=place,
            )
        )
    return result


def _common_grid(shapes: Sequence[tuple[int, int]], size: tuple[int, int]) -> tuple[int, int]:
    """Return the coarsest grid in which every given grid nests; the image's own where that is finer."""
    rows, columns = (math.lcm(*(shape[side] for shape in shapes)) for side in (0, 1))
    return (rows if rows <= size[0] else size[0], columns if columns <= size[1] else size[1])


def _partners_on(plan: MixPlan, shape: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Return partners and label shares by cell of a grid (all weight spread by area), or as they are for None."""
    if shape is None:
        return plan.partners, plan.label_shares
    areas = grid.areas(plan.size, shape, plan.partners.device)
    if plan.partners.dim() == 2:
        partners = plan.partners.view(*plan.partners.shape, 1, 1).expand(-1, -1, *shape)
        return partners, plan.label_shares.view(*plan.label_shares.shape, 1, 1) * areas
    old = (plan.partners.shape[2], plan.partners.shape[3])
    if old == shape:
        return plan.partners, plan.label_shares
    old_areas = grid.areas(plan.size, old, plan.partners.device)
    density = grid.expand(plan.label_shares / old_areas, shape)
    return grid.expand(plan.partners, shape), density * areas


def _moves_by_pixel(plan: MixPlan, count: int) -> Tensor:
    """Return `moves` for `count` partners on the image's own grid, where every other grid nests."""
    height, width = plan.size
    still = torch.arange(height * width, dtype=torch.int32, device=plan.partners.device).view(1, 1, height, width)
    still = still.expand(plan.batch_size, 1, height, width)
    slots = []
    for slot in range(count + 1):
        if plan.moves is None or slot >= plan.moves.shape[1]:
            slots.append(still)
            continue
        rows, columns, seen = coordinates(plan.size, plan.moves[:, slot], None, plan.partners.device)
        slots.append((rows * width + columns).masked_fill(seen == 0, -1).to(torch.int32).unsqueeze(1))
    return torch.cat(slots, 1)
