"""The Triton kernels against the torch code, in Triton's interpreter; what needs a GPU is marked so."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rlmix import MixInputs, MixPlan, apply
from rlmix.methods import get, names
from rlmix.ops import blend as blend_module
from rlmix.ops.blend import blend_in_torch
from rlmix.testing.methods import OperationCounter

pytest.importorskip("triton")

FORMATS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@functools.lru_cache(maxsize=1)
def plans_of_test_apply() -> ModuleType:
    """Return tests/test_apply.py, whose random plans these tests use."""
    path = Path(__file__).resolve().parents[1] / "test_apply.py"
    spec = importlib.util.spec_from_file_location("test_apply_for_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kernels() -> Iterator[ModuleType]:
    """Return rlmix.ops.blend_triton as the interpreter runs it, on tensors in ordinary memory.

    Triton decides when a kernel is defined; so the module is loaded anew, and once more when the test is done.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        module = importlib.reload(importlib.import_module("rlmix.ops.blend_triton"))
    yield module
    importlib.reload(module)


def fields(plan: MixPlan) -> tuple[Tensor | None, ...]:
    """Return a plan as the kernels take it."""
    return (plan.partners, plan.shares, *(plan.window or (None, None)), plan.moves, plan.place)


def reference(images: Tensor, plan: MixPlan) -> Tensor:
    return blend_in_torch(images, plan.partners, plan.shares, window=plan.window, moves=plan.moves, place=plan.place)


def assert_kernels_do_what_torch_does(kernels: ModuleType, images: Tensor, plan: MixPlan) -> None:
    """Compare the blend and the gradient with those of the torch code in float64, and the blend with it as it is.

    A kernel sums in float32 and rounds to the images' dtype once: half a unit in the last place, and the rounding of
    float32 weights. The torch code rounds the weights and every partial sum to the images' dtype.
    """
    generator = torch.Generator().manual_seed(1)
    eps = max(torch.finfo(images.dtype).eps, torch.finfo(torch.float32).eps)
    exact = images.double().requires_grad_()
    expected = reference(exact, plan)
    mixed = torch.empty_like(images)
    kernels.blend_into(mixed, images, fields(plan))
    torch.testing.assert_close(mixed.double(), expected.detach(), atol=4 * eps, rtol=eps)
    torch.testing.assert_close(mixed.double(), reference(images, plan).double(), atol=32 * eps, rtol=0.0)
    worth = torch.empty_like(images).copy_(torch.randn(images.shape, generator=generator))
    (gradient,) = torch.autograd.grad(expected, exact, worth.double())
    computed = torch.empty_like(images)
    kernels.gradient_into(computed, worth, fields(plan))
    torch.testing.assert_close(computed.double(), gradient, atol=16 * eps, rtol=2 * eps)


@pytest.mark.parametrize("seed", range(32))
def test_random_plans_are_executed_as_the_torch_code_does(kernels: ModuleType, seed: int) -> None:
    """Every field of a plan, alone and together; each dtype and memory format; the blend and its gradient."""
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = (int(torch.randint(low, high, (1,), generator=generator)) for low, high in
                            ((1, 5), (3, 9), (3, 9)))  # fmt: skip
    plan = plans_of_test_apply().random_plan(generator, batch, (height, width))
    if plan.partners.shape[1] == 0:
        return
    images = torch.randn(batch, 2, height, width, generator=generator)
    images = images.to(DTYPES[seed % 4]).contiguous(memory_format=FORMATS[seed // 4 % 2])
    assert_kernels_do_what_torch_does(kernels, images, plan)


@pytest.mark.parametrize(
    ("channels", "size", "memory_format"),
    [(6, (70, 20), FORMATS[0]), (2, (3, 300), FORMATS[0]), (5, (20, 70), FORMATS[1])],
)
def test_images_of_several_tiles_and_groups_of_planes_are_whole(
    kernels: ModuleType, channels: int, size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    """Programs share an image between them; no pixel may be left out where tiles do not fit."""
    generator = torch.Generator().manual_seed(0)
    batch = 2
    images = torch.randn(batch, channels, *size, generator=generator).contiguous(memory_format=memory_format)
    plan = MixPlan(
        size=size,
        partners=torch.tensor([[1, 1], [0, 1]]),
        shares=torch.rand(batch, 2, 3, 7, generator=generator) / 2,
        label_shares=torch.zeros(batch, 2),
        window=(torch.rand(batch, size[0], generator=generator), torch.rand(batch, size[1], generator=generator)),
    )
    assert_kernels_do_what_torch_does(kernels, images, plan)


def test_an_unmixed_image_and_a_copied_one_keep_their_bits_beside_broken_ones(kernels: ModuleType) -> None:
    """What has no weight is not seen, be it infinite or no number at all."""
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        images = torch.randn(4, 3, 5, 6, generator=generator).to(dtype)
        images[2] = float("nan")
        images[3] = float("inf")
        plan = MixPlan(
            size=(5, 6),
            partners=torch.tensor([[2], [0], [1], [1]]),
            shares=torch.tensor([0.0, 1.0, 1.0, 1.0]).view(4, 1, 1, 1),
            label_shares=torch.zeros(4, 1),
        )
        mixed = torch.empty_like(images)
        kernels.blend_into(mixed, images, fields(plan))
        assert torch.equal(mixed, images[[0, 0, 1, 1]])


@pytest.fixture
def small() -> tuple[Tensor, MixPlan, MixPlan]:
    """Return images, a plan of whole partners, and one that takes pixels from other places."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(3, 2, 4, 6, generator=generator)
    whole = MixPlan(
        size=(4, 6),
        partners=torch.tensor([[1], [1], [0]]),
        shares=torch.rand(3, 1, 2, 3, generator=generator),
        label_shares=torch.zeros(3, 1),
    )
    placed = MixPlan(
        size=(4, 6),
        partners=whole.partners,
        shares=whole.shares,
        label_shares=whole.label_shares,
        place=torch.rand(3, 4, generator=generator) * 2,
    )
    return images, whole, placed


def test_the_operators_keep_torchs_rules(kernels: ModuleType, small: tuple[Tensor, MixPlan, MixPlan]) -> None:
    """Schemas, shapes without data, autograd and tracing, by torch's own check."""
    images, *plans = small
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    leaf = images.clone().requires_grad_()
    for plan in plans:
        torch.library.opcheck(torch.ops.rlmix.blend.default, (leaf, *fields(plan)), test_utils=checks)
        torch.library.opcheck(torch.ops.rlmix.blend_gradient.default, (leaf, *fields(plan)), test_utils=checks)
    into = (torch.empty_like(images), images, *fields(plans[0]))
    torch.library.opcheck(torch.ops.rlmix.blend_into.default, into, test_utils=checks)
    # apply is linear: its second derivative is none, and the adjoint of its adjoint is apply itself.
    weights = torch.ones(images.shape, requires_grad=True)
    plan = plans[0]
    (gradient,) = torch.autograd.grad(
        torch.ops.rlmix.blend.default(leaf, *fields(plan)), leaf, weights, create_graph=True
    )
    (twice,) = torch.autograd.grad(gradient, weights, images)
    torch.testing.assert_close(twice, reference(images, plan))


def test_the_operators_stay_in_one_compiled_graph(
    kernels: ModuleType, small: tuple[Tensor, MixPlan, MixPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fullgraph=True nothing may fall out of the graph, and gradients must be those of the torch code."""
    images, plan, _ = small
    monkeypatch.setattr(blend_module, "_is_fused", lambda *_: True)

    def doubled(images: Tensor) -> Tensor:
        return apply(images * 2.0, plan)

    leaf, other = images.clone().requires_grad_(), images.clone().requires_grad_()
    mixed = torch.compile(doubled, fullgraph=True, backend="aot_eager")(leaf)
    expected = reference(other * 2.0, plan)
    torch.testing.assert_close(mixed, expected)
    # A sum's gradient is an expanded number, in no memory format.
    (gradient,), (known,) = (
        torch.autograd.grad(value.sum(), given) for value, given in ((mixed, leaf), (expected, other))
    )
    torch.testing.assert_close(gradient, known)
    buffer = torch.empty_like(images)
    with OperationCounter() as counter:
        assert apply(images, plan, out=buffer) is buffer
    assert set(counter.counts) == {"rlmix.blend_into.default"}
    torch.testing.assert_close(buffer, reference(images, plan))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_kernels_are_chosen_on_cuda(memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    """One operation, and no other, on tensors that only say that they are on a GPU."""
    monkeypatch.setattr(blend_module, "has_kernels", lambda device: True)
    with FakeTensorMode():
        images = torch.empty(4, 3, 8, 8, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=memory_format)
        plan = MixPlan(
            size=(8, 8),
            partners=torch.zeros(4, 1, dtype=torch.int64, device="cuda"),
            shares=torch.zeros(4, 1, 1, 1, device="cuda"),
            label_shares=torch.zeros(4, 1, device="cuda"),
        )
        with OperationCounter() as counter:
            mixed = apply(images, plan)
        assert {name for name in counter.counts if not name.startswith("prim.")} == {"rlmix.blend.default"}
        assert (mixed.shape, mixed.dtype, mixed.stride()) == (images.shape, images.dtype, images.stride())
        # Learned weights get their gradients from the torch code.
        plan.shares.requires_grad_()
        with OperationCounter() as counter:
            assert apply(images, plan).requires_grad
        assert not any(name.startswith("rlmix") for name in counter.counts)


def compiled(kernels: ModuleType, images: Tensor, plan: MixPlan) -> Any:
    """Compile the blend for an H100, as a launch with these arguments would, without a GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    arguments, _ = kernels._described(images, fields(plan), 4)
    options = {name: arguments.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    arguments = {"out": images, "images": images, **arguments}
    short = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32"}
    signature, constants, multiples = {}, {}, {}
    for number, parameter in enumerate(kernels._blend.params):
        value, name = arguments[parameter.name], parameter.name
        special = not parameter.do_not_specialize
        if isinstance(value, Tensor):
            signature[name], multiples[(number,)] = short[value.dtype], [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or (special and value == 1):
            signature[name], constants[(number,)] = "constexpr", value
        else:
            signature[name] = "i32"
            if special and value % 16 == 0:
                multiples[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernels._blend, signature, constants, multiples)
    return compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


@pytest.mark.parametrize("memory_format", FORMATS)
def test_images_are_read_and_written_in_the_widest_words(
    memory_format: torch.memory_format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine code for an H100: 16 bytes at once, as many words read as there are sources, and no more."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    images = torch.zeros(2, 3, 224, 224, dtype=torch.bfloat16).contiguous(memory_format=memory_format)
    plan = MixPlan(
        size=(224, 224),
        partners=torch.tensor([[1], [0]]),
        shares=torch.ones(2, 1, 4, 4),
        label_shares=torch.ones(2, 1),
    )
    kernels = importlib.import_module("rlmix.ops.blend_triton")
    code = compiled(kernels, images, plan)
    reads, writes = (len(re.findall(rf"{word}\.global\S*\.v4\.b32", code)) for word in ("ld", "st"))
    assert writes > 0
    assert reads == 2 * writes
    assert not re.search(r"(ld|st)\.global\S*\.b16", code)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(200))
def test_random_plans_are_executed_on_a_gpu_as_the_torch_code_does(seed: int) -> None:
    """The compiled kernels, on larger images than the interpreter bears."""
    from rlmix.ops import blend_triton

    generator = torch.Generator().manual_seed(seed)
    batch, height, width = (int(torch.randint(low, high, (1,), generator=generator)) for low, high in
                            ((1, 9), (3, 80), (3, 300)))  # fmt: skip
    plan = plans_of_test_apply().random_plan(generator, batch, (height, width)).to("cuda")
    if plan.partners.shape[1] == 0:
        return
    images = torch.randn(batch, 1 + seed % 7, height, width, generator=generator)
    images = images.to("cuda", DTYPES[seed % 4]).contiguous(memory_format=FORMATS[seed // 4 % 2])
    generator = torch.Generator().manual_seed(1)
    assert_kernels_do_what_torch_does(blend_triton, images, plan)


@pytest.mark.gpu
@pytest.mark.parametrize("name", names())
def test_nothing_waits_for_the_gpu(name: str) -> None:
    """Drawing, applying and the labels leave the GPU to work behind the host."""
    labels = torch.arange(16, device="cuda")
    images = torch.rand(16, 3, 32, 32, device="cuda")
    inputs = MixInputs(
        16, 32, 32, device=images.device, saliency=torch.rand(16, 8, 8, device="cuda"), images=images, labels=labels
    )
    method = get(name)
    for guarded in (False, True):  # the first call compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if guarded else "default")
        try:
            plan = method.draw(inputs, generator=torch.Generator().manual_seed(0))
            apply(images, plan)
            plan.soft_targets(labels, 16)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_nothing_else_of_the_images_size_is_allocated_on_a_gpu() -> None:
    """Each method's plan; with a buffer, not even the result."""
    images = torch.rand(64, 3, 224, 224, device="cuda", dtype=torch.bfloat16)
    image_bytes = images.numel() * images.element_size()
    inputs = MixInputs(64, 224, 224, device=images.device, saliency=torch.rand(64, 8, 8, device="cuda"), images=images)
    for name in names():
        plan = get(name).draw(inputs, generator=torch.Generator().manual_seed(0))
        for out in (None, torch.empty_like(images)):
            apply(images, plan, out=out)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            mixed = apply(images, plan, out=out)
            taken = torch.cuda.max_memory_allocated() - before
            assert taken <= (image_bytes if out is None else 0) + image_bytes // 4, name
            del mixed
