"""The execution of a mix: the only code that writes pixels.

Output pixel (y, x) of image b is W_0 * own + sum_j W_j * partner_j with
W_j = rows[b, y] * cols[b, x] * shares[b, j, cell(y, x)] and W_0 = 1 - sum_j W_j. Nothing is normalised. Where W_0 is 1
the output has the bits of the input, where one W_j is 1 those of the partner.

The plain torch code here is the reference. On a CUDA device with Triton the kernels of `rlmix.ops.blend_triton` take
its place; they round once where the reference rounds at each partner, so the last bits may differ. On the CPU with
numba the compiled code of `rlmix.ops.blend_numba` does, for float32 images with one partner each; it has the bits of
the reference.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from rlmix.ops import compiled, grid

# A large batch is worked on in parts of about this size: the weights and the gathered partners of one part stay in the
# cache, and take little memory. Where pixels come from other places, indices take several times the images' memory.
_PART_BYTES, _GATHERED_PART_BYTES = 3 * 2**20, 2**19
# The reference shares a large batch among torch's threads. Compiled code, which runs on one, takes batches up to this
# many values.
_ONE_THREAD = 2**20
_TRITON = importlib.util.find_spec("triton") is not None
# The first compute capability that Triton supports is 8.0.
_LEAST_MAJOR = 8

Window = tuple[Tensor, Tensor]
Hints = list[Tensor | float]
Plan = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Partners, shares, rows, columns, moves and place, as the operators below take them."""


def blend(
    images: Tensor,
    partners: Tensor,
    shares: Tensor,
    *,
    window: Window | None = None,
    moves: Tensor | None = None,
    place: Tensor | None = None,
    out: Tensor | None = None,
    hints: Hints | None = None,
) -> Tensor:
    """Blend each image with its partners.

    Gradients flow to `images`; with the torch code also to `shares` and `window`, so where these require gradients it
    is the one that runs. On CUDA the gradient is summed in a fixed order, unless pixels come from other places
    (`moves`, `place`) or cells have partners of their own: then it is summed by atomic additions, and by the torch code
    where `torch.use_deterministic_algorithms` is on.

    Args:
        images: [B, C, H, W], floating point, any device, contiguous or channels_last. Never written.
        partners: int64 [B, J], or [B, J, h, w] with a partner for each cell.
        shares: [B or 1, J, h, w], the partners' weights in each cell; float32, float16, bfloat16 or bool.
        window: (rows [B, H], cols [B, W]) float32, multiplied into every partner's weight; None stands for ones.
        moves: int32 [B, J+1, h, w] with the cell of the source that is shown in each cell (row-major), slot 0 for the
            image itself, -1 for zeros; None shows every cell in its place.
        place: float32 [B, 4], (scale_y, scale_x, shift_y, shift_x): the first partner is shown with source row
            floor((y - shift_y) * scale_y), held inside the image, and columns likewise; None stands for no change.
        out: where to write the result: shape, dtype, device and memory format of `images`, with which it shares no
            memory. No gradients flow then.
        hints: a list to which a number is added for each part of the result, while the cache still holds it: `hint` of
            that part. A value that is not finite in the images is not finite in the result, unless it is shown nowhere.

    Returns:
        [B, C, H, W], the dtype, device and memory format of `images`; `out` where it is given.
    """
    if partners.shape[1] == 0:
        # Only moves could change an image without partners, and nothing draws them.
        return _hinted(images.clone() if out is None else out.copy_(images), hints)
    plan = (partners, shares, *(window or (None, None)), moves, place)
    if not _is_fused(images, plan, out):
        if _is_compiled(images, plan, out):
            return _blend_compiled(images, partners, shares, window, out, hints)
        return blend_in_torch(images, partners, shares, window=window, moves=moves, place=place, out=out, hints=hints)
    if out is None:
        return _hinted(torch.ops.rlmix.blend.default(images, *plan), hints)
    torch.ops.rlmix.blend_into.default(out, images, *plan)
    return _hinted(out, hints)


def hint(images: Tensor) -> Tensor:
    """Return a number that is not finite where a value of the images is not (or where their sum is out of range)."""
    # A NaN or an infinity survives a sum, which costs a tenth of looking at every pixel.
    return images.detach().sum(dtype=torch.float32)


def _hinted(mixed: Tensor, hints: Hints | None) -> Tensor:
    if hints is not None:
        hints.append(hint(mixed))
    return mixed


def has_kernels(device: torch.device) -> bool:
    """Say whether the Triton kernels run on a CUDA device."""
    # Properties are kept on the host; and torch.compile takes them, but not the capability, for constants.
    return _TRITON and torch.cuda.get_device_properties(device).major >= _LEAST_MAJOR


def _is_fused(images: Tensor, plan: Plan, out: Tensor | None) -> bool:
    """Say whether the kernels do this blend."""
    if not images.is_cuda or not has_kernels(images.device) or not 0 < images.numel() < images.shape[0] * 2**31:
        return False
    if not images.is_contiguous() and not images.is_contiguous(memory_format=torch.channels_last):
        return False
    if out is not None and images.stride() != out.stride():
        return False
    partners, *weights, moves, place = plan
    if _needs_gradient(*weights):
        return False
    gathered = partners.dim() == 4 or moves is not None or place is not None
    return not (gathered and _needs_gradient(images) and torch.are_deterministic_algorithms_enabled())


def _is_compiled(images: Tensor, plan: Plan, out: Tensor | None) -> bool:
    """Say whether the compiled code for the CPU does this blend."""
    partners, *_, moves, place = plan
    if images.dtype != torch.float32 or not images.is_contiguous() or not (out is None or out.is_contiguous()):
        return False
    if tuple(partners.shape[1:]) != (1,) or moves is not None or place is not None:
        return False
    if images.numel() == 0 or (images.numel() > _ONE_THREAD and torch.get_num_threads() > 1):
        return False
    return compiled.serves(images, *plan, out)


def _blend_compiled(
    images: Tensor, partners: Tensor, shares: Tensor, window: Window | None, out: Tensor | None, hints: Hints | None
) -> Tensor:
    mixed = torch.empty_like(images) if out is None else out
    write = compiled.code("blend_numba").blender(images, partners, shares, window, mixed)
    for rows in _parts(images, False):
        finite = write(rows.start, min(rows.stop, len(images)))
        if hints is not None:
            hints.append(0.0 if finite else math.nan)
    if out is not None:
        # What is written past torch must still be seen by what keeps this tensor for a gradient.
        torch.autograd.graph.increment_version(out)
    return mixed


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _write_blend(out: Tensor, images: Tensor, *plan: Any) -> None:
    from rlmix.ops import blend_triton

    blend_triton.blend_into(out, images, plan)


def _fused_blend(images: Tensor, *plan: Any) -> Tensor:
    mixed = torch.empty_like(images)
    _write_blend(mixed, images, *plan)
    return mixed


def _fused_gradient(gradient: Tensor, *plan: Any) -> Tensor:
    from rlmix.ops import blend_triton

    gradient = _dense(gradient)
    images = torch.empty_like(gradient)
    blend_triton.gradient_into(images, gradient, plan)
    return images


def _dense(images: Tensor) -> Tensor:
    """Return images contiguous or channels_last (a gradient may be an expanded number)."""
    return images if images.is_contiguous(memory_format=torch.channels_last) else images.contiguous()


def _keep_plan(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.rlmix.blend_gradient.default(gradient, *ctx.saved_tensors), *[None] * 6


def _backward_twice(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    # The adjoint of the adjoint.
    return torch.ops.rlmix.blend.default(_dense(gradient), *ctx.saved_tensors), *[None] * 6


_PLAN = "Tensor partners, Tensor shares, Tensor? rows, Tensor? columns, Tensor? moves, Tensor? place"
# Operators of their own, so that torch.compile keeps the kernels in one graph. (torch.library.custom_op would add 7
# microseconds to each call.)
torch.library.define("rlmix::blend", f"(Tensor images, {_PLAN}) -> Tensor")
torch.library.define("rlmix::blend_into", f"(Tensor(a!) out, Tensor images, {_PLAN}) -> ()")
torch.library.define("rlmix::blend_gradient", f"(Tensor gradient, {_PLAN}) -> Tensor")
torch.library.impl("rlmix::blend", "default", _fused_blend)
torch.library.impl("rlmix::blend_into", "default", _write_blend)
torch.library.impl("rlmix::blend_gradient", "default", _fused_gradient)
torch.library.register_fake("rlmix::blend", lambda images, *_: torch.empty_like(images))
torch.library.register_fake("rlmix::blend_into", lambda *_: None)
torch.library.register_fake("rlmix::blend_gradient", lambda gradient, *_: torch.empty_like(_dense(gradient)))
torch.library.register_autograd("rlmix::blend", _backward, setup_context=_keep_plan)
torch.library.register_autograd("rlmix::blend_gradient", _backward_twice, setup_context=_keep_plan)


def blend_in_torch(
    images: Tensor,
    partners: Tensor,
    shares: Tensor,
    *,
    window: Window | None = None,
    moves: Tensor | None = None,
    place: Tensor | None = None,
    out: Tensor | None = None,
    hints: Hints | None = None,
) -> Tensor:
    """Do what `blend` does, J at least 1, in plain torch: the reference.

    Besides the result, at most one tensor of the images' size is allocated: the images with the channels of a pixel
    side by side, where pixels come from other places or cells have partners of their own.
    """
    gathered = moves is not None or place is not None or partners.dim() == 4
    pixels = images.permute(0, 2, 3, 1).reshape(-1, images.shape[1]) if gathered else None
    if torch.compiler.is_compiling() or _needs_gradient(images, shares, *(window or ())):
        # Neither gradients nor the compiler allow to write into parts of a tensor; the compiler saves memory itself.
        mixed = _blend_rows(images, images, 0, pixels, partners, shares, window, moves, place, None)
        return _hinted(mixed if out is None else out.copy_(mixed), hints)
    mixed = torch.empty_like(images) if out is None else out
    parts = _parts(images, gathered)
    if len(parts) == 1:
        _blend_rows(images, images, 0, pixels, partners, shares, window, moves, place, mixed)
        return _hinted(mixed, hints)
    for rows in parts:
        _blend_rows(
            images,
            images[rows],
            rows.start,
            pixels,
            partners[rows],
            # One mask for the whole batch has a leading 1 and serves every part.
            shares if shares.shape[0] == 1 else shares[rows],
            None if window is None else (window[0][rows], window[1][rows]),
            None if moves is None else moves[rows],
            None if place is None else place[rows],
            mixed[rows],
        )
        _hinted(mixed[rows], hints)
    return mixed


def _blend_rows(
    images: Tensor,
    own: Tensor,
    first: int,
    pixels: Tensor | None,
    partners: Tensor,
    shares: Tensor,
    window: Window | None,
    moves: Tensor | None,
    place: Tensor | None,
    into: Tensor | None,
) -> Tensor:
    """Blend `own`, the images from number `first` on, with their rows of the plan; into a new tensor for None."""
    if pixels is not None:
        return _blend_gathered(own, first, pixels, partners, shares, window, moves, place, into)
    if partners.shape[1] == 1:
        return _blend_pairs(own, images, partners[:, 0], shares[:, 0], window, into)
    return _blend_whole(own, images, partners, shares, window, into)


def _parts(images: Tensor, gathered: bool) -> list[slice]:
    """Return the rows that are worked on together."""
    batch, size = images.shape[0], images.numel() * images.element_size()
    if images.is_cuda or size <= 2 * _PART_BYTES:
        return [slice(0, batch)]
    step = -(-batch * (_GATHERED_PART_BYTES if gathered else _PART_BYTES) // size)
    return [slice(first, first + step) for first in range(0, batch, step)]


def partner_weights(shares: Tensor, window: Window | None, size: tuple[int, int]) -> Tensor:
    """Return the partners' weights W_1..W_J: float32 [B, J, h, w] without a window, [B, J, H, W] with one."""
    if window is None:
        return shares.float()
    rows, columns = window
    visible = rows.unsqueeze(2) * columns.unsqueeze(1)
    return visible.unsqueeze(1) * grid.expand(shares.float(), size)


def _partner_weight(shares: Tensor, window: Window | None, images: Tensor) -> Tensor:
    """Return W_1 as [B or 1, 1, 1 or H, 1 or W] in the images' dtype, for shares [B or 1, h, w] of a single partner."""
    shares = shares.float()
    if shares.shape[-2:] != (1, 1):
        shares = grid.expand(shares, (images.shape[2], images.shape[3]))
    if window is not None:
        rows, columns = window
        # Whichever factor is smaller is multiplied first, so that only one product has the size of the images.
        if shares.shape[-2:] == (1, 1):
            shares = (rows * shares[:, :, 0]).unsqueeze(2) * columns.unsqueeze(1)
        else:
            shares = rows.unsqueeze(2) * columns.unsqueeze(1) * shares
    return shares.to(images.dtype).unsqueeze(1)


def _take(images: Tensor, index: Tensor, into: Tensor | None) -> Tensor:
    """Return images[index] with the memory format kept, written into `into` where it is given.

    `index_select` copies whole rows, three times as fast as `images[index]`, but forgets channels_last; on the
    permuted view, which is contiguous then, it does not.
    """
    if images.is_contiguous():
        return torch.index_select(images, 0, index, out=into)
    target = None if into is None else into.permute(0, 2, 3, 1)
    return torch.index_select(images.permute(0, 2, 3, 1), 0, index, out=target).permute(0, 3, 1, 2)


def _blend_pairs(
    own: Tensor, images: Tensor, partners: Tensor, shares: Tensor, window: Window | None, into: Tensor | None
) -> Tensor:
    """Blend with one partner: gather it into the output, then one lerp from the image itself towards it."""
    theirs = _take(images, partners, into)
    return torch.lerp(own, theirs, _partner_weight(shares, window, own), out=into)


def _blend_whole(
    own: Tensor, images: Tensor, partners: Tensor, shares: Tensor, window: Window | None, into: Tensor | None
) -> Tensor:
    """Blend with several partners, each one image as a whole."""
    steps = _steps(partner_weights(shares, window, (images.shape[2], images.shape[3])))
    mixed = own
    for slot in range(partners.shape[1]):
        mixed = torch.lerp(
            mixed, _take(images, partners[:, slot], None), _spread(steps[:, slot : slot + 1], own), out=into
        )
    return mixed


def _steps(weights: Tensor) -> Tensor:
    """Return how far towards each partner to go, one after the other, so that their weights [B, J, h, w] come about.

    Where one partner alone has a weight this is the weight itself, and the result has the bits that a blend with this
    partner alone gives: what a row gets does not depend on which plans were joined with its own.
    """
    steps = list(weights.unbind(1))
    rest = torch.ones_like(steps[-1])
    for slot in range(len(steps) - 2, -1, -1):
        rest = rest - weights[:, slot + 1]
        # Where the later partners take all, nothing of this step is left to be seen.
        steps[slot] = steps[slot] / rest.masked_fill(rest <= 0, 1.0)
    return torch.stack(steps, 1)


def _spread(weights: Tensor, images: Tensor) -> Tensor:
    """Show the weights [B, 1, h, w] at the images' size and dtype."""
    return grid.expand(weights, (images.shape[2], images.shape[3])).to(images.dtype)


def _blend_gathered(
    own: Tensor,
    first: int,
    pixels: Tensor,
    partners: Tensor,
    shares: Tensor,
    window: Window | None,
    moves: Tensor | None,
    place: Tensor | None,
    into: Tensor | None,
) -> Tensor:
    """Blend where pixels come from other places, or a cell has partners of its own: one gather for each slot.

    `own` [b, C, H, W] are some of the images, from number `first` on, with their rows of the plan, whose partners count
    in the whole batch; `pixels` [B * H * W, C] are all images.
    """
    batch, channels, height, width = own.shape
    size = (height, width)
    steps = grid.expand(_steps(partner_weights(shares, window, size)), size).to(own.dtype)
    itself = torch.arange(first, first + batch, device=own.device).view(batch, 1, 1)

    def shown(slot: int) -> Tensor:
        """Return what a slot shows: [b, C, H, W]."""
        source = itself if slot == 0 else _per_pixel(partners[:, slot - 1], size)
        rows, columns, seen = coordinates(
            size, None if moves is None else moves[:, slot], place if slot == 1 else None, own.device
        )
        index = (source * height + rows) * width + columns
        found = pixels.index_select(0, index.expand(batch, height, width).reshape(-1))
        found = found.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return found if moves is None else found * seen.to(own.dtype).unsqueeze(1)

    mixed = own if moves is None else shown(0)
    for slot in range(partners.shape[1]):
        mixed = torch.lerp(mixed, shown(slot + 1), steps[:, slot : slot + 1], out=into)
    return mixed


def _per_pixel(partners: Tensor, size: tuple[int, int]) -> Tensor:
    """Show one slot's partners [B] or [B, h, w] as [B, 1, 1] or [B, H, W]."""
    return partners.view(-1, 1, 1) if partners.dim() == 1 else grid.expand(partners, size)


def coordinates(
    size: tuple[int, int], moves: Tensor | None, place: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which pixel of the source is shown at each pixel, for one slot.

    Args:
        size: (H, W).
        moves: int32 [B, h, w] or None, as in `blend`.
        place: float32 [B, 4] or None, as in `blend`; applied after `moves`.
        device: where the result lives.

    Returns:
        rows and columns, int64 that broadcast to [B, H, W], and seen, float32: 0 where zeros are shown instead.
    """
    height, width = size
    rows = torch.arange(height, device=device).view(1, height, 1)
    columns = torch.arange(width, device=device).view(1, 1, width)
    if place is not None:
        scale_y, scale_x, shift_y, shift_x = place.view(-1, 4, 1, 1).unbind(1)
        rows = torch.floor((rows - shift_y) * scale_y).long().clamp(0, height - 1)
        columns = torch.floor((columns - shift_x) * scale_x).long().clamp(0, width - 1)
    if moves is None:
        return rows, columns, torch.ones((), device=device)
    down, across = moves.shape[-2:]
    first_rows, first_columns = grid.starts(height, down, device), grid.starts(width, across, device)
    cell_rows, cell_columns = (rows * down) // height, (columns * across) // width
    batch = torch.arange(moves.shape[0], device=device).view(-1, 1, 1)
    cell = moves[batch, cell_rows, cell_columns].long()
    seen = (cell >= 0).float()
    cell = cell.clamp_min(0)
    # A source cell may have a pixel less than the place where it is shown (a grid that does not divide the image).
    rows = (rows - first_rows[cell_rows] + first_rows[cell // across]).clamp(0, height - 1)
    columns = (columns - first_columns[cell_columns] + first_columns[cell % across]).clamp(0, width - 1)
    return rows, columns, seen
