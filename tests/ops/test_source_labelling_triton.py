"""The Triton kernel of Co-Mixup's rounds against the torch code, in Triton's interpreter; GPU tests are marked so."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rlmix.ops import source_labelling
from rlmix.ops.source_labelling import KEPT, Exact, Inner, Instance, Multistart, inner_energy, one_by_one, solve
from rlmix.testing.methods import OperationCounter

pytest.importorskip("triton")

CPU = torch.device("cpu")


@pytest.fixture
def kernels(interpreted: Callable[[str], ModuleType]) -> ModuleType:
    return interpreted("rlmix.ops.source_labelling_triton")


def instance_of(partitions: int, count: int, side: int, seed: int, **changes: Any) -> Instance:
    """Return an instance of the published form, smoother and with a compatibility that matters."""
    generator = torch.Generator().manual_seed(seed)
    saliency = torch.rand(partitions, count, side**2, generator=generator, dtype=torch.float64) ** 2
    compatibility = torch.rand(partitions, count, count, generator=generator, dtype=torch.float64) / count
    instance = Instance(
        costs=-saliency / saliency.sum(2, keepdim=True),
        compatibility=0.8 * torch.eye(count, dtype=torch.float64) + 0.1 * (compatibility + compatibility.mT),
        smoothness=0.4 / side**2,
        diversity=0.3 / side**2,
        threshold=0.7 * side**2,
        soft_threshold=False,
        soft_labels=True,
        resolve=True,
        rounds=3,
    )
    return replace(instance, **changes)


def start_of(instance: Instance) -> Tensor:
    """Return a random start, int64 [P, m, cells]."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(instance.costs.shape[1], tuple(instance.costs.shape), generator=generator)


@pytest.mark.parametrize(
    ("side", "inputs", "partitions", "candidates", "changes"),
    [
        (2, 4, 2, 5, {}),
        (2, 8, 1, 2, {"rounds": 2}),
        (3, 4, 1, 2, {}),
        (3, 3, 1, 5, {"soft_labels": False}),
        (4, 3, 1, 5, {"resolve": False}),
        (4, 5, 1, 3, {"soft_threshold": True, "rounds": 2}),
    ],
)
def test_rounds_by_the_kernel_are_those_of_the_torch_code(
    kernels: ModuleType,
    side: int,
    inputs: int,
    partitions: int,
    candidates: int,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the label, over all rounds: a label that differs would change what is seen afterwards."""
    instance = instance_of(partitions, inputs, side, seed=inputs, **changes)
    start, visit = start_of(instance), one_by_one(Exact(side, side, inputs, CPU, candidates=candidates))
    expected = solve(instance, start, visit)
    assert bool((expected[..., 0] != expected[..., 1]).any()) == instance.soft_labels
    monkeypatch.setattr(Exact, "is_fused", lambda *_: True)
    assert torch.equal(solve(instance, start, visit), expected)


@pytest.mark.parametrize(("height", "width"), [(2, 3), (3, 2)])
def test_the_kernel_looks_at_the_labels_that_the_torch_code_looks_at(
    kernels: ModuleType, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a single candidate in each cell, the labels are what is kept and the best beliefs alone.

    There are not more cells than labels that are kept: labels that are the cheapest somewhere are all equally near.
    """
    generator = torch.Generator().manual_seed(width)
    costs = torch.rand(2, 9, height * width, generator=generator, dtype=torch.float64)
    instance = instance_of(2, 9, 2, seed=0, costs=costs, smoothness=0.3, diversity=0.02, threshold=0.0, rounds=1)
    visit = one_by_one(Exact(height, width, 9, CPU, kept=6, sweeps=3, candidates=1))
    expected = solve(instance, start_of(instance), visit)
    monkeypatch.setattr(Exact, "is_fused", lambda *_: True)
    assert torch.equal(solve(instance, start_of(instance), visit), expected)


def test_where_many_labellings_cost_the_same_one_of_the_cheapest_is_found(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without saliency the shares of an output may lie anywhere: the cost counts, not the label."""
    instance = instance_of(2, 4, 2, seed=0, costs=torch.full((2, 4, 4), -0.25, dtype=torch.float64), rounds=1)
    problems, exact = [], Exact(2, 2, 4, CPU)

    def record(unary: Tensor, smooth: Tensor) -> Tensor:
        problems.append((unary, smooth))
        return exact(unary, smooth)

    expected = solve(instance, start_of(instance), one_by_one(record))[:, 0, :, 0]
    monkeypatch.setattr(Exact, "is_fused", lambda *_: True)
    shown = solve(instance, start_of(instance), one_by_one(exact))[:, 0, :, 0]
    best, found = (inner_energy(*problems[0], labels, 2, 2) for labels in (expected, shown))
    torch.testing.assert_close(found, best, atol=1e-12, rtol=0.0)


def test_the_operator_keeps_torchs_rules(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema and shapes without data, by torch's own check."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 2, 4, 2), (1, 2, 2, 2), (1, 2, 2, 2), (1, 2, 2, 2), (1, 2, 2), (1, 2, 2))
    tensors = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    arguments = (*tensors, 1.0, False, (2, 2), (10, 4, 2))
    torch.library.opcheck(
        torch.ops.rlmix.visit_outputs.default, arguments, test_utils=("test_schema", "test_faketensor")
    )


def operations(inputs: int, inner: Callable[[], Inner]) -> Counter[str]:
    """Return what is called to solve an instance whose tensors only say that they are on a GPU."""
    instance = instance_of(5, inputs, 4, seed=0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        costs = torch.empty(instance.costs.shape, dtype=torch.float64, device="cuda")
        compatibility = torch.empty(instance.compatibility.shape, dtype=torch.float64, device="cuda")
        start = torch.zeros(costs.shape, dtype=torch.int64, device="cuda")
        visit = one_by_one(inner())
        with OperationCounter() as counter:
            shown = solve(replace(instance, costs=costs, compatibility=compatibility), start, visit)
        assert (shown.shape, shown.dtype) == ((5, inputs, 16, 2), torch.int64)
    return Counter(counter.counts)


def test_the_kernel_is_chosen_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch a round, and as many operations besides for 20 inputs as for 6; other solvers stay in torch."""
    monkeypatch.setattr(source_labelling, "has_kernels", lambda device: True)
    few, many = (operations(inputs, lambda: Exact(4, 4, 20, torch.device("cuda"))) for inputs in (6, 20))
    assert few["rlmix.visit_outputs.default"] == 3
    assert few == many
    starts = operations(2, lambda: Multistart(4, 4, torch.empty(5, 8, 16, device="cuda")))
    assert not any(name.startswith("rlmix") for name in starts)


def test_the_kernel_compiles_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an H100, at the published size, without one: lanes wait for each other, and products are not fused."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = importlib.import_module("rlmix.ops.source_labelling_triton")
    costs, uses = torch.empty(5, 20, 16, 23, device="meta"), torch.empty(5, 20, 20, device="meta")
    arguments = {"soft": False, **kernels._described(costs, uses, (4, 4), (10, 4, 5))}
    options = {name: arguments.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    signature, constants = {}, {}
    for number, parameter in enumerate(kernels._visit.params):
        name = parameter.name
        if parameter.is_constexpr:
            signature[name], constants[(number,)] = "constexpr", arguments[name]
        elif name in arguments:
            signature[name] = "i32"
        else:
            signature[name] = {"chosen": "*i64", "integers": "*i32"}.get(name, "*fp64")
    source = ASTSource(kernels._visit, signature, constants)
    code = compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert "bar.sync" in code
    assert "fma.rn.f64" not in code


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("changes", [{}, {"soft_threshold": True}, {"soft_labels": False}, {"resolve": False}])
def test_rounds_on_a_gpu_are_those_of_the_torch_code(
    seed: int, changes: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled kernel, for a batch of 100 in partitions of 20, grids of all sizes."""
    device = torch.device("cuda")
    side = (4, 3, 2)[seed % 3]
    instance = instance_of(5, 20, side, seed, rounds=4, **changes)
    instance = replace(instance, costs=instance.costs.to(device), compatibility=instance.compatibility.to(device))
    # By the soft rule more than 10 labels may be the cheapest somewhere, and so equally near.
    kept = 16 if instance.soft_threshold else KEPT
    start, visit = start_of(instance).to(device), one_by_one(Exact(side, side, 20, device, kept=kept))
    shown = solve(instance, start, visit)
    monkeypatch.setattr(Exact, "is_fused", lambda *_: False)
    assert torch.equal(shown, solve(instance, start, visit))
