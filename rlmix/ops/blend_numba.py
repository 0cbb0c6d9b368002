"""`rlmix.ops.blend` for one partner an image as compiled code for the CPU; see `rlmix.ops.compiled`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor

from rlmix.ops.compiled import array

# Rows of at least this many pixels are worth the three loops that leave out what lies beside a box.
_WIDE = 192
_NOT_FINITE = np.int32(0x7F800000)
_NONE = np.empty((0, 0), np.float32)


def blender(
    images: Tensor, partners: Tensor, shares: Tensor, window: tuple[Tensor, Tensor] | None, mixed: Tensor
) -> Callable[[int, int], bool]:
    """Return what writes the blend of the images from one number up to another, and says whether all of it is finite.

    Args:
        images: float32 [B, C, H, W], contiguous.
        partners: int64 [B, 1].
        shares: [B or 1, 1, h, w].
        window: (rows [B, H], columns [B, W]), or None.
        mixed: float32 [B, C, H, W], contiguous, written.

    Raises:
        IndexError: (by what is returned) a partner outside the batch.
    """
    batch, channels, height, width = images.shape
    pixels, blended = array(images), array(mixed)
    chosen = array(partners).reshape(-1)
    weights = array(shares if shares.dtype == torch.float32 else shares.float())[:, 0]
    one = weights.shape[1:] == (1, 1)
    if one and window is None:
        given, into = pixels.reshape(batch, -1), blended.reshape(batch, -1)
        return lambda first, last: _whole(given, chosen, weights, first, last, into)
    rows, columns = map(array, window) if window is not None else (_NONE, _NONE)
    if one and width >= _WIDE:
        given, into = (pictures.reshape(batch, channels * height, width) for pictures in (pixels, blended))
        return lambda first, last: _boxed(given, chosen, weights, rows, columns, first, last, into)
    given, into = (pictures.reshape(batch, channels, height * width) for pictures in (pixels, blended))
    return lambda first, last: _masked(given, chosen, weights, rows, columns, width, first, last, into)


def _define_fma(typing_context: Any, one: Any, two: Any, three: Any) -> Any:
    """Return one * two + three, rounded once, as torch's lerp does."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fma(*values)

    return types.float32(types.float32, types.float32, types.float32), generate


def _define_bits(typing_context: Any, value: Any) -> Any:
    """Return the bits of a float32 as int32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


_fma: Any = intrinsic(_define_fma)
_bits: Any = intrinsic(_define_bits)


@numba.njit(inline="always")
def _exponent(value: Any) -> Any:
    """Return the exponent's bits of a float32: _NOT_FINITE for NaN and the infinities, less for all else."""
    return _bits(value) & _NOT_FINITE


@numba.njit(inline="always")
def lerp(start: Any, end: Any, weight: Any) -> Any:
    """Return torch.lerp(start, end, weight), to the bit."""
    near = weight < np.float32(0.5)
    factor = weight if near else weight - np.float32(1.0)
    return _fma(factor, end - start, start if near else end)


@numba.njit(inline="always")
def _source(partners: Any, row: int) -> Any:
    """Return a row's partner."""
    if not 0 <= partners[row] < len(partners):
        raise IndexError("a partner is outside the batch")
    return partners[row]


@numba.njit(inline="always")
def _copy(pixels: Any, out: Any, highest: Any) -> Any:
    """Copy pixels; return the highest exponent among them and the one given."""
    for pixel in range(len(out)):
        out[pixel] = pixels[pixel]
        highest = max(highest, _exponent(pixels[pixel]))
    return highest


@numba.njit(cache=True, nogil=True)
def _whole(images: Any, partners: Any, shares: Any, first: int, last: int, mixed: Any) -> Any:
    """Blend with one weight for each image; say whether all that was written is finite.

    Args:
        images: float32 [B, C*H*W].
        partners: int64 [B].
        shares: float32 [B or 1, 1, 1].
        first: the first row that is written.
        last: the row after the last one.
        mixed: float32 [B, C*H*W], written.
    """
    highest = np.int32(0)
    for row in range(first, last):
        weight = shares[row % len(shares), 0, 0]
        own, other, out = images[row], images[_source(partners, row)], mixed[row]
        if weight == 0:
            highest = _copy(own, out, highest)
        else:
            for pixel in range(len(own)):
                value = lerp(own[pixel], other[pixel], weight)
                out[pixel] = value
                highest = max(highest, _exponent(value))
    return highest < _NOT_FINITE


@numba.njit(cache=True, nogil=True)
def _masked(
    images: Any, partners: Any, shares: Any, rows: Any, columns: Any, width: int, first: int, last: int, mixed: Any
) -> Any:
    """Blend with a weight for each pixel, as `_whole` does: a mask of the image's size serves all channels.

    Args:
        images: float32 [B, C, H*W].
        partners: int64 [B].
        shares: float32 [B or 1, h, w].
        rows: float32 [B, H] of a window; empty for none.
        columns: float32 [B, W]; empty for none.
        width: W.
        first: the first row of the batch that is written.
        last: the row after the last one.
        mixed: float32 [B, C, H*W], written.
    """
    _, channels, pixels = images.shape
    height = pixels // width
    above, beside = _cells(height, shares.shape[1]), _cells(width, shares.shape[2])
    weights, line = np.empty((height, width), np.float32), np.empty(width, np.float32)
    highest = np.int32(0)
    for row in range(first, last):
        cells, top, bottom = shares[row % len(shares)], 0, height
        if len(rows) > 0:
            top, bottom = _covered(rows[row])
            _windowed_mask(cells, above, beside, rows[row], columns[row], top, bottom, line, weights)
        else:
            _mask(cells, above, beside, line, weights)
        begin, end = top * width, bottom * width
        mask = weights.reshape(-1)[begin:end]
        source = _source(partners, row)
        for channel in range(channels):
            own, other, out = images[row, channel], images[source, channel, begin:end], mixed[row, channel]
            highest = _copy(own[:begin], out[:begin], highest)
            start, inside = own[begin:end], out[begin:end]
            for pixel in range(len(inside)):
                value = lerp(start[pixel], other[pixel], mask[pixel])
                inside[pixel] = value
                highest = max(highest, _exponent(value))
            highest = _copy(own[end:], out[end:], highest)
    return highest < _NOT_FINITE


@numba.njit
def _mask(cells: Any, above: Any, beside: Any, line: Any, weights: Any) -> None:
    """Show cells [h, w] as pixels [H, W]; above and beside are the cells of the rows and the columns."""
    for y in range(len(above)):
        if y == 0 or above[y] != above[y - 1]:
            for x in range(len(line)):
                line[x] = cells[above[y], beside[x]]
        for x in range(len(line)):
            weights[y, x] = line[x]


@numba.njit
def _windowed_mask(
    cells: Any, above: Any, beside: Any, rows: Any, columns: Any, top: int, bottom: int, line: Any, weights: Any
) -> None:
    """Show cells in a window, rows top to bottom; multiplied in the order of the tensor code, whose bits these have."""
    single = cells.size == 1
    share = cells[0, 0] if single else np.float32(1.0)
    for y in range(top, bottom):
        if y == top or above[y] != above[y - 1]:
            for x in range(len(line)):
                line[x] = np.float32(1.0) if single else cells[above[y], beside[x]]
        visible = rows[y] * share
        for x in range(len(line)):
            weights[y, x] = visible * columns[x] * line[x]


@numba.njit(inline="always")
def _cells(size: int, count: int) -> Any:
    """Return the cell of each pixel along one side, as `rlmix.ops.grid.cells` does."""
    return (np.arange(size) * count) // size


@numba.njit(inline="always")
def _covered(side: Any) -> Any:
    """Return the first pixel of a window's side that is not 0, and the one after the last."""
    first, last = 0, len(side)
    while first < last and side[first] == 0:
        first += 1
    while last > first and side[last - 1] == 0:
        last -= 1
    return first, last


@numba.njit(cache=True, nogil=True)
def _boxed(images: Any, partners: Any, shares: Any, rows: Any, columns: Any, first: int, last: int, mixed: Any) -> Any:
    """Blend with one weight for each image in a window, as `_whole` does; of the partner, only the window is read.

    Args:
        images: float32 [B, C*H, W].
        partners: int64 [B].
        shares: float32 [B or 1, 1, 1].
        rows: float32 [B, H].
        columns: float32 [B, W].
        first: the first row of the batch that is written.
        last: the row after the last one.
        mixed: float32 [B, C*H, W], written.
    """
    _, lines, width = images.shape
    height = rows.shape[1]
    weights, highest = np.empty(width, np.float32), np.int32(0)
    for row in range(first, last):
        share, side = shares[row % len(shares), 0, 0], columns[row]
        left, right = _covered(side)
        own, other, out = images[row], images[_source(partners, row)], mixed[row]
        inside, before = weights[left:right], np.float32(-1.0)
        for line in range(lines):
            visible = rows[row, line % height] * share
            if visible == 0:
                highest = _copy(own[line], out[line], highest)
                continue
            if visible != before:
                for x in range(width):
                    weights[x] = visible * side[x]
                before = visible
            highest = _copy(own[line, :left], out[line, :left], highest)
            start, end, middle = own[line, left:right], other[line, left:right], out[line, left:right]
            for x in range(len(middle)):
                value = lerp(start[x], end[x], inside[x])
                middle[x] = value
                highest = max(highest, _exponent(value))
            highest = _copy(own[line, right:], out[line, right:], highest)
    return highest < _NOT_FINITE
