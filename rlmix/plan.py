"""MixPlan: what every method draws, the label rule, and how plans of different methods are joined."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlmix._files import load_tree, save_tree
from rlmix.errors import InputError, PlanError
from rlmix.ops import compiled, grid
from rlmix.ops.blend import blend, coordinates, partner_weights

_FORMAT = "rlmix.plan/1"


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
            rows, columns = self.window
            if rows.shape != (batch, self.size[0]) or columns.shape != (batch, self.size[1]):
                given, expected = [list(rows.shape), list(columns.shape)], [[batch, side] for side in self.size]
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
        own = self.partners.flatten(1) == self._own.unsqueeze(1)
        return 1.0 - self.label_shares.flatten(1).masked_fill(own, 0.0).sum(1)

    @property
    def _own(self) -> Tensor:
        return torch.arange(self.batch_size, device=self.partners.device)

    def pairs(self, labels: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return the mixed target as weighted labels, for any loss that takes class numbers.

        Args:
            labels: whole numbers [B].

        Returns:
            `(labels_k int64 [B], weight_k float32 [B])` for each slot, own image first; the loss of the batch is the
            sum over k of `weight_k * loss(logits, labels_k)` (`rlmix.mixed_cross_entropy`, `rlmix.mixed_loss`). Weights
            of a row sum to 1.

        Raises:
            InputError: labels of another shape, or that are no class numbers.
        """
        return tuple(zip(self._classes(labels).unbind(1), self.label_weights.unbind(1), strict=True))

    def soft_targets(self, labels: Tensor, num_classes: int, label_smoothing: float = 0.0) -> Tensor:
        """Return the mixed label distribution of each image.

        Args:
            labels: int64 [B], values in [0, num_classes).
            num_classes: C.
            label_smoothing: in [0, 1]; this much of each row is spread evenly over the classes.

        Returns:
            float32 [B, C]; rows sum to 1, exactly so with one partner and no smoothing.

        Raises:
            InputError: labels of another shape, or that are no class numbers.
        """
        targets = self._soft_targets(labels, num_classes)
        if label_smoothing == 0.0:
            return targets
        return targets * (1.0 - label_smoothing) + label_smoothing / num_classes

    def _soft_targets(self, labels: Tensor, num_classes: int) -> Tensor:
        self._check_labels(labels)
        if self.partners.shape[1:] == (1,) and compiled.serves(labels, self.partners, self.label_shares):
            code = compiled.code("targets_numba")
            mixed: Tensor = code.soft_targets(labels.long(), self.partners, self.label_shares, num_classes)
            return mixed
        targets = torch.zeros(self.batch_size, num_classes, device=labels.device)
        return targets.scatter_add_(1, self._classes(labels), self.label_weights.to(labels.device))

    def mix_targets(self, targets: Tensor) -> Tensor:
        """Return dense targets mixed as the labels are: for soft labels and for several labels an image.

        Args:
            targets: floating point [B, C], one row for each image. Rows need not sum to 1.

        Returns:
            float32 [B, C]; an unmixed row has the values of its input.

        Raises:
            InputError: targets of another shape, or class numbers.
        """
        if targets.dim() != 2 or targets.shape[0] != self.batch_size or not targets.is_floating_point():
            raise InputError(
                f"`targets` must be floating point [{self.batch_size}, C], got {targets.dtype} {list(targets.shape)}. "
                "For class numbers use plan.soft_targets(labels, num_classes), for multi-hot rows targets.float()."
            )
        # Multiplied and summed by hand: a matrix product would round the labels where TF32 or autocast is on.
        mixed = targets.float() * self.label_weights[:, :1]
        for sources, shares in zip(
            self.partners.flatten(1).unbind(1), self.label_shares.flatten(1).unbind(1), strict=True
        ):
            mixed = mixed + targets[sources].float() * shares.unsqueeze(1)
        return mixed

    def apply_mask(self, segmentation: Tensor, fill: int = 0) -> Tensor:
        """Return the class of each pixel of the mixed images: that of the source which is seen most there.

        Classes are chosen, never blended; a class map follows its image to another place (`moves`, `place`). Where
        sources are seen equally, the own image counts before its partners, and these in their order.

        Args:
            segmentation: whole numbers or bool [B, H, W] or [B, 1, H, W], the class of each pixel.
            fill: the class where the plan shows zeros instead of a source.

        Returns:
            The shape and dtype of `segmentation`.

        Raises:
            InputError: class maps of another shape, or floating point.
        """
        maps = segmentation.squeeze(1) if segmentation.dim() == 4 and segmentation.shape[1] == 1 else segmentation
        if maps.shape != (self.batch_size, *self.size) or maps.is_floating_point() or maps.is_complex():
            batch, (height, width) = self.batch_size, self.size
            raise InputError(
                f"`segmentation` must be whole numbers [{batch}, {height}, {width}] or [{batch}, 1, {height}, {width}],"
                f" got {segmentation.dtype} {list(segmentation.shape)}. Images and soft maps [B, C, H, W] are mixed by "
                "rlmix.apply(images, plan)."
            )
        weights, chosen, most = self.weights, maps, torch.zeros((), device=maps.device)
        for slot in range(weights.shape[1]):
            shown, seen = self._shown(maps.unsqueeze(3), slot)
            shown = shown.squeeze(3).masked_fill(seen == 0, fill)
            weight = grid.expand(weights[:, slot], self.size)
            chosen = shown if slot == 0 else torch.where(weight > most, shown, chosen)
            most = torch.maximum(most, weight)
        return chosen.reshape(segmentation.shape)

    def picture(self, images: Tensor, maps: Tensor | None = None, *, limit: int = 8, gap: int = 2) -> Tensor:
        """Return a contact sheet of the plan, one row for each image.

        From left to right: the own image, what each partner shows, the own image's weight in each pixel (white is 1),
        the mixed image, and the saliency map where `maps` are given.

        Args:
            images: [B, C, H, W], floating point, C = 1 or 3. Values outside [0, 1] (normalised images) are brought
                there by the extremes of the batch.
            maps: float [B, h, w], such as saliency, each shown from 0 to its maximum; None leaves them out.
            limit: rows at most.
            gap: white pixels between panels.

        Returns:
            float32 [3, rows, columns] in [0, 1], on the images' device; `torchvision.utils.save_image` writes it.

        Raises:
            InputError: images or maps of another shape.
        """
        if images.dim() != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise InputError(
                f"`images` must be floating point [B, 1 or 3, H, W], got {images.dtype} {list(images.shape)}."
            )
        if (images.shape[0], *images.shape[2:]) != (self.batch_size, *self.size):
            raise InputError(
                f"the plan was drawn for {self.batch_size} images of {self.size[0]}x{self.size[1]}, got "
                f"{images.shape[0]} of {images.shape[2]}x{images.shape[3]}."
            )
        if maps is not None and (maps.dim() != 3 or maps.shape[0] != self.batch_size):
            raise InputError(f"`maps` must be [{self.batch_size}, h, w], got {list(maps.shape)}.")
        pixels = images.detach().float()
        low, high = pixels.amin().clamp_max(0.0), pixels.amax().clamp_min(1.0)
        pixels = (pixels - low) / (high - low)
        panels = [self._shown(pixels.permute(0, 2, 3, 1), slot) for slot in range(self.partners.shape[1] + 1)]
        columns = [(shown * seen.unsqueeze(-1)).permute(0, 3, 1, 2) for shown, seen in panels]
        columns.append(grid.expand(self.weights[:, :1], self.size))
        columns.append(
            blend(pixels, self.partners, self.shares, window=self.window, moves=self.moves, place=self.place)
        )
        if maps is not None:
            grey = grid.pool(maps.detach().float(), self.size).unsqueeze(1)
            columns.append(grey / grey.amax((2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))
        framed = [pad(column[:limit].expand(-1, 3, -1, -1), (gap, 0, gap, 0), value=1.0) for column in columns]
        sheet = torch.cat(framed, 3).permute(1, 0, 2, 3).flatten(1, 2)
        return pad(sheet, (0, gap, 0, gap), value=1.0).clamp(0.0, 1.0)

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

    def _classes(self, labels: Tensor) -> Tensor:
        """Return the labels of all slots, own image first: int64 [B, K]."""
        self._check_labels(labels)
        labels = labels.long()
        return torch.cat([labels.unsqueeze(1), labels[self.partners.flatten(1)]], 1)

    def _check_labels(self, labels: Tensor) -> None:
        """Raise InputError for what are no class numbers."""
        if labels.shape != (self.batch_size,) or labels.is_floating_point():
            raise InputError(
                f"`labels` must be whole numbers [{self.batch_size}], got {labels.dtype} {list(labels.shape)}. Soft "
                "labels and several labels an image are mixed by plan.mix_targets(labels.float())."
            )

    def _shown(self, pixels: Tensor, slot: int) -> tuple[Tensor, Tensor]:
        """Return what a slot shows of `pixels` [B, H, W, C], of that shape, and 0 where it shows zeros [.., H, W]."""
        rows, columns, seen = coordinates(
            self.size,
            None if self.moves is None else self.moves[:, slot],
            self.place if slot == 1 else None,
            pixels.device,
        )
        source = self._own.view(-1, 1, 1)
        if slot and self.partners.dim() == 4:
            source = grid.expand(self.partners[:, slot - 1], self.size)
        elif slot:
            source = self.partners[:, slot - 1].view(-1, 1, 1)
        return pixels[source, rows, columns], seen

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
        layout = _Layout.of([plan for _, plan in parts])
        (rows, plan), *others = [(rows, replace(plan, partners=rows[plan.partners])) for rows, plan in parts]
        joined = _map_fields([layout.fit(plan, rows)], partial(_spread_rows, rows, batch_size))
        for rows, plan in others:
            # One part at a time is brought to the common layout, so that only the result has the size of all.
            joined = _map_fields([joined, layout.fit(plan, rows)], partial(_put_rows, rows))
        return joined

    @staticmethod
    def select(plans: Sequence[MixPlan], choice: Tensor) -> MixPlan:
        """Return the plan whose row b is row b of `plans[choice[b]]`; all plans are for the same batch.

        Args:
            plans: plans of B rows each.
            choice: int64 [B], values in [0, len(plans)).
        """
        layout = _Layout.of(plans)
        own = torch.arange(choice.shape[0], device=choice.device)
        chosen = layout.fit(plans[0], own)
        for number, plan in enumerate(plans[1:], 1):
            # One plan at a time, so that many members need no more memory than two.
            chosen = _map_fields([chosen, layout.fit(plan, own)], partial(_take_rows, choice == number))
        return chosen

    def state(self) -> dict[str, Any]:
        """Return the plan as a tree of tensors, numbers and strings, for a checkpoint or a log to replay from."""
        tree: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"format": _FORMAT, **tree}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> MixPlan:
        """Return the plan that `state` was taken from.

        Raises:
            PlanError: the state is of another kind, or what it holds is no plan: `apply` would read outside the batch.
        """
        given = dict(state)
        if given.pop("format", None) != _FORMAT:
            raise PlanError(f"this is not the state of a plan: its `format` is not {_FORMAT!r}.")
        names = {field.name for field in fields(cls)}
        if set(given) != names:
            raise PlanError(f"the plan's state is damaged: it holds {sorted(given)}, expected {sorted(names)}.")
        try:
            plan = cls(**{**given, "size": tuple(given["size"])})
            problem = plan._problem()
        except (AttributeError, TypeError, IndexError, RuntimeError) as error:
            raise PlanError(f"the plan's state is damaged ({error}).") from error
        if problem:
            raise PlanError(f"the plan's state is damaged: {problem}.")
        return plan

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to one safetensors file, atomically (needs safetensors).

        Raises:
            OutputError: the folder cannot be written.
        """
        save_tree(path, self.state())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MixPlan:
        """Return the plan that `save` wrote, bit for bit, on the CPU; no code of the file is run.

        Raises:
            CheckpointError: the file is missing, damaged or no file of rlmix.
            PlanError: it holds something else than a plan.
        """
        tree = load_tree(path)
        try:
            return cls.from_state(tree if isinstance(tree, dict) else {})
        except PlanError as error:
            raise PlanError(f"`{os.fspath(path)}`: {error}") from error

    def _problem(self) -> str:
        """Return what values no method would draw, or "" (reads from the device)."""
        share_values = [("shares", self.shares), ("label_shares", self.label_shares)]
        share_values += [] if self.window is None else [("window", side) for side in self.window]
        for name, values in share_values:
            if not bool(((values >= 0) & (values <= 1)).all()):
                return f"`{name}` has values outside [0, 1]"
        if not bool(((self.partners >= 0) & (self.partners < self.batch_size)).all()):
            return f"`partners` has values outside [0, {self.batch_size})"
        if self.moves is not None:
            cells = self.moves.shape[2] * self.moves.shape[3]
            if not bool(((self.moves >= -1) & (self.moves < cells)).all()):
                return f"`moves` has values outside [-1, {cells})"
        if self.place is not None and not bool(torch.isfinite(self.place).all()):
            return "`place` has values that are not finite"
        return ""

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


def _spread_rows(rows: Tensor, batch_size: int, fields: list[Tensor]) -> Tensor:
    """Return a field of `batch_size` rows, those of the given field at `rows` and the others not written yet."""
    (part,) = fields
    return part.new_empty(batch_size, *part.shape[1:]).index_copy_(0, rows, part)


def _put_rows(rows: Tensor, fields: list[Tensor]) -> Tensor:
    """Write the second field into the first, at `rows`."""
    whole, part = fields
    return whole.index_copy_(0, rows, part)


def _take_rows(taken: Tensor, fields: list[Tensor]) -> Tensor:
    """Return the first field with the rows that are `taken` from the second."""
    first, second = fields
    return torch.where(taken.view(-1, *[1] * (first.dim() - 1)), second, first)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """The fields, grids and number of partners to which plans are brought so that their rows can stand together.

    Args:
        size: (H, W).
        count: J.
        shares: the grid of `shares`.
        dtype: of `shares`.
        labels: the grid of partners by cell, or None where no plan has them.
        moves: the grid of `moves`, or None where no plan has them.
        windowed: whether there is a window.
        placed: whether there is a place.
    """

    size: tuple[int, int]
    count: int
    shares: tuple[int, int]
    dtype: torch.dtype
    labels: tuple[int, int] | None
    moves: tuple[int, int] | None
    windowed: bool
    placed: bool

    @classmethod
    def of(cls, plans: Sequence[MixPlan]) -> _Layout:
        """Return the smallest layout in which every one of the plans can be written."""
        size = plans[0].size
        if any(plan.size != size for plan in plans):
            raise PlanError(f"plans of different image sizes cannot be joined: {[plan.size for plan in plans]}.")
        dtypes = {plan.shares.dtype for plan in plans}
        by_cell = {_grid(plan.partners) for plan in plans if plan.partners.dim() == 4}
        moved = {_grid(plan.moves) for plan in plans if plan.moves is not None}
        moves = _common_grid(moved, size) if moved else None
        if moves is not None and len(moved) > 1 and (size[0] % moves[0] or size[1] % moves[1]):
            # Cells of unequal sizes cannot be cut into parts that move as the whole cell does.
            moves = size
        return cls(
            size=size,
            count=max(plan.partners.shape[1] for plan in plans),
            shares=_common_grid({_grid(plan.shares) for plan in plans}, size),
            dtype=dtypes.pop() if len(dtypes) == 1 else torch.float32,
            labels=_common_grid(by_cell, size) if by_cell else None,
            moves=moves,
            windowed=any(plan.window is not None for plan in plans),
            placed=any(plan.place is not None for plan in plans),
        )

    def fit(self, plan: MixPlan, rows: Tensor) -> MixPlan:
        """Return a plan of the same meaning in this layout.

        Args:
            plan: its partners count in the whole batch.
            rows: int64 [b], the plan's rows in the whole batch: the partner in a slot that the plan does not have.
        """
        device, batch = plan.partners.device, plan.batch_size
        missing = self.count - plan.partners.shape[1]
        partners, label_shares = _partners_on(plan, self.labels)
        shares = grid.expand(plan.shares, self.shares).to(self.dtype).expand(batch, -1, -1, -1)
        if missing:
            own = rows.view(-1, 1, *[1] * (partners.dim() - 2)).expand(-1, missing, *partners.shape[2:])
            partners = torch.cat([partners, own], 1)
            shares = torch.cat([shares, shares.new_zeros(batch, missing, *self.shares)], 1)
            label_shares = torch.cat([label_shares, torch.zeros_like(own, dtype=torch.float32)], 1)
        window, place = plan.window, plan.place
        if self.windowed and window is None:
            height, width = self.size
            window = (torch.ones(batch, height, device=device), torch.ones(batch, width, device=device))
        if self.placed and place is None:
            # Scale 1 and shift 0, down and across.
            place = (torch.arange(4, device=device) < 2).float().expand(batch, 4)
        return MixPlan(
            size=self.size,
            partners=partners,
            shares=shares,
            label_shares=label_shares,
            window=window,
            moves=None if self.moves is None else _moves_on(plan, self.count, self.moves),
            place=place,
        )


def _grid(field: Tensor) -> tuple[int, int]:
    """Return (h, w) of a field [.., h, w]."""
    return field.shape[-2], field.shape[-1]


def _common_grid(shapes: Iterable[tuple[int, int]], size: tuple[int, int]) -> tuple[int, int]:
    """Return the coarsest grid in which every given grid nests; the image's own where that is finer."""
    rows, columns = (math.lcm(*side) for side in zip(*shapes, strict=True))
    return (rows if rows <= size[0] else size[0], columns if columns <= size[1] else size[1])


def _partners_on(plan: MixPlan, shape: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Return partners and label shares by cell of a grid, or as they are for None.

    All of a label share goes to the first of the new cells that have its partner: spread among them, its sum would not
    have the same bits.
    """
    if shape is None or (plan.partners.dim() == 4 and _grid(plan.partners) == shape):
        return plan.partners, plan.label_shares
    partners, label_shares = plan.partners, plan.label_shares
    if partners.dim() == 2:
        partners, label_shares = partners[..., None, None], label_shares[..., None, None]
    rows, columns = (grid.starts(new, old, partners.device) for new, old in zip(shape, _grid(partners), strict=True))
    spread = label_shares.new_zeros(*partners.shape[:2], *shape)
    spread[:, :, rows.unsqueeze(1), columns] = label_shares
    return grid.expand(partners, shape), spread


def _moves_on(plan: MixPlan, count: int, shape: tuple[int, int]) -> Tensor:
    """Return `moves` for `count` partners on a grid: the plan's own, a refinement into equal cells, or the pixels'."""
    device, (down, across) = plan.partners.device, shape
    cells = torch.arange(down * across, dtype=torch.int32, device=device).view(1, 1, down, across)
    still = cells.expand(plan.batch_size, count + 1, down, across)
    if plan.moves is None:
        return still
    moves = plan.moves
    if _grid(moves) != shape:
        # The cells of the grid are pixels of a picture of it, in which the rule for pixels holds.
        rows, columns, seen = zip(
            *[coordinates(shape, moves[:, slot], None, device) for slot in range(moves.shape[1])], strict=True
        )
        found = torch.stack(rows, 1) * across + torch.stack(columns, 1)
        moves = found.masked_fill(torch.stack(seen, 1) == 0, -1).to(torch.int32)
    return torch.cat([moves, still[:, moves.shape[1] :]], 1)
