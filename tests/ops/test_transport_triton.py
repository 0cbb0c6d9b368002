"""The Triton kernel of the transport against the torch code, in Triton's interpreter; what needs a GPU is marked so."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rlmix.ops import transport
from rlmix.testing.methods import OperationCounter

pytest.importorskip("triton")


@pytest.fixture
def kernels(interpreted: Callable[[str], ModuleType]) -> ModuleType:
    return interpreted("rlmix.ops.transport_triton")


def random_problem(batch: int, height: int, width: int, power: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return gains with sum 1, the more peaked the higher the power, and from no to nearly all places seen."""
    generator = torch.Generator().manual_seed(seed)
    gains = torch.rand(batch, height, width, generator=generator) ** power
    seen = torch.rand(batch, height, width, generator=generator) < torch.linspace(0.0, 0.9, batch).view(-1, 1, 1)
    return gains / gains.sum((1, 2), keepdim=True), seen


def cost_of(scale: float, height: int, width: int) -> float:
    """Return the cost of a move to the next cell."""
    return scale / max(1, max(height, width) - 1) ** 2


@pytest.mark.parametrize(
    ("height", "width", "power"),
    [(1, 1, 1.0), (1, 2, 1.0), (2, 2, 1.0), (4, 4, 1.0), (5, 3, 6.0), (3, 6, 2.0), (7, 7, 6.0), (1, 9, 4.0)],
)
@pytest.mark.parametrize("scale", [0.05, 0.8])
def test_the_moves_are_those_of_the_torch_code(
    kernels: ModuleType, height: int, width: int, power: float, scale: float
) -> None:
    """Flat and peaked maps, cheap and dear moves; numbers of cells that are no power of two."""
    gains, seen = random_problem(6, height, width, power)
    expected = transport.assign(gains, seen, scale)
    shown = kernels.assign(gains, seen, cost_of(scale, height, width))
    assert shown.dtype == torch.int32
    assert torch.equal(shown, expected)


def test_equal_bids_and_maps_with_one_peak_are_settled_alike(kernels: ModuleType) -> None:
    """Gains in steps of an eighth, and 1 in a single cell; cells out of sight as well."""
    gains, seen = random_problem(8, 4, 4, 1.0, seed=1)
    gains = (gains * 64).round() / 8
    gains[0] = 0.0
    gains[0, 1, 1] = 1.0
    seen[0] = False
    seen[0, 3, 3] = True
    gains = gains.clamp(0.0, 1.0)
    for scale in (1e-9, 0.3):
        shown = kernels.assign(gains, seen, cost_of(scale, 4, 4))
        assert torch.equal(shown, transport.assign(gains, seen, scale))


def test_blocks_of_places_make_no_difference(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large grids are looked at block by block; here blocks of 2 places out of 25."""
    gains, seen = random_problem(3, 5, 5, 6.0)
    monkeypatch.setattr(kernels, "_PAIRS", 1)
    shown = kernels.assign(gains, seen, cost_of(0.3, 5, 5))
    assert torch.equal(shown, transport.assign(gains, seen, 0.3))


def test_the_operator_keeps_torchs_rules(kernels: ModuleType) -> None:
    """Its schema, and shapes without data, by torch's own check."""
    gains, seen = random_problem(2, 2, 3, 1.0)
    torch.library.opcheck(
        torch.ops.rlmix.assign.default, (gains, seen, 0.2), test_utils=("test_schema", "test_faketensor")
    )


def test_the_kernel_is_chosen_on_cuda_for_grids_that_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """One operation, and no other, on tensors that only say that they are on a GPU."""
    monkeypatch.setattr(transport, "has_kernels", lambda device: True)
    with FakeTensorMode():
        for side, fused in ((32, True), (33, False)):
            gains = torch.empty(3, side, side, device="cuda")
            seen = torch.empty(3, side, side, device="cuda", dtype=torch.bool)
            with OperationCounter() as counter:
                shown = transport.assign(gains, seen, 0.8)
            assert (shown.shape, shown.dtype) == (gains.shape, torch.int32)
            assert ("rlmix.assign.default" in counter.counts) == fused
            if fused:
                assert {name for name in counter.counts if not name.startswith("prim.")} == {"rlmix.assign.default"}


def test_the_compiler_takes_what_the_interpreter_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an H100, without a GPU; and no product may be fused with a sum, which would change bits."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = importlib.import_module("rlmix.ops.transport_triton")._assign
    types = {"shown": "*i32", "gains": "*fp32", "seen": "*u8", "cost": "fp32"}
    constants = {"cells": 64, "at_once": 64}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    code = compile(
        ASTSource(kernel, signature, places),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": 4, "enable_fp_fusion": False},
    ).asm["ptx"]
    assert "fma.rn.f32" not in code


@pytest.mark.gpu
@pytest.mark.parametrize(("height", "width"), [(2, 2), (8, 8), (16, 16), (32, 32), (7, 29)])
@pytest.mark.parametrize("power", [1.0, 6.0])
def test_the_moves_on_a_gpu_are_those_on_the_cpu(height: int, width: int, power: float) -> None:
    """The compiled kernel, on larger grids and batches than the interpreter bears."""
    gains, seen = random_problem(100, height, width, power)
    for scale in (0.05, 0.8):
        expected = transport.assign(gains, seen, scale)
        assert torch.equal(transport.assign(gains.cuda(), seen.cuda(), scale).cpu(), expected)
