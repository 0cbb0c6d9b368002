"""rlmix.apply, against a literal loop over pixels on random plans."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from rlmix import MixPlan, apply
from rlmix.errors import PlanError


def cell(pixel: int, count: int, size: int) -> int:
    """Return the cell of a pixel."""
    return pixel * count // size


def start(index: int, count: int, size: int) -> int:
    """Return the first pixel of a cell."""
    return min(pixel for pixel in range(size) if cell(pixel, count, size) == index)


def shown(plan: MixPlan, row: int, slot: int, y: int, x: int) -> tuple[int, int, int, float]:
    """Return (source image, source row, source column, 0 where zeros are shown) of one slot at one pixel."""
    height, width = plan.size
    source, seen = row, 1.0
    if slot and plan.partners.dim() == 4:
        h, w = plan.partners.shape[2:]
        source = int(plan.partners[row, slot - 1, cell(y, h, height), cell(x, w, width)])
    elif slot:
        source = int(plan.partners[row, slot - 1])
    if slot == 1 and plan.place is not None:
        scale_y, scale_x, shift_y, shift_x = plan.place[row].tolist()
        y = min(max(math.floor((y - shift_y) * scale_y), 0), height - 1)
        x = min(max(math.floor((x - shift_x) * scale_x), 0), width - 1)
    if plan.moves is not None:
        h, w = plan.moves.shape[2:]
        down, across = cell(y, h, height), cell(x, w, width)
        moved = int(plan.moves[row, slot, down, across])
        if moved < 0:
            seen = 0.0
        else:
            y = min(y - start(down, h, height) + start(moved // w, h, height), height - 1)
            x = min(x - start(across, w, width) + start(moved % w, w, width), width - 1)
    return source, y, x, seen


def literal(images: Tensor, plan: MixPlan) -> Tensor:
    """Execute a plan pixel by pixel in float64."""
    batch, channels, height, width = images.shape
    h, w = plan.shares.shape[2:]
    mixed = torch.zeros(batch, channels, height, width, dtype=torch.float64)
    for row in range(batch):
        for y in range(height):
            for x in range(width):
                weights = []
                for slot in range(plan.partners.shape[1]):
                    shares = plan.shares[row if plan.shares.shape[0] > 1 else 0, slot]
                    weight = float(shares[cell(y, h, height), cell(x, w, width)])
                    if plan.window is not None:
                        weight *= float(plan.window[0][row, y]) * float(plan.window[1][row, x])
                    weights.append(weight)
                for slot, weight in enumerate([1.0 - sum(weights), *weights]):
                    source, source_y, source_x, seen = shown(plan, row, slot, y, x)
                    mixed[row, :, y, x] += weight * seen * images[source, :, source_y, source_x].double()
    return mixed


def random_plan(generator: torch.Generator, batch: int, size: tuple[int, int]) -> MixPlan:
    """Return a plan with each optional field there or not, on grids that need not divide the image."""

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def chance(probability: float) -> bool:
        return bool(rand(1) < probability)

    def grid() -> tuple[int, int]:
        return whole(1, size[0] + 1), whole(1, size[1] + 1)

    count = whole(0, 4)
    partner_shape = (batch, count, *(grid() if chance(0.3) else ()))
    shares = rand(batch if chance(0.8) else 1, count, *grid())
    shares = shares / shares.sum(1, keepdim=True).clamp_min(1.0)
    kind = whole(0, 4)
    shares = [shares, shares.half(), (shares > 0.5) if count < 2 else shares, shares][kind]
    moves = None
    if chance(0.3) and count:
        down, across = grid()
        moves = torch.randint(-1, down * across, (batch, count + 1, down, across), generator=generator).int()
    return MixPlan(
        size=size,
        partners=torch.randint(0, batch, partner_shape, generator=generator),
        shares=shares,
        label_shares=rand(*partner_shape) / max(1, math.prod(partner_shape[1:])),
        window=(rand(batch, size[0]), rand(batch, size[1])) if chance(0.5) else None,
        moves=moves,
        place=rand(batch, 4) * 2 if chance(0.3) else None,
    )


@pytest.mark.parametrize("seed", range(60))
def test_random_plans_are_executed_as_a_loop_over_pixels_does(seed: int) -> None:
    """Every field of a plan, alone and together, with J from 0 to 3; memory format kept; one map of one batch."""
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = (int(torch.randint(low, high, (1,), generator=generator)) for low, high in
                            ((1, 5), (3, 9), (3, 9)))  # fmt: skip
    plan = random_plan(generator, batch, (height, width))
    images = torch.randn(batch, 2, height, width, generator=generator)
    expected = literal(images, plan)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        given = images.contiguous(memory_format=memory_format)
        mixed = apply(given, plan)
        assert torch.allclose(mixed.double(), expected, atol=2e-6)
        assert mixed.is_contiguous(memory_format=memory_format)
        assert torch.equal(given, images)
    for dtype in (torch.float16, torch.bfloat16):
        mixed = apply(images.to(dtype), plan)
        assert mixed.dtype == dtype
        assert torch.allclose(mixed.double(), expected, atol=32 * torch.finfo(dtype).eps)


def test_a_large_batch_worked_on_in_parts_is_the_small_batch_repeated() -> None:
    """Above 8 MB the batch is split; neither the parts' borders nor the memory format may show."""
    generator = torch.Generator().manual_seed(0)
    batch, size = 19, (192, 200)
    images = torch.randn(batch, 3, *size, generator=generator)
    assert images.numel() * 4 > 8 * 2**20
    partners = torch.randint(0, batch, (batch, 1), generator=generator)
    label_shares = torch.zeros(batch, 1)
    for shares, window in (
        (torch.rand(batch, 1, 1, 1, generator=generator), None),
        (torch.rand(batch, 1, 4, 7, generator=generator), None),
        (torch.ones(1, 1, 1, 1), tuple((torch.rand(batch, side, generator=generator) > 0.4).float() for side in size)),
    ):
        plan = MixPlan(size=size, partners=partners, shares=shares, label_shares=label_shares, window=window)
        own = plan.weights[:, :1]
        own = own if own.shape[-2:] == size else own.repeat_interleave(size[0] // own.shape[2], 2).gather(
            3, (torch.arange(size[1]) * own.shape[3] // size[1]).expand(batch, 1, size[0], -1)
        )  # fmt: skip
        expected = torch.lerp(images[partners[:, 0]], images, own)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            mixed = apply(images.contiguous(memory_format=memory_format), plan)
            assert torch.equal(mixed, expected)
            assert mixed.is_contiguous(memory_format=memory_format)


def test_a_plan_for_other_images_is_refused() -> None:
    """Applied to another batch it would mix the wrong images without a word."""
    plan = MixPlan(
        size=(4, 4), partners=torch.tensor([[1], [0]]), shares=torch.ones(2, 1, 1, 1), label_shares=torch.ones(2, 1)
    )
    with pytest.raises(PlanError, match="drawn for 2 images of 4x4, got 3 of 4x4"):
        apply(torch.rand(3, 1, 4, 4), plan)
    with pytest.raises(PlanError, match="drawn for 2 images of 4x4, got 2 of 4x5"):
        apply(torch.rand(2, 1, 4, 5), plan)
    with pytest.raises(PlanError, match=r"must be \[B, C, H, W\]"):
        apply(torch.rand(2, 4, 4), plan)
    with pytest.raises(PlanError, match="must be floating point, got torch.uint8"):
        apply(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), plan)
    with pytest.raises(PlanError, match="plan is on cpu, the images on meta"):
        apply(torch.rand(2, 1, 4, 4, device="meta"), plan)


class MemoryWatch(TorchDispatchMode):
    """Follow what operations allocate, and how much of it lives at once.

    Attributes:
        large: how many storages of at least `large_bytes` were alive at most.
        peak: the most bytes alive.
    """

    def __init__(self, large_bytes: int, *known: Tensor) -> None:
        super().__init__()
        self.large, self.peak = 0, 0
        self._large_bytes = large_bytes
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._known:
                storage = tensor.untyped_storage()
                self._alive[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {place: one for place, one in self._alive.items() if not one[0].expired()}
        sizes = [size for _, size in self._alive.values()]
        self.peak = max(self.peak, sum(sizes))
        self.large = max(self.large, sum(size >= self._large_bytes for size in sizes))
        return result


BATCH, SIZE = 19, (192, 200)


def plans_of_every_kind() -> dict[str, MixPlan]:
    """Return a plan for each way of mixing a batch of more than 8 MB."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def plan(count: int, *cells: int, by_cell: tuple[int, ...] = (), **fields: Any) -> MixPlan:
        partners = torch.randint(0, BATCH, (BATCH, count, *by_cell), generator=generator)
        return MixPlan(
            size=SIZE, partners=partners, shares=rand(BATCH, count, *cells) / count,
            label_shares=torch.zeros(partners.shape), **fields,
        )  # fmt: skip

    window = tuple((rand(BATCH, side) > 0.4).float() for side in SIZE)
    moves = torch.randint(-1, 12, (BATCH, 2, 3, 4), generator=generator).int()
    return {
        "a weight for each image": plan(1, 1, 1),
        "a grid of weights": plan(1, 4, 7),
        "a mask of full resolution": plan(1, *SIZE),
        "a window": plan(1, 1, 1, window=window),
        "two partners": plan(2, 1, 1),
        "three partners, a grid and a window": plan(3, 4, 7, window=window),
        "partners by cell": plan(2, 4, 4, by_cell=(4, 4)),
        "moves": plan(1, 3, 4, moves=moves),
        "a place": plan(1, 1, 1, window=window, place=rand(BATCH, 4) * 2),
        "no partner": plan(0, 1, 1),
    }


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", plans_of_every_kind())
def test_at_most_one_more_tensor_of_the_images_size_is_alive(kind: str, memory_format: torch.memory_format) -> None:
    """Memory is what limits a batch: besides the result there may be one, and small ones that make less than one."""
    plan = plans_of_every_kind()[kind]
    images = torch.rand(BATCH, 3, *SIZE).contiguous(memory_format=memory_format)
    size = images.numel() * images.element_size()
    with MemoryWatch(size, images) as watch:
        mixed = apply(images, plan)
    assert watch.large <= 2
    assert watch.peak < 3 * size
    buffer = torch.empty_like(images)
    with MemoryWatch(size, images, buffer) as watch:
        assert apply(images, plan, out=buffer) is buffer
    assert watch.large <= 1
    assert watch.peak < 2 * size
    assert torch.equal(buffer, mixed)


@pytest.mark.parametrize("seed", range(20))
def test_a_buffer_takes_what_apply_returns(seed: int) -> None:
    """Random plans, small batches; whatever stood in the buffer before must not show."""
    generator = torch.Generator().manual_seed(seed)
    plan = random_plan(generator, 3, (5, 7))
    images = torch.randn(3, 2, 5, 7, generator=generator)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        given = images.contiguous(memory_format=memory_format)
        buffer = torch.full_like(given, float("nan"))
        assert apply(given, plan, out=buffer) is buffer
        assert torch.equal(buffer, apply(given, plan))


def test_a_buffer_that_does_not_fit_is_refused() -> None:
    """Each message says what `out` must be."""
    plan = MixPlan(
        size=(4, 5), partners=torch.tensor([[1], [0]]), shares=torch.ones(2, 1, 1, 1), label_shares=torch.ones(2, 1)
    )
    images = torch.rand(2, 3, 4, 5)
    for out in (torch.empty(2, 3, 4, 6), images.double(), torch.empty(2, 3, 4, 5, device="meta")):
        with pytest.raises(PlanError, match="`out` must be like `images`"):
            apply(images, plan, out=out)
    with pytest.raises(PlanError, match="must have the memory format of `images`"):
        apply(images, plan, out=torch.empty_like(images, memory_format=torch.channels_last))
    with pytest.raises(PlanError, match="takes no part in gradients"):
        apply(images.clone().requires_grad_(), plan, out=torch.empty_like(images))
    room = torch.rand(3, 3, 4, 5)
    for out in (room[:2], room[1:]):
        with pytest.raises(PlanError, match="must not share memory"):
            apply(room[:2], plan, out=out)
    room = torch.rand(4, 3, 4, 5)
    assert torch.equal(apply(room[:2], plan, out=room[2:]), room[:2].flip(0))


def test_learned_shares_and_windows_get_gradients() -> None:
    """apply is linear in the weights too."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 4, 5, generator=generator)
    shares = torch.rand(2, 1, 1, 1, generator=generator, requires_grad=True)
    plan = MixPlan(size=(4, 5), partners=torch.tensor([[1], [0]]), shares=shares, label_shares=torch.ones(2, 1))
    (gradient,) = torch.autograd.grad(apply(images, plan).sum(), shares)
    assert torch.allclose(gradient.flatten(), (images.flip(0) - images).sum((1, 2, 3)), atol=1e-5)
