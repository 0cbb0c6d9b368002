"""Compiled code for the CPU has the bits of the tensor code that it stands for."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rlmix
from rlmix.errors import InputError
from rlmix.methods import registry
from rlmix.ops import blend as blend_module
from rlmix.ops import boxes, compiled, rng
from rlmix.ops.blend import Hints, blend, blend_in_torch
from rlmix.ops.quantile import row_quantile
from rlmix.plan import MixPlan
from rlmix.testing.methods import OperationCounter, batch_of
from rlmix.types import MixInputs

pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="needs numba, the extra `jit`")

LIKE_TORCH = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
"""Whether torch rounds a product and a sum once here, as compiled code always does."""


def same(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and (torch.equal(one, two) if LIKE_TORCH else torch.allclose(one, two, atol=1e-6))


def numbers(*shape: int, seed: int, extremes: bool = False) -> Tensor:
    """Return numbers in [0, 1], with `extremes` a third of them 0 and a third 1."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(*shape, generator=generator)
    return (drawn * 3 - 1).clamp(0, 1) if extremes else drawn


@pytest.fixture
def in_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Return what runs a function with the tensor code alone."""

    def run(function: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "serves", lambda *tensors: False)
            return function()

    return run


def test_compiled_code_serves_here() -> None:
    """Else every comparison below would compare the tensor code with itself."""
    assert compiled.serves(torch.zeros(1), None)


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("size", [(32, 32), (17, 80)])
def test_every_method_mixes_to_the_same_bits(name: str, size: tuple[int, int], in_torch: Any) -> None:
    """Whether numba is installed must not change what anybody trains on."""
    images, labels, inputs = batch_of(12, size, groups=1)
    method = registry.get(name)

    def mixed() -> tuple[Tensor, Tensor, MixPlan]:
        batch = rlmix.mix(
            images, labels, method, num_classes=12, generator=rlmix.Streams([7]), saliency=inputs.saliency
        )
        return batch.images, batch.targets, batch.plan

    (here, targets, plan), (there, expected, reference) = mixed(), in_torch(mixed)
    assert plan.equal(reference)
    assert same(here, there)
    assert torch.equal(targets, expected)


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 9),
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    cells=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    windowed=st.booleans(),
    shared=st.booleans(),
    extremes=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bool]),
    seed=st.integers(0, 2**20),
)
def test_a_blend_has_the_bits_of_the_reference(
    batch: int,
    channels: int,
    size: tuple[int, int],
    cells: tuple[int, int],
    windowed: bool,
    shared: bool,
    extremes: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Every way through the compiled code, at sizes that no vector divides."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, channels, *size, generator=generator)
    partners = torch.randint(batch, (batch, 1), generator=generator)
    grid = (min(cells[0], size[0]), min(cells[1], size[1]))
    shares = numbers(1 if shared else batch, 1, *grid, seed=seed + 1, extremes=extremes).to(dtype)
    window = (
        (
            numbers(batch, size[0], seed=seed + 2, extremes=extremes),
            numbers(batch, size[1], seed=seed + 3, extremes=extremes),
        )
        if windowed
        else None
    )
    hints: Hints = []
    mixed = blend(images, partners, shares, window=window, hints=hints)
    assert same(mixed, blend_in_torch(images, partners, shares, window=window))
    assert hints == [0.0]


def test_a_large_batch_is_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part tells for itself whether it is finite, and none is left out or written twice."""
    monkeypatch.setattr(blend_module, "_PART_BYTES", 4000)
    images, partners = torch.randn(11, 3, 10, 10), torch.randperm(11).unsqueeze(1)
    shares = torch.rand(11, 1, 1, 1)
    images[9, 1, 3, 3] = math.inf
    hints: Hints = []
    mixed = blend(images, partners, shares, hints=hints)
    assert len(hints) > 2
    finite = images.clone()
    finite[9, 1, 3, 3] = 0.0
    expected = blend_in_torch(finite, partners, shares)
    at = torch.isfinite(mixed)
    assert same(mixed[at], expected[at])
    assert any(math.isnan(float(hint)) for hint in hints)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [8, 80])
@pytest.mark.parametrize("name", ["none", "mixup", "cutmix", "smoothmix", "fmix", "gridmix"])
def test_images_that_are_not_finite_are_refused(name: str, side: int, value: float) -> None:
    """Wherever the value is, in what is copied or in what is blended."""
    for place in ((0, 0), (side - 1, side - 1), (side // 2, side // 2)):
        images = torch.rand(4, 3, side, side)
        images[2, 1, place[0], place[1]] = value
        # With these keys the value is shown somewhere.
        for key in range(3):
            with pytest.raises(InputError, match="not finite"):
                rlmix.mix(images, torch.arange(4), name, num_classes=4, generator=rlmix.Streams([key]))


def test_large_but_finite_images_are_taken() -> None:
    """Their sum overflows, which is no reason to refuse them."""
    images = torch.full((4, 3, 8, 8), 3e38)
    mixed = rlmix.mix(images, torch.arange(4), "mixup", num_classes=4, generator=rlmix.Streams([1]))
    assert bool(torch.isfinite(mixed.images).all())


@pytest.mark.parametrize("partner", [-1, 4])
@pytest.mark.parametrize("window", [False, True])
def test_a_partner_outside_the_batch_is_refused(partner: int, window: bool) -> None:
    """Compiled code would read memory that is not the images'."""
    partners = torch.tensor([[1], [0], [partner], [3]])
    rows, columns = torch.ones(4, 6), torch.ones(4, 80)
    with pytest.raises(IndexError):
        blend(torch.rand(4, 3, 6, 80), partners, torch.rand(4, 1, 1, 1), window=(rows, columns) if window else None)


@pytest.mark.parametrize(("label", "partner"), [(4, 0), (-1, 0), (0, 4), (0, -1)])
def test_targets_of_labels_or_partners_out_of_range_are_refused(label: int, partner: int) -> None:
    """As above, for the targets."""
    plan = MixPlan(
        size=(1, 1),
        partners=torch.tensor([[partner], [0]]),
        shares=torch.ones(1, 1, 1, 1),
        label_shares=torch.full((2, 1), 0.5),
    )
    with pytest.raises(RuntimeError, match="label"):
        plan.soft_targets(torch.tensor([0, label]), 4)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    batch=st.integers(1, 40),
    classes=st.integers(1, 12),
    dtype=st.sampled_from([torch.int64, torch.int32, torch.uint8]),
)
def test_targets_have_the_bits_of_the_reference(seed: int, batch: int, classes: int, dtype: torch.dtype) -> None:
    """Also where both labels are the same one."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (batch,), generator=generator).to(dtype)
    plan = MixPlan(
        size=(1, 1),
        partners=torch.randint(batch, (batch, 1), generator=generator),
        shares=torch.ones(1, 1, 1, 1),
        label_shares=numbers(batch, 1, seed=seed, extremes=True),
    )
    with OperationCounter():
        expected = plan.soft_targets(labels, classes)
    assert torch.equal(plan.soft_targets(labels, classes), expected)


@settings(deadline=None, max_examples=60)
@given(
    keys=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3),
    count=st.integers(1, 20),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    purpose=st.integers(0, 2**31 - 1),
)
def test_numbers_have_the_bits_of_the_reference(keys: list[int], count: int, shape: list[int], purpose: int) -> None:
    """Policies, trainings and forks share their numbers, wherever these are made."""
    values, wanted = torch.tensor(keys), ((purpose, tuple(shape)), (rng.CENTRE, (2, count)))
    order, drawn = rng.permutation_and_uniform64(values, rng.PARTNER, count, *wanted)
    with OperationCounter():
        expected, references = rng.permutation_and_uniform64(values, rng.PARTNER, count, *wanted)
    assert torch.equal(order, expected)
    assert all(torch.equal(one, other) for one, other in zip(drawn, references, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(rng.uniform64(values, *wanted), references, strict=True))


@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 2**20), batch=st.integers(1, 20), size=st.tuples(st.integers(1, 70), st.integers(1, 70)))
def test_boxes_have_the_bits_of_the_reference(seed: int, batch: int, size: tuple[int, int]) -> None:
    """Empty boxes, boxes of the whole image and those that are clipped."""
    where = torch.rand(2, batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    lam = numbers(batch, seed=seed, extremes=True)
    found = boxes.clipped(where, lam, size)
    with OperationCounter():
        expected = boxes.clipped(where, lam, size)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@settings(deadline=None, max_examples=60)
@given(
    groups=st.integers(1, 4),
    group=st.integers(1, 12),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    scope=st.sampled_from(["image", "batch"]),
    alpha=st.sampled_from([1.0, 0.4]),
    pairing=st.sampled_from(["random", "reverse"]),
    seed=st.integers(0, 2**20),
)
def test_plans_of_cutmix_are_those_of_the_reference(
    groups: int, group: int, size: tuple[int, int], scope: str, alpha: float, pairing: str, seed: int
) -> None:
    """Both ways of drawing boxes, for one group and for several, a box for each image and for each group."""
    method = registry.get("cutmix", scope=scope, alpha=alpha, pairing=pairing, probability=0.7)
    inputs, streams = (
        MixInputs(groups * group, *size, groups=groups),
        rng.Streams([seed + row for row in range(groups)]),
    )
    with OperationCounter():
        expected = method.plan(inputs, streams)
    assert method.plan(inputs, streams).equal(expected)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**20), rows=st.integers(1, 9), count=st.integers(1, 40))
def test_quantiles_have_the_bits_of_the_reference(seed: int, rows: int, count: int) -> None:
    """Levels at both ends and between, rows with values that are there twice."""
    values, levels = numbers(rows, count, seed=seed, extremes=True), numbers(rows, seed=seed + 1, extremes=True)
    with OperationCounter():
        expected = row_quantile(values, levels)
    assert same(row_quantile(values, levels), expected)


def test_a_level_that_is_no_number_reads_no_memory() -> None:
    """Its row has no quantile, and the other rows theirs."""
    found = row_quantile(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([math.nan, 1.0]))
    assert math.isnan(float(found[0]))
    assert float(found[1]) == 4.0


def test_images_without_channels_are_mixed() -> None:
    """Nothing is to be done for them, and nothing fails."""
    assert blend(torch.empty(2, 0, 4, 4), torch.tensor([[1], [0]]), torch.ones(2, 1, 1, 1)).shape == (2, 0, 4, 4)


def test_a_buffer_that_is_kept_for_a_gradient_is_seen_to_change() -> None:
    """Torch must refuse a backward pass through pixels that are no longer there."""
    images, shares = torch.rand(4, 3, 8, 8), torch.rand(4, 1, 1, 1)
    partners, out = torch.randperm(4).unsqueeze(1), torch.empty(4, 3, 8, 8)
    weight = torch.ones(1, requires_grad=True)
    loss = (weight * blend(images, partners, shares, out=out)).sum()
    blend(images, partners, shares, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Wrapped(Tensor):
    """A tensor of a class of its own."""


def test_whoever_watches_or_transforms_tensor_operations_gets_the_tensor_code() -> None:
    """Compiled code reads memory, of which tracers, gradients and other devices know nothing."""
    plain, graded = torch.zeros(2), torch.zeros(2, requires_grad=True)
    assert compiled.serves(plain)
    assert not compiled.serves(plain, graded)
    with torch.no_grad():
        assert compiled.serves(graded)
    assert not compiled.serves(torch.zeros(2, device="meta"))
    assert not compiled.serves(plain.as_subclass(Wrapped))
    with OperationCounter():
        assert not compiled.serves(plain)
    seen = []
    torch.func.vmap(lambda row: seen.append(compiled.serves(row)) or row)(torch.zeros(3, 2))
    assert seen == [False]


def test_gradients_and_transforms_of_a_blend_are_those_of_the_reference() -> None:
    """`blend` itself, not only the question whether."""
    images, partners, shares = torch.rand(4, 1, 6, 6), torch.tensor([[1], [0], [3], [2]]), torch.rand(4, 1, 1, 1)
    given_images = images.clone().requires_grad_()
    blend(given_images, partners, shares).square().sum().backward()
    transformed = torch.func.grad(lambda pixels: blend(pixels, partners, shares).square().sum())(images)
    assert given_images.grad is not None
    torch.testing.assert_close(transformed, given_images.grad)


@pytest.fixture
def asked_anew() -> Any:
    """Ask again whether compiled code can be used, and forget the answer afterwards."""
    compiled._available.cache_clear()
    yield
    compiled._available.cache_clear()


def test_numba_that_cannot_be_used_is_said_once_and_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, asked_anew: None
) -> None:
    """Numba refuses versions of numpy, and folders that it may not write to."""

    def refuse(name: str) -> types.ModuleType:
        raise RuntimeError("no locator available for file")

    monkeypatch.setattr(compiled, "code", functools.cache(refuse))
    with pytest.warns(RuntimeWarning, match="NUMBA_CACHE_DIR"):
        mixed = rlmix.mix(torch.rand(4, 3, 8, 8), torch.arange(4), num_classes=4, generator=rlmix.Streams([1]))
    again = rlmix.mix(torch.rand(4, 3, 8, 8), torch.arange(4), num_classes=4, generator=rlmix.Streams([1]))
    assert torch.equal(mixed.targets, again.targets)


def test_numba_without_its_compiler_is_left_alone(monkeypatch: pytest.MonkeyPatch, asked_anew: None) -> None:
    """Whoever switches the compiler off wants to see Python run."""
    monkeypatch.setattr(importlib.import_module("numba").config, "DISABLE_JIT", 1)
    assert not compiled.serves(torch.zeros(1))


def test_a_machine_without_numba_uses_the_tensor_code(monkeypatch: pytest.MonkeyPatch, asked_anew: None) -> None:
    """The extra is optional."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not compiled.serves(torch.zeros(1))
