"""The execution of a mix as one Triton kernel, and its adjoint; `rlmix.ops.blend` says what they compute.

A program writes one tile of one image, for up to four planes: it works out the weights of the tile's pixels once, then
reads each source once and writes once. A tile is rows x elements, and an element is what lies side by side in memory: a
pixel of one channel where images are contiguous, a channel of a pixel where they are channels_last. So both formats are
read and written in whole lines. Coarse grids are looked up pixel by pixel, nothing of image size is allocated. Sums run
in float32, for float64 images in float64.

Needs Triton, and a GPU unless TRITON_INTERPRET=1 was set before the first import.
"""

# The kernels are written in Triton's language, which only looks like Python: their arguments have no Python types.
# mypy: disable-error-code="assignment,import-not-found,import-untyped,no-untyped-def,untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048
_PLANES = 4
_COLUMNS = (256, 128, 64, 32)
# How much of a tile may lie outside the image before narrower tiles are the better choice.
_WASTE = 1.15
# Sizes of grids: a kernel compiled anew for each would cost more than it saves.
_GRIDS = ["share_step", "share_h", "share_w", "partner_h", "partner_w", "move_h", "move_w"]


@triton.jit
def _cell(index, count, size):
    """Return the cell of a pixel along one side, by the rule of `rlmix.ops.grid`."""
    return (index * count) // size


@triton.jit
def _start(index, count, size):
    """Return the first pixel of a cell along one side."""
    return (index * size + count - 1) // count


@triton.jit
def _tile(
    height, row_length, planes, at_once: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr
):  # fmt: skip
    """Return a program's image, first plane, rows [tile_rows, 1], elements [1, tile_columns], and which are inside."""
    across = (row_length + tile_columns - 1) // tile_columns
    tiles = ((height + tile_rows - 1) // tile_rows) * across
    parts = planes // at_once
    program = tl.program_id(0)
    tile = program % tiles
    rows = (tile // across) * tile_rows + tl.arange(0, tile_rows)[:, None]
    elements = (tile % across) * tile_columns + tl.arange(0, tile_columns)[None, :]
    # A large batch has more elements than 32 bits count; an image has not.
    b = (program // (tiles * parts)).to(tl.int64)
    return b, (program // tiles % parts) * at_once, rows, elements, (rows < height) & (elements < row_length)


@triton.jit
def _weight(
    shares, window_rows, window_columns, b, slot, rows, columns, inside,
    height, width, share_step, share_h, share_w, one_cell: tl.constexpr,
):  # fmt: skip
    """Return one partner's weight at each pixel of a tile: float32, a scalar where the whole image has one."""
    cells = shares + b * share_step + slot * share_h * share_w
    if one_cell:
        weight = tl.load(cells).to(tl.float32)
    else:
        place = _cell(rows, share_h, height) * share_w + _cell(columns, share_w, width)
        weight = tl.load(cells + place, mask=inside, other=0.0).to(tl.float32)
    if window_rows is not None:
        down = tl.load(window_rows + b * height + rows, mask=rows < height, other=0.0)
        across = tl.load(window_columns + b * width + columns, mask=columns < width, other=0.0)
        weight = down * across * weight
    return weight


@triton.jit
def _source(
    partners, moves, place, b, slot: tl.constexpr, rows, columns, elements, inside,
    height, width, image_size, partner_h, partner_w, move_h, move_w,
    count: tl.constexpr, adjacent: tl.constexpr, by_cell: tl.constexpr,
):  # fmt: skip
    """Return where a slot's pixels lie (offset of the image, offset in its plane), and which are shown at all."""
    if slot == 0:
        image = b
    elif by_cell:
        place_of = _cell(rows, partner_h, height) * partner_w + _cell(columns, partner_w, width)
        cells = partners + (b * count + slot - 1) * partner_h * partner_w
        image = tl.load(cells + place_of, mask=inside, other=0)
    else:
        image = tl.load(partners + b * count + slot - 1)
    placed: tl.constexpr = slot == 1 and place is not None
    if placed:
        scale_y, scale_x = tl.load(place + b * 4), tl.load(place + b * 4 + 1)
        shift_y, shift_x = tl.load(place + b * 4 + 2), tl.load(place + b * 4 + 3)
        from_rows = tl.floor((rows.to(tl.float32) - shift_y) * scale_y)
        from_columns = tl.floor((columns.to(tl.float32) - shift_x) * scale_x)
        from_rows = tl.minimum(tl.maximum(from_rows, 0.0), (height - 1) * 1.0).to(tl.int32)
        from_columns = tl.minimum(tl.maximum(from_columns, 0.0), (width - 1) * 1.0).to(tl.int32)
    else:
        from_rows, from_columns = rows, columns
    shown = inside
    if moves is not None:
        down, across = _cell(from_rows, move_h, height), _cell(from_columns, move_w, width)
        cells = moves + (b * (count + 1) + slot) * move_h * move_w
        cell = tl.load(cells + down * move_w + across, mask=inside, other=-1)
        shown = cell >= 0
        cell = tl.maximum(cell, 0)
        # A source cell may have a pixel less than the place where it is shown (a grid that does not divide the image).
        from_rows += _start(cell // move_w, move_h, height) - _start(down, move_h, height)
        from_columns += _start(cell % move_w, move_w, width) - _start(across, move_w, width)
        from_rows = tl.minimum(tl.maximum(from_rows, 0), height - 1)
        from_columns = tl.minimum(tl.maximum(from_columns, 0), width - 1)
    if moves is not None or placed:
        inner = (from_rows * width + from_columns) * adjacent + elements % adjacent
    else:
        inner = rows * (width * adjacent) + elements
    return image.to(tl.int64) * image_size, inner, shown


@triton.jit
def _weights(
    shares, window_rows, window_columns, b, rows, columns, inside, height, width, share_step, share_h, share_w,
    count: tl.constexpr, one_cell: tl.constexpr, exact: tl.constexpr,
):  # fmt: skip
    """Return W_0 .. W_J at each pixel of a tile."""
    weights = ()
    own = 1.0
    for slot in tl.static_range(count):
        weight = _weight(
            shares, window_rows, window_columns, b, slot, rows, columns, inside,
            height, width, share_step, share_h, share_w, one_cell,
        ).to(exact)  # fmt: skip
        own = own - weight
        weights = weights + (weight,)  # noqa: RUF005  (Triton unpacks no tuples)
    return (own,) + weights  # noqa: RUF005


@triton.jit(do_not_specialize=_GRIDS)
def _blend(
    out, images, partners, shares, window_rows, window_columns, moves, place,
    height, width, planes, plane_size, image_size, share_step,
    share_h, share_w, partner_h, partner_w, move_h, move_w,
    count: tl.constexpr, adjacent: tl.constexpr, one_cell: tl.constexpr, by_cell: tl.constexpr, exact: tl.constexpr,
    at_once: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr,
):  # fmt: skip
    """Mix one tile of one image."""
    b, plane, rows, elements, inside = _tile(height, width * adjacent, planes, at_once, tile_rows, tile_columns)
    columns = elements // adjacent
    weights = _weights(
        shares, window_rows, window_columns, b, rows, columns, inside, height, width, share_step, share_h, share_w,
        count, one_cell, exact,
    )  # fmt: skip
    sources = ()
    shown = ()
    for slot in tl.static_range(count + 1):
        image, inner, seen = _source(
            partners, moves, place, b, slot, rows, columns, elements, inside,
            height, width, image_size, partner_h, partner_w, move_h, move_w, count, adjacent, by_cell,
        )  # fmt: skip
        sources = sources + (images + image + inner,)  # noqa: RUF005
        shown = shown + (seen,)  # noqa: RUF005
    target = out + b * image_size + (rows * (width * adjacent) + elements)
    for step in tl.static_range(at_once):
        shift = (plane + step) * plane_size
        mixed = tl.full((tile_rows, tile_columns), 0.0, exact)
        for slot in tl.static_range(count + 1):
            value = tl.load(sources[slot] + shift, mask=shown[slot], other=0.0).to(exact)
            # A weight of zero must hide what it is multiplied with, be it infinite or no number at all.
            mixed += weights[slot] * tl.where(weights[slot] != 0.0, value, 0.0)
        tl.store(target + shift, mixed.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_GRIDS)
def _collect(
    out, gradient, order, first, shares, window_rows, window_columns,
    height, width, planes, plane_size, image_size, share_step, share_h, share_w,
    count: tl.constexpr, adjacent: tl.constexpr, one_cell: tl.constexpr, exact: tl.constexpr,
    at_once: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr,
):  # fmt: skip
    """Write one tile of one image's gradient: from itself, then from each image that it is a partner of, in order."""
    b, plane, rows, elements, inside = _tile(height, width * adjacent, planes, at_once, tile_rows, tile_columns)
    columns = elements // adjacent
    weights = _weights(
        shares, window_rows, window_columns, b, rows, columns, inside, height, width, share_step, share_h, share_w,
        count, one_cell, exact,
    )  # fmt: skip
    at = plane * plane_size + (rows * (width * adjacent) + elements)
    value = tl.load(gradient + b * image_size + at, mask=inside, other=0.0).to(exact)
    collected = tl.full((tile_rows, tile_columns), 0.0, exact) + weights[0] * tl.where(weights[0] != 0.0, value, 0.0)
    for position in range(tl.load(first + b), tl.load(first + b + 1)):
        use = tl.load(order + position)
        user = use // count
        weight = _weight(
            shares, window_rows, window_columns, user, use % count, rows, columns, inside,
            height, width, share_step, share_h, share_w, one_cell,
        ).to(exact)  # fmt: skip
        value = tl.load(gradient + user * image_size + at, mask=inside, other=0.0).to(exact)
        collected += weight * tl.where(weight != 0.0, value, 0.0)
    tl.store(out + b * image_size + at, collected.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_GRIDS)
def _scatter(
    sums, gradient, partners, shares, window_rows, window_columns, moves, place,
    height, width, planes, plane_size, image_size, share_step,
    share_h, share_w, partner_h, partner_w, move_h, move_w,
    count: tl.constexpr, adjacent: tl.constexpr, one_cell: tl.constexpr, by_cell: tl.constexpr, exact: tl.constexpr,
    at_once: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr,
):  # fmt: skip
    """Add what one tile of the mixed images is worth to the pixels that it was made of."""
    b, plane, rows, elements, inside = _tile(height, width * adjacent, planes, at_once, tile_rows, tile_columns)
    columns = elements // adjacent
    weights = _weights(
        shares, window_rows, window_columns, b, rows, columns, inside, height, width, share_step, share_h, share_w,
        count, one_cell, exact,
    )  # fmt: skip
    at = plane * plane_size + (rows * (width * adjacent) + elements)
    value = tl.load(gradient + b * image_size + at, mask=inside, other=0.0).to(exact)
    for slot in tl.static_range(count + 1):
        image, inner, shown = _source(
            partners, moves, place, b, slot, rows, columns, elements, inside,
            height, width, image_size, partner_h, partner_w, move_h, move_w, count, adjacent, by_cell,
        )  # fmt: skip
        worth = weights[slot] * tl.where(weights[slot] != 0.0, value, 0.0)
        counted = inside & shown & (worth != 0.0)
        tl.atomic_add(sums + image + plane * plane_size + inner, worth, mask=counted, sem="relaxed")


Plan = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""partners, shares, the window's rows, its columns, moves, place: as in `rlmix.ops.blend.blend`, J at least 1."""


def blend_into(out: Tensor, images: Tensor, plan: Plan) -> None:
    """Write the mixed images into `out`.

    Args:
        out: [B, C, H, W], the dtype, device and memory format of `images`; shares no memory with them.
        images: [B, C, H, W], floating point, contiguous or channels_last.
        plan: on the same device.
    """
    arguments, programs = _described(images, plan, _PLANES)
    with torch.cuda.device(images.get_device()):
        _blend[(programs,)](out, images, **arguments)


def gradient_into(out: Tensor, gradient: Tensor, plan: Plan) -> None:
    """Write the gradient of the images into `out`.

    Where every pixel stays in its place and comes from one partner as a whole, sums are formed in a fixed order.
    Otherwise they are formed by atomic additions, whose order, and so whose last bits, may change from run to run.

    Args:
        out: [B, C, H, W], the dtype, device and memory format of `gradient`.
        gradient: of the mixed images, [B, C, H, W], floating point, contiguous or channels_last.
        plan: on the same device.
    """
    partners = plan[0]
    arguments, programs = _described(gradient, plan, 1)
    with torch.cuda.device(gradient.get_device()):
        if gathers(plan):
            exact = torch.promote_types(gradient.dtype, torch.float32)
            sums = out.zero_() if out.dtype == exact else torch.zeros_like(out, dtype=exact)
            _scatter[(programs,)](sums, gradient, **arguments)
            if sums is not out:
                out.copy_(sums)
            return
        users, order = torch.sort(partners.flatten(), stable=True)
        images = torch.arange(partners.shape[0] + 1, device=partners.device)
        for name in ("partners", "moves", "place", "partner_h", "partner_w", "move_h", "move_w", "by_cell"):
            del arguments[name]
        _collect[(programs,)](out, gradient, order, torch.searchsorted(users, images), **arguments)


def gathers(plan: Plan) -> bool:
    """Say whether pixels come from other places, or a cell has partners of its own."""
    partners, _, _, _, moves, place = plan
    return partners.dim() == 4 or moves is not None or place is not None


def _described(images: Tensor, plan: Plan, planes_at_once: int) -> tuple[dict[str, Any], int]:
    """Return what the kernels are told of a plan and of the images' layout, and how many programs do the work."""
    partners, shares, rows, columns, moves, place = plan
    batch, channels, height, width = images.shape
    inner = 1 if images.is_contiguous() else channels
    planes = channels // inner
    at_once = max(count for count in range(1, planes_at_once + 1) if planes % count == 0)
    across = _across(width * inner)
    down = min(_TILE // across, triton.next_power_of_2(height))
    shares = shares.contiguous()
    arguments = {
        "partners": partners.contiguous(),
        "shares": shares.view(torch.uint8) if shares.dtype == torch.bool else shares,
        "window_rows": None if rows is None else rows.float().contiguous(),
        "window_columns": None if columns is None else columns.float().contiguous(),
        "moves": None if moves is None else moves.contiguous(),
        "place": None if place is None else place.float().contiguous(),
        "height": height,
        "width": width,
        "planes": planes,
        "plane_size": height * width * inner,
        "image_size": channels * height * width,
        # One mask for the whole batch is read again for each image.
        "share_step": 0 if shares.shape[0] == 1 else shares[0].numel(),
        "share_h": shares.shape[2],
        "share_w": shares.shape[3],
        "partner_h": partners.shape[2] if partners.dim() == 4 else 1,
        "partner_w": partners.shape[3] if partners.dim() == 4 else 1,
        "move_h": 1 if moves is None else moves.shape[2],
        "move_w": 1 if moves is None else moves.shape[3],
        "count": partners.shape[1],
        "adjacent": inner,
        "one_cell": shares.shape[2:] == (1, 1),
        "by_cell": partners.dim() == 4,
        "exact": tl.float64 if images.dtype == torch.float64 else tl.float32,
        "at_once": at_once,
        "tile_rows": down,
        "tile_columns": across,
        "num_warps": max(1, min(4, down * across // 256)),
        # Every product is rounded, as in torch and in the interpreter: a GPU gives the bits that CI has seen.
        "enable_fp_fusion": False,
    }
    tiles = triton.cdiv(height, down) * triton.cdiv(width * inner, across)
    return arguments, batch * (planes // at_once) * tiles


def _across(length: int) -> int:
    """Return how many elements wide a tile is: a power of two of which little lies beyond the row's end."""
    for columns in _COLUMNS:
        if triton.cdiv(length, columns) * columns <= _WASTE * length:
            return columns
    return min(_COLUMNS[-1], int(triton.next_power_of_2(length)))
