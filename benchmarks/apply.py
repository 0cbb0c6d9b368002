"""`rlmix.apply` beside the floor, `torch.lerp(x, x[perm], mask)` with the mask at hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import TENSOR_CODE, Candidate, Case, Goal, tensor_code
from rlmix import MixInputs, MixPlan, apply
from rlmix.methods.registry import get
from rlmix.ops import grid

SIZES = ((128, 32, 300), (64, 224, 30))
PLANS = {
    "mixup": "a weight for each image",
    "cutmix": "a box for each image",
    "rmix": "a 4 x 4 grid of weights for each image",
}
LIMIT = 1.15

# On a GPU: (batch, side, calls in a row). A clock that waits for the GPU is read once for them all.
CUDA_SIZE = (256, 224, 20)
CUDA_LIMIT = 1.25


def full_mask(plan: MixPlan) -> Tensor:
    """Return the partner's weight as lerp takes it: [B, 1, 1, 1] for one weight an image, else [B, 1, H, W]."""
    weights = plan.weights[:, 1:]
    return weights if weights.shape[-2:] == (1, 1) else grid.expand(weights, plan.size).contiguous()


def cases() -> list[Callable[[], Case]]:
    """Return what builds a case, for each size and kind of plan."""
    on_cpu = [partial(_case, batch, side, rounds, method) for batch, side, rounds in SIZES for method in PLANS]
    formats = (torch.contiguous_format, torch.channels_last)
    on_cuda = [partial(_case_on_cuda, method, memory_format) for method in PLANS for memory_format in formats]
    return on_cpu + (on_cuda if torch.cuda.is_available() else [])


def _drawn(batch: int, side: int, method: str) -> tuple[Tensor, MixPlan]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, 3, side, side, generator=generator)
    maps = torch.rand(batch, 4, 4, generator=generator)
    chosen = get("rmix", grids=(4,)) if method == "rmix" else get(method)
    return images, chosen.draw(MixInputs(batch, side, side, saliency=maps), generator=generator)


def _case(batch: int, side: int, rounds: int, method: str) -> Case:
    images, plan = _drawn(batch, side, method)
    partners, mask = plan.partners[:, 0], full_mask(plan)

    def check() -> None:
        mixed, expected = apply(images, plan), torch.lerp(images, images[partners], mask)
        torch.testing.assert_close(mixed, expected, rtol=0.0, atol=1e-6)
        if method == "cutmix":
            assert torch.equal(mixed, expected), "a copied area must keep its bits"

    return Case(
        group="apply",
        name=f"apply, {method}, {batch}x3x{side}x{side}",
        candidates=(
            Candidate(name="torch.lerp(x, x[perm], mask)", run=lambda _: torch.lerp(images, images[partners], mask)),
            Candidate(name="rlmix.apply(x, plan)", run=lambda _: apply(images, plan)),
            Candidate(name=f"rlmix.apply(x, plan), {TENSOR_CODE}", run=tensor_code(lambda _: apply(images, plan))),
            Candidate(name="x.clone()", run=lambda _: images.clone()),
        ),
        rounds=rounds,
        goals=(
            Goal(
                candidate="rlmix.apply(x, plan)",
                baseline="torch.lerp(x, x[perm], mask)",
                limit=LIMIT,
                text=f"apply: at most {LIMIT} times the lerp",
            ),
        ),
        check=check,
        notes=f"The plan has {PLANS[method]}; the lerp is given its weights ready-made, outside the timed part.",
    )


def _case_on_cuda(method: str, memory_format: torch.memory_format) -> Case:
    """Measure one kernel beside a copy that moves as many bytes: two sources read, one result written."""
    batch, side, calls = CUDA_SIZE
    images, plan = _drawn(batch, side, method)
    images = images.to("cuda", torch.bfloat16).contiguous(memory_format=memory_format)
    plan = plan.to("cuda")
    out = torch.empty_like(images)
    # A copy reads and writes: of one and a half times the images it moves three times their bytes.
    source = torch.rand(batch * 3 * side * side * 3 // 2, device="cuda").bfloat16()
    target = torch.empty_like(source)

    def in_a_row(call: Callable[[], object]) -> Callable[[object], None]:
        def run(_: object) -> None:
            for _ in range(calls):
                call()
            torch.cuda.synchronize()

        return run

    def check() -> None:
        known = torch.lerp(images.float(), images[plan.partners[:, 0]].float(), full_mask(plan))
        torch.testing.assert_close(apply(images, plan).float(), known, rtol=2**-8, atol=1e-6)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        mixed = apply(images, plan)
        taken = torch.cuda.max_memory_allocated() - before
        assert taken < 1.25 * mixed.numel() * mixed.element_size(), "something else of the images' size was allocated"

    copy = f"{calls} copies of as many bytes"
    ours = f"{calls} times rlmix.apply(x, plan)"
    layout = str(memory_format).removeprefix("torch.").removesuffix("_format")
    return Case(
        group="apply",
        name=f"apply on CUDA, {method}, {batch}x3x{side}x{side} bfloat16, {layout}",
        candidates=(
            Candidate(name=copy, run=in_a_row(lambda: target.copy_(source))),
            Candidate(name=ours, run=in_a_row(lambda: apply(images, plan))),
            Candidate(name=f"{calls} times rlmix.apply(x, plan, out)", run=in_a_row(lambda: apply(images, plan, out))),
        ),
        rounds=50,
        goals=(
            Goal(
                candidate=ours,
                baseline=copy,
                limit=CUDA_LIMIT,
                text=f"apply on CUDA: at most {CUDA_LIMIT} times the time to move three times the images' bytes",
            ),
        ),
        check=check,
        notes=f"{torch.cuda.get_device_name()}. The plan has {PLANS[method]}. Launches are inside the timed part.",
    )
