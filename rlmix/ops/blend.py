"""The execution of a mix: the only code that writes pixels, in plain torch.

Output pixel (y, x) of image b is W_0 * own + sum_j W_j * partner_j with
W_j = rows[b, y] * cols[b, x] * shares[b, j, cell(y, x)] and W_0 = 1 - sum_j W_j. Nothing is normalised. Where W_0 is 1
the output has the bits of the input, where one W_j is 1 those of the partner.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlmix.ops import grid

# Above this size the batch is worked on in parts: the weights and the gathered partners of one part stay in the cache.
_CHUNKED_BYTES = 8 * 2**20
_CHUNKS = 16

Window = tuple[Tensor, Tensor]


def blend(
    images: Tensor,
    partners: Tensor,
    shares: Tensor,
    *,
    window: Window | None = None,
    moves: Tensor | None = None,
    place: Tensor | None = None,
) -> Tensor:
    """Blend each image with its partners.

    Args:
        images: [B, C, H, W], floating point, any device, contiguous or channels_last. Never written.
        partners: int64 [B, J], or [B, J, h, w] with a partner for each cell.
        shares: [B or 1, J, h, w], the partners' weights in each cell; float32, float16, bfloat16 or bool.
        window: (rows [B, H], cols [B, W]) float32, multiplied into every partner's weight; None stands for ones.
        moves: int32 [B, J+1, h, w] with the cell of the source that is shown in each cell (row-major), slot 0 for the
            image itself, -1 for zeros; None shows every cell in its place.
        place: float32 [B, 4], (scale_y, scale_x, shift_y, shift_x): the first partner is shown with source row
            floor((y - shift_y) * scale_y), held inside the image, and columns likewise; None stands for no change.

    Returns:
        [B, C, H, W], the dtype, device and memory format of `images`.
    """
    if partners.shape[1] == 0:
        # Only moves could change an image without partners, and nothing draws them.
        return images.clone()
    if moves is not None or place is not None or partners.dim() == 4:
        return _blend_gathered(images, partners, shares, window, moves, place)
    if partners.shape[1] == 1:
        return _blend_pairs(images, partners[:, 0], shares[:, 0], window)
    return _blend_whole(images, partners, shares, window)


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


def _take(images: Tensor, index: Tensor) -> Tensor:
    """Return images[index] with the memory format kept.

    `index_select` copies whole rows, three times as fast as `images[index]`, but forgets channels_last; on the
    permuted view, which is contiguous then, it does not.
    """
    if images.is_contiguous():
        return images.index_select(0, index)
    return images.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def _blend_pairs(images: Tensor, partners: Tensor, shares: Tensor, window: Window | None) -> Tensor:
    """Blend with one partner: gather it into the output, then one lerp from the image itself towards it."""
    if images.requires_grad:
        return torch.lerp(images, _take(images, partners), _partner_weight(shares, window, images))
    if images.numel() * images.element_size() <= _CHUNKED_BYTES or images.is_cuda:
        theirs = _take(images, partners)
        return torch.lerp(images, theirs, _partner_weight(shares, window, images), out=theirs)
    mixed = torch.empty_like(images)
    step = -(-images.shape[0] // _CHUNKS)
    for first in range(0, images.shape[0], step):
        part = slice(first, first + step)
        # One mask for the whole batch has a leading 1 and serves every part.
        cells = shares if shares.shape[0] == 1 else shares[part]
        seen = None if window is None else (window[0][part], window[1][part])
        theirs = mixed[part]
        if images.is_contiguous():
            torch.index_select(images, 0, partners[part], out=theirs)
        else:
            theirs.copy_(_take(images, partners[part]))
        torch.lerp(images[part], theirs, _partner_weight(cells, seen, images), out=theirs)
    return mixed


def _blend_whole(images: Tensor, partners: Tensor, shares: Tensor, window: Window | None) -> Tensor:
    """Blend with several partners, each one image as a whole."""
    weights = partner_weights(shares, window, (images.shape[2], images.shape[3]))
    own = 1.0 - weights.sum(1, keepdim=True)
    mixed = images * _spread(own, images)
    for slot in range(partners.shape[1]):
        mixed = mixed.addcmul_(_take(images, partners[:, slot]), _spread(weights[:, slot : slot + 1], images))
    return mixed


def _spread(weights: Tensor, images: Tensor) -> Tensor:
    """Show the weights [B, 1, h, w] at the images' size and dtype."""
    return grid.expand(weights, (images.shape[2], images.shape[3])).to(images.dtype)


def _blend_gathered(
    images: Tensor,
    partners: Tensor,
    shares: Tensor,
    window: Window | None,
    moves: Tensor | None,
    place: Tensor | None,
) -> Tensor:
    """Blend where pixels come from other places, or a cell has partners of its own: one gather for each slot."""
    batch, channels, height, width = images.shape
    size = (height, width)
    weights = grid.expand(partner_weights(shares, window, size), size)
    own = torch.arange(batch, device=images.device).view(batch, 1, 1)
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)
    mixed = torch.zeros_like(images)
    for slot in range(partners.shape[1] + 1):
        source = own if slot == 0 else _per_pixel(partners[:, slot - 1], size)
        rows, columns, seen = coordinates(
            size, None if moves is None else moves[:, slot], place if slot == 1 else None, images.device
        )
        index = (source * height + rows) * width + columns
        shown = pixels.index_select(0, index.expand(batch, height, width).reshape(-1))
        shown = shown.view(batch, height, width, channels).permute(0, 3, 1, 2)
        weight = 1.0 - weights.sum(1) if slot == 0 else weights[:, slot - 1]
        mixed = mixed.addcmul_(shown, (weight * seen).to(images.dtype).unsqueeze(1))
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
