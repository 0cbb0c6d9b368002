"""The Triton kernels that label cells against the torch code, in Triton's interpreter; gpu marks what needs a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rlmix.ops import share_labelling
from rlmix.ops.share_labelling import energy
from rlmix.testing.methods import OperationCounter

pytest.importorskip("triton")

Problem = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def kernels(interpreted: Callable[[str], ModuleType]) -> ModuleType:
    return interpreted("rlmix.ops.share_labelling_triton")


def random_problem(batch: int, height: int, width: int, levels: int, *, low: float = 0.0) -> Problem:
    """Return costs in [0, 1) and weights in [low, 1), as strong as the costs."""
    generator = torch.Generator().manual_seed(height * width + levels)
    unary = torch.rand(batch, height, width, levels, generator=generator)
    right = torch.rand(batch, height, width - 1, generator=generator) * (1 - low) + low
    return unary, right, torch.rand(batch, height - 1, width, generator=generator) * (1 - low) + low


def assert_labels_agree(problem: Problem, found: Tensor, expected: Tensor) -> None:
    """Both run the same sums in the same order on the CPU, so that not even ties may be settled otherwise."""
    assert found.dtype == torch.int64
    assert torch.equal(found, expected), (energy(*problem, found) - energy(*problem, expected)).tolist()


@pytest.mark.parametrize(
    ("height", "width", "levels"),
    [(1, 1, 2), (2, 1, 3), (2, 2, 3), (3, 2, 4), (3, 3, 2), (4, 4, 3), (5, 3, 3), (5, 5, 2), (4, 2, 5)],
)
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_the_exact_labels_are_those_of_the_torch_code(
    kernels: ModuleType, height: int, width: int, levels: int, low: float
) -> None:
    """Weights below 0, narrow grids, and numbers of levels that are no power of two."""
    problem = random_problem(5, height, width, levels, low=low)
    assert_labels_agree(problem, kernels.exact(*problem), share_labelling.exact(*problem))


@pytest.mark.parametrize(
    ("height", "width", "levels", "low"),
    [
        (1, 1, 2, 0.0),
        (1, 4, 3, -1.0),
        (2, 2, 3, -1.0),
        (3, 4, 3, 0.0),
        (4, 2, 4, -1.0),
        (4, 4, 3, 0.0),
        (5, 3, 2, -1.0),
    ],
)
def test_the_labels_by_chains_are_those_of_the_torch_code(
    kernels: ModuleType, height: int, width: int, levels: int, low: float
) -> None:
    """An image has lines of cells beyond its border where sides are no powers of two."""
    problem = random_problem(3, height, width, levels, low=low)
    assert_labels_agree(problem, kernels.chains(*problem, 5, 1), share_labelling.chains(*problem))


@pytest.mark.parametrize(("rounds", "sweeps"), [(1, 0), (2, 2), (3, 0)])
def test_any_number_of_rounds_and_sweeps_is_run(kernels: ModuleType, rounds: int, sweeps: int) -> None:
    """The last round differs from the others, and its direction with the number of rounds."""
    problem = random_problem(3, 3, 3, 3, low=-0.5)
    expected = share_labelling.chains(*problem, rounds=rounds, sweeps=sweeps)
    assert_labels_agree(problem, kernels.chains(*problem, rounds, sweeps), expected)


def test_of_equal_labellings_the_same_is_chosen(kernels: ModuleType) -> None:
    """Costs of 0, 1 and 2 and weights of 0 and 1 leave many labellings of the lowest energy."""
    unary, right, down = random_problem(4, 3, 3, 3)
    problem = (unary * 3).floor(), right.round(), down.round()
    assert_labels_agree(problem, kernels.exact(*problem), share_labelling.exact(*problem))
    assert_labels_agree(problem, kernels.chains(*problem, 5, 1), share_labelling.chains(*problem))


def test_weights_of_the_whole_batch_are_read_for_each_image(kernels: ModuleType) -> None:
    """Puzzle Mix without colours has one weight, expanded."""
    unary = random_problem(3, 3, 3, 3)[0]
    problem = unary, torch.full((1, 1, 1), 0.3).expand(3, 3, 2), torch.full((1, 1, 1), 0.3).expand(3, 2, 3)
    assert_labels_agree(problem, kernels.exact(*problem), share_labelling.exact(*problem))
    assert_labels_agree(problem, kernels.chains(*problem, 2, 1), share_labelling.chains(*problem, rounds=2))


def test_the_operators_keep_torchs_rules(kernels: ModuleType) -> None:
    """Schemas, and shapes without data, by torch's own check."""
    problem = random_problem(2, 2, 2, 2)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.rlmix.label_exactly.default, problem, test_utils=checks)
    torch.library.opcheck(torch.ops.rlmix.label_by_chains.default, (*problem, 1, 1), test_utils=checks)


@pytest.mark.parametrize(
    ("shape", "operator"),
    [
        ((2, 2, 3), "rlmix.label_exactly.default"),
        ((4, 4, 3), "rlmix.label_exactly.default"),
        ((2, 6, 3), "rlmix.label_exactly.default"),
        ((8, 8, 3), "rlmix.label_by_chains.default"),
        ((16, 16, 3), "rlmix.label_by_chains.default"),
        ((33, 8, 3), None),
        ((8, 8, 9), None),
        ((90, 1, 3), None),
    ],
)
def test_the_kernels_are_chosen_on_cuda_for_grids_that_they_hold(
    shape: tuple[int, int, int], operator: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One operation, and no other, on tensors that only say that they are on a GPU."""
    monkeypatch.setattr(share_labelling, "has_kernels", lambda device: True)
    height, width, levels = shape
    with FakeTensorMode():
        problem = (
            torch.empty(3, height, width, levels, device="cuda"),
            torch.empty(3, height, width - 1, device="cuda"),
            torch.empty(3, height - 1, width, device="cuda"),
        )
        with OperationCounter() as counter:
            labels = share_labelling.solve(*problem)
        assert (labels.shape, labels.dtype) == ((3, height, width), torch.int64)
    done = {name for name in counter.counts if name.startswith("rlmix.")}
    assert done == (set() if operator is None else {operator})


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("_exact", {"width": 4, "levels": 3, "padded": 4, "bits": 2, "cells": 16}),
        ("_chains", {"levels": 3, "rows": 8, "columns": 8, "padded": 4}),
    ],
)
def test_the_compiler_takes_what_the_interpreter_took(
    name: str, constants: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an H100, without a GPU; and no product may be fused with a sum, which would change bits."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(importlib.import_module("rlmix.ops.share_labelling_triton"), name)
    types = {"labels": "*i64", "unary": "*fp32", "right": "*fp32", "down": "*fp32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    code = compile(
        ASTSource(kernel, signature, places),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": 1, "enable_fp_fusion": False},
    ).asm["ptx"]
    assert "fma.rn.f32" not in code


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("height", "width", "levels"), [(2, 2, 3), (4, 4, 3), (8, 2, 2), (8, 8, 3), (16, 16, 3), (11, 29, 8), (32, 32, 2)]
)
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_labels_on_a_gpu_are_as_good_as_those_on_the_cpu(height: int, width: int, levels: int, low: float) -> None:
    """The compiled kernels, on larger grids and batches than the interpreter bears.

    Hardly a label may differ; where one does, the energies, sums of at most some thousand numbers below 1, are the same
    but for their rounding.
    """
    problem = random_problem(100, height, width, levels, low=low)
    expected = share_labelling.solve(*problem)
    found = share_labelling.solve(*(part.cuda() for part in problem)).cpu()
    assert float((found == expected).float().mean()) > 0.999
    assert torch.allclose(energy(*problem, found), energy(*problem, expected), rtol=1e-5, atol=1e-5)
