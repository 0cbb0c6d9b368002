"""Co-Mixup, against a literal set-up of its optimisation; `tests/ops/test_source_labelling.py` has the optimisation."""

from __future__ import annotations

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor

from rlmix import MixInputs, apply
from rlmix.errors import InputError, MethodError
from rlmix.methods import get
from rlmix.ops import rng
from rlmix.ops.gamma import dirichlet
from rlmix.ops.rng import Streams
from rlmix.ops.source_labelling import Exact, Instance, one_by_one, solve
from rlmix.testing.methods import batch_of, sources_seen


def literal_place(saliency: np.ndarray, *, fine: bool) -> tuple[int, int]:
    """Return where the window of 8x8 pixels (of a coarse map: the cell) is most salient."""
    side = 8 if fine else 1
    best, found = -1.0, (0, 0)
    for row in range(saliency.shape[0] - side + 1):
        for column in range(saliency.shape[1] - side + 1):
            total = float(saliency[row : row + side, column : column + side].mean(dtype=np.float64))
            if total > best + 1e-9:
                best, found = total, (row, column)
    return found


def literal_instance(maps: Tensor, keys: Tensor, *, fine: bool, omega: float, grid: int = 4) -> Instance:
    """Set the optimisation of one partition up in loops, as published."""
    count, cells = maps.shape[0], grid * grid
    step = maps.shape[1] // grid
    prior = dirichlet(keys, rng.PRIOR, (1, count), 2.0)[0, 0]
    costs = torch.zeros(1, count, cells, dtype=torch.float64)
    for one in range(count):
        pooled = [
            maps[one, row * step : (row + 1) * step, column * step : (column + 1) * step].double().mean()
            for row in range(grid)
            for column in range(grid)
        ]
        for cell in range(cells):
            costs[0, one, cell] = -pooled[cell] / sum(pooled) - 0.05 / cells * torch.log(prior[one] + 1e-8)
    places = [literal_place(image.numpy(), fine=fine) for image in maps]
    apart = torch.tensor(
        [[abs(one[0] - two[0]) + abs(one[1] - two[1]) for two in places] for one in places], dtype=torch.float64
    )
    share = apart * count / apart.sum() if apart.sum() > 0 else torch.eye(count)
    return Instance(
        costs=costs,
        compatibility=((1 - omega) * torch.eye(count, dtype=torch.float64) + omega * share).unsqueeze(0),
        smoothness=0.32 / cells,
        diversity=1.0 / cells,
        threshold=0.83 * cells,
        soft_threshold=False,
        soft_labels=True,
        resolve=True,
        rounds=4,
    )


@pytest.mark.parametrize("fine", [True, False], ids=["image", "coarse"])
@pytest.mark.parametrize("flat", [False, True], ids=["saliency", "all places coincide"])
def test_a_partition_is_the_published_optimisation(fine: bool, flat: bool) -> None:
    """Pooling, prior, most salient places, compatibility and the order of rows, from the map to the pixels."""
    images, labels, inputs = batch_of(7, (16, 16), seed=4)
    maps = torch.rand(7, *((16, 16) if fine else (8, 8)), generator=torch.Generator().manual_seed(2)) ** 4
    maps = torch.ones_like(maps) if flat else maps
    streams = Streams([3])
    plan = get("comixup", omega=0.3, partition=7).plan(dataclasses.replace(inputs, saliency=maps), streams)
    instance = literal_instance(maps, streams.values, fine=fine, omega=0.3)
    start = rng.integers(streams.values, rng.LABELS, (7, 16), 7)
    shown = solve(instance, start, one_by_one(Exact(4, 4, 7, torch.device("cpu"))))[0]
    expected = torch.nn.functional.one_hot(shown, 7).float().mean(2).view(7, 4, 4, 7).permute(0, 3, 1, 2)
    expected = expected.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(sources_seen(plan), expected)
    assert torch.allclose(plan.soft_targets(labels, 7), expected.mean((2, 3)))
    assert torch.allclose(apply(images, plan), torch.einsum("oihw,ichw->ochw", expected, images), atol=1e-6)


def test_rows_are_partitioned_in_their_order_and_the_rest_is_a_smaller_partition() -> None:
    """The last batch of an epoch is seldom a multiple of the partition."""
    method = get("comixup", partition=4, threshold=0.5)
    for batch, blocks in ((11, (4, 4, 3)), (9, (4, 4, 1)), (3, (3,))):
        images, _, inputs = batch_of(2 * batch, (16, 16), groups=2, seed=batch)
        plan = method.plan(inputs, Streams([1, 2]))
        allowed = torch.block_diag(*[torch.ones(size, size) for size in 2 * blocks])
        seen = sources_seen(plan).sum((2, 3)) > 0
        assert not bool((seen & (allowed == 0)).any())
        assert bool((seen & (torch.eye(2 * batch) == 0)).any())
        if blocks[-1] == 1:
            assert torch.equal(apply(images, plan)[batch - 1 :: batch], images[batch - 1 :: batch])


def test_partitions_draw_numbers_of_their_own() -> None:
    """Equal maps in two partitions must not be mixed alike."""
    maps = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(3, 1, 1)
    plan = get("comixup", partition=5).plan(MixInputs(15, 8, 8, saliency=maps), Streams([8]))
    first, second, third = (plan.partners % 5).split(5)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_outputs_show_salient_cells_of_several_inputs_and_no_input_rules() -> None:
    """The point of the method: what is shown is more salient than by chance, and shared out evenly."""
    generator = torch.Generator().manual_seed(6)
    maps = torch.rand(40, 4, 4, generator=generator) ** 3
    plan = get("comixup").plan(MixInputs(40, 8, 8, saliency=maps), Streams([2]))
    seen = sources_seen(plan)[:, :, ::2, ::2]
    saliency = maps / maps.sum((1, 2), keepdim=True)
    # 40 cells' worth of 1/16 each, 16 cells an output: by chance an output shows saliency of 1.
    assert float((seen * saliency).sum()) > 1.3 * 40
    inputs = (seen.sum((2, 3)) > 0).sum(1)
    assert 1.5 < float(inputs.float().mean()) < 5.0
    use = seen.sum((0, 2, 3)) / 16
    assert float(use.max()) < 2.0
    assert float(plan.lam.min()) == 0.0


def test_the_solvers_agree_but_for_a_few_cells() -> None:
    """They solve the same problems; a tie or a missed optimum changes what follows."""
    maps = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(1))
    inputs = MixInputs(8, 8, 8, saliency=maps)
    solvers = ["exact", "icm"] + (["compiled"] if importlib.util.find_spec("numba") else [])
    shown = [
        sources_seen(get("comixup", solver=solver, partition=4, grid=2).plan(inputs, Streams([0])))
        for solver in solvers
    ]
    for other in shown[1:]:
        assert float((other == shown[0]).float().mean()) > 0.9


def test_the_compiled_solver_refuses_what_it_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra that is missing is named with the command that installs it."""
    with pytest.raises(MethodError, match="grids of"):
        get("comixup", solver="compiled", grid=8)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    elsewhere = MixInputs(4, 8, 8, saliency=torch.ones(4, 8, 8), device="meta")
    with pytest.raises(InputError, match="needs tensors on the CPU"):
        get("comixup", solver="compiled").plan(elsewhere, Streams([0]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MethodError, match=r"pip install rlmix\[jit\]"):
        get("comixup", solver="compiled")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"grid": 1}, "`grid` must be a whole number of at least 2, got 1"),
        ({"partition": 1.5}, "`partition` must be a whole number of at least 2, got 1.5"),
        ({"rounds": 0}, "`rounds` must be a whole number of at least 1, got 0"),
        ({"beta": -1.0}, "`beta` must be a number in"),
        ({"omega": 1.5}, "`omega` must be a number in"),
        ({"alpha": 0.0}, "`alpha` must be a number above 0"),
        ({"threshold_rule": "none"}, "`threshold_rule` must be one of"),
        ({"solver": "gco"}, "`solver` must be one of"),
        ({"solver": "exact", "grid": 8}, "grids of"),
    ],
)
def test_a_parameter_out_of_range_is_refused(params: dict[str, object], message: str) -> None:
    """A typing slip must not become a silent other augmentation."""
    with pytest.raises(MethodError, match=message):
        get("comixup", **params)


def test_an_image_smaller_than_the_grid_is_refused() -> None:
    """A cell without a pixel has no area to give a label."""
    with pytest.raises(InputError, match="finer than the image"):
        get("comixup").plan(MixInputs(4, 3, 8, saliency=torch.ones(4, 3, 8)), Streams([0]))
