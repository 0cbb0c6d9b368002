"""Puzzle Mix."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlmix import MixInputs, apply
from rlmix.errors import InputError, MethodError
from rlmix.methods.puzzlemix import PuzzleMix
from rlmix.ops import rng, share_labelling
from rlmix.ops.rng import Streams
from rlmix.testing.methods import batch_of


def block_means(maps: Tensor, rows: int, columns: int) -> list[list[float]]:
    """Average the pixels of each cell of one map [H, W], pixel by pixel."""
    height, width = maps.shape
    sums = [[0.0] * columns for _ in range(rows)]
    counts = [[0] * columns for _ in range(rows)]
    for y, x in itertools.product(range(height), range(width)):
        row, column = (y * rows) // height, (x * columns) // width
        sums[row][column] += float(maps[y, x])
        counts[row][column] += 1
    return [[sums[row][column] / counts[row][column] for column in range(columns)] for row in range(rows)]


class SlowEnergy:
    """The published energy of one pair, cell by cell, in plain Python.

    Args:
        maps: the two images' saliency, [H, W] each.
        images: the two images, [C, H, W] each.
        lam: of the prior.
        side: cells per side.
        method: the parameters.
    """

    def __init__(self, maps: list[Tensor], images: list[Tensor], lam: float, side: int, method: PuzzleMix) -> None:
        height, width = maps[0].shape
        self.lam, self.side, self.method = lam, side, method
        self.inner = [max(1, (size // side) // min(method.neighbour, size // side)) for size in (height, width)]
        self.saliency = []
        for one in maps:
            cells = block_means(one, side, side)
            total = sum(map(sum, cells))
            self.saliency.append([[value / total for value in row] for row in cells])
        self.colours = [
            [block_means(channel, side * self.inner[0], side * self.inner[1]) for channel in image] for image in images
        ]

    def border(self, one: int, cell: tuple[int, int], other: int, beside: tuple[int, int]) -> float:
        """Return the mean colour difference between image `one` in a cell and image `other` in the next."""
        down = beside[0] - cell[0]
        far = []
        for step in range(self.inner[1] if down else self.inner[0]):
            here = [cell[axis] * self.inner[axis] for axis in (0, 1)]
            there = [beside[axis] * self.inner[axis] for axis in (0, 1)]
            along, across = (1, 0) if down else (0, 1)
            here[across] += self.inner[across] - 1
            here[along] += step
            there[along] += step
            far += [
                abs(first[here[0]][here[1]] - second[there[0]][there[1]])
                for first, second in zip(self.colours[one], self.colours[other], strict=True)
            ]
        return sum(far) / len(far)

    def of(self, masks: list[list[float]], *, bilinear: bool) -> float:
        """Return the energy of a mask of own shares; with the colour term as published, or as the code rewrites it.

        The two differ by a constant where shares are 0 or 1; it is added here.
        """
        side, method, last = self.side, self.method, self.method.levels - 1
        weight = method.beta / (16 * side)
        first, second = self.saliency
        total = 0.0
        for row, column in itertools.product(range(side), repeat=2):
            m = masks[row][column]
            total += m * second[row][column] + (1 - m) * first[row][column]
            chosen = round(m * last)
            chance = math.comb(last, chosen) * self.lam**chosen * (1 - self.lam) ** (last - chosen)
            total -= method.eta / side**2 * math.log(chance + 1e-8)
            for beside in ((row + 1, column), (row, column + 1)):
                if max(beside) == side:
                    continue
                n = masks[beside[0]][beside[1]]
                d = [
                    [weight * method.gamma * self.border(one, (row, column), other, beside) for other in (0, 1)]
                    for one in (0, 1)
                ]
                total += weight * (m - n) ** 2
                if bilinear:
                    total += m * n * d[0][0] + m * (1 - n) * d[0][1] + (1 - m) * n * d[1][0]
                    total += (1 - m) * (1 - n) * d[1][1] + (d[0][1] + d[1][0]) / 2
                else:
                    total += m * (d[0][0] + d[0][1]) / 2 + (1 - m) * (d[1][0] + d[1][1]) / 2
                    total += n * (d[0][0] + d[1][0]) / 2 + (1 - n) * (d[0][1] + d[1][1]) / 2
                    total += (d[0][1] + d[1][0] - d[0][0] - d[1][1]) / 2 * (m - n) ** 2
        return total


CASES: list[tuple[tuple[int, int], int, dict[str, Any]]] = [
    ((16, 16), 2, {}),
    ((16, 16), 4, {"neighbour": 1, "gamma": 3.0}),
    ((11, 9), 3, {"neighbour": 1, "gamma": 2.0, "beta": 2.0}),
    ((8, 8), 8, {"gamma": 1.0, "levels": 4}),
    ((12, 12), 2, {"neighbour": 2, "levels": 2, "eta": 0.05}),
]


@pytest.mark.parametrize(("size", "side", "params"), CASES)
def test_the_energy_is_the_published_one(size: tuple[int, int], side: int, params: dict[str, Any]) -> None:
    """Slow loops over cells, borders and pixels; whole shares also against the term before it is rewritten."""
    images, _, inputs = batch_of(4, size)
    assert inputs.saliency is not None
    method = PuzzleMix(**params)
    partners, lam = torch.tensor([2, 0, 1, 3]), torch.tensor([0.3, 0.5, 0.9, 0.0])
    problem = method.problem(inputs, partners, lam, side)
    generator = torch.Generator().manual_seed(3)
    last = method.levels - 1
    for whole in (False, True):
        labels = torch.randint(method.levels, (4, side, side), generator=generator)
        if whole:
            labels = (labels > last / 2).long() * last
        found = share_labelling.energy(*problem, labels)
        for row, partner in enumerate(partners.tolist()):
            slow = SlowEnergy(
                [inputs.saliency[row], inputs.saliency[partner]],
                [images[row], images[partner]],
                float(lam[row]),
                side,
                method,
            )
            mask = (1 - labels[row].double() / last).tolist()
            for bilinear in (False, True) if whole else (False,):
                assert math.isclose(float(found[row]), slow.of(mask, bilinear=bilinear), rel_tol=1e-5)


def test_the_mask_is_the_best_of_all_and_its_area_the_label() -> None:
    """All 81 masks of a 2x2 grid, with the lam that the key draws."""
    images, _, inputs = batch_of(6, (8, 8))
    assert inputs.saliency is not None
    method, streams = PuzzleMix(grids=(2,), alpha=0.7), Streams([9])
    plan = method.plan(inputs, streams)
    lam = float(rng.beta(streams.values, rng.LAM, (1,), 0.7))
    for row, partner in enumerate(plan.partners[:, 0].tolist()):
        maps, pair = [inputs.saliency[row], inputs.saliency[partner]], [images[row], images[partner]]
        slow = SlowEnergy(maps, pair, lam, 2, method)
        masks = [[list(cells[:2]), list(cells[2:])] for cells in itertools.product((0.0, 0.5, 1.0), repeat=4)]
        lowest = min(slow.of(mask, bilinear=False) for mask in masks)
        mask = (1 - plan.shares[row, 0]).tolist()
        assert math.isclose(slow.of(mask, bilinear=False), lowest, rel_tol=1e-6)
        expected = sum(map(sum, mask)) / 4 if partner != row else 1.0
        assert math.isclose(float(plan.lam[row]), expected, abs_tol=1e-6)


@pytest.mark.parametrize("scope", ["batch", "image"])
def test_without_saliency_or_smoothness_the_prior_decides(scope: Any) -> None:
    """Uniform maps cost the same everywhere: every cell takes the likeliest share under the image's lam."""
    inputs = MixInputs(40, 8, 8, saliency=torch.ones(40, 8, 8))
    streams = Streams([3])
    plan = PuzzleMix(grids=(4,), beta=0.0, scope=scope).plan(inputs, streams)
    lam = rng.beta(streams.values, rng.LAM, (40 if scope == "image" else 1,), 1.0)[0].expand(40)
    likeliest = torch.stack([lam**2, 2 * lam * (1 - lam), (1 - lam) ** 2]).argmax(0) / 2
    assert torch.equal(plan.shares[:, 0], likeliest.view(40, 1, 1).expand(40, 4, 4))


def test_half_of_the_saliency_on_either_side_is_kept_of_both_images() -> None:
    """One image is salient on the left, the other on the right."""
    maps = torch.full((2, 8, 8), 0.01)
    maps[0, :, :4] = maps[1, :, 4:] = 1.0
    inputs = MixInputs(2, 8, 8, saliency=maps, partners=torch.tensor([1, 0]))
    plan = PuzzleMix(grids=(4,), beta=0.1, eta=0.0).plan(inputs, Streams([0]))
    kept = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(4, 4)
    assert torch.equal(plan.shares[:, 0], torch.stack([kept, 1 - kept]))
    assert plan.lam.tolist() == [0.5, 0.5]


def test_a_salient_cell_that_the_partner_covers_is_moved_into_sight() -> None:
    """The partner's peak is stronger at the same place; the own peak comes to show beside it."""
    maps = torch.full((2, 8, 8), 0.01)
    maps[0, :2, :2], maps[1, :2, :2] = 0.5, 5.0
    inputs = MixInputs(2, 8, 8, saliency=maps, partners=torch.tensor([1, 0]))
    plan = PuzzleMix(grids=(4,), beta=0.0, eta=0.01, t_eps=0.1).plan(inputs, Streams([8]))
    assert plan.moves is not None
    assert plan.moves.shape == (2, 2, 4, 4)
    assert float(plan.shares[0, 0, 0, 0]) == 1.0
    assert float(plan.shares[0, 0, 0, 1]) < 1.0
    assert int(plan.moves[0, 0, 0, 1]) == 0
    pixels = torch.zeros(2, 1, 8, 8)
    pixels[0, 0, :2, :2] = 1.0
    shown = apply(pixels, plan)[0, 0]
    assert torch.equal(shown[:2, 2:4], (1 - plan.shares[0, 0, 0, 1]).expand(2, 2))


@pytest.mark.parametrize(
    ("size", "side", "t_size", "expected"),
    [
        ((32, 32), 2, 4, (8, 8)),
        ((32, 32), 8, 4, (8, 8)),
        ((32, 32), 16, 4, (16, 16)),
        ((32, 32), 2, 32, (2, 2)),
        ((32, 64), 4, None, (8, 16)),
        ((64, 80), 4, None, (4, 4)),
        ((7, 10), 2, 2, (2, 4)),
    ],
)
def test_the_grid_of_moves_is_that_of_the_mask_or_finer(
    size: tuple[int, int], side: int, t_size: int | None, expected: tuple[int, int]
) -> None:
    """At 32 pixels and 4 pixels a cell 8x8, except for the 16x16 mask; the mask's grid always nests in it."""
    plan = PuzzleMix(grids=(side,), t_size=t_size).plan(batch_of(4, size)[2], Streams([1]))
    assert plan.moves is not None
    assert tuple(plan.moves.shape[2:]) == expected


def test_an_image_that_is_its_own_partner_is_not_moved() -> None:
    """A mix with itself must leave an image as it is."""
    images, _, inputs = batch_of(6, (8, 8))
    given = MixInputs(6, 8, 8, saliency=inputs.saliency, images=images, partners=torch.tensor([0, 2, 1, 3, 5, 4]))
    for key in range(4):
        mixed = apply(images, PuzzleMix(t_eps=0.01).plan(given, Streams([key])))
        assert torch.allclose(mixed[[0, 3]], images[[0, 3]], atol=1e-6)


def test_colours_are_left_out_without_images_and_measured_in_the_images_own_range() -> None:
    """Images divided by 0.25 differ four times as much as they are."""
    images, _, inputs = batch_of(8, (16, 16))
    partners, lam = torch.arange(8).flip(0), torch.full((8,), 0.5)
    scaled = images * torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    plain = PuzzleMix().problem(inputs, partners, lam, 4)
    normalised = MixInputs(8, 16, 16, saliency=inputs.saliency, images=scaled)
    for one, other in zip(
        plain, PuzzleMix(deviation=(1.0, 0.5, 0.25)).problem(normalised, partners, lam, 4), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-6)
    without = PuzzleMix().problem(MixInputs(8, 16, 16, saliency=inputs.saliency), partners, lam, 4)
    silent = PuzzleMix(gamma=0.0).problem(inputs, partners, lam, 4)
    assert all(map(torch.equal, without, silent))
    assert not torch.allclose(plain[0], without[0])
    with pytest.raises(InputError, match="`deviation` must be a number or one for each of 3 channels"):
        PuzzleMix(deviation=(1.0, 2.0)).problem(inputs, partners, lam, 4)


def test_one_of_the_published_grids_is_drawn_for_each_group_as_far_as_the_image_admits() -> None:
    """Host choices come from the key; explicit grids must fit."""
    sides = {
        PuzzleMix(transport=False).plan(batch_of(2, (32, 32))[2], Streams([key])).shares.shape[2] for key in range(24)
    }
    assert sides == {2, 4, 8, 16}
    assert {
        PuzzleMix(transport=False).plan(batch_of(2, (7, 9))[2], Streams([key])).shares.shape[2] for key in range(12)
    } == {2, 4}
    assert PuzzleMix().plan(batch_of(2, (1, 5))[2], Streams([0])).shares.shape[2:] == (1, 1)
    with pytest.raises(InputError, match=r"`grids` \(16,\) need images of at least 16 pixels a side, got 8x8"):
        PuzzleMix(grids=(16,)).plan(batch_of(2, (8, 8))[2], Streams([0]))


def test_solvers_agree_where_all_of_them_serve() -> None:
    """The exact mask costs no more than that of the chains, and `auto` is exact on narrow grids."""
    _, _, inputs = batch_of(30, (16, 16))
    streams = Streams([5])
    solvers: tuple[Any, ...] = ("auto", "exact", "chains")
    plans = {name: PuzzleMix(grids=(4,), solver=name).plan(inputs, streams) for name in solvers}
    assert plans["auto"].equal(plans["exact"])
    lam = rng.beta(streams.values, rng.LAM, (1,), 1.0).expand(1, 30).flatten()
    problem = PuzzleMix().problem(inputs, plans["auto"].partners[:, 0], lam, 4)
    exact, chains = (
        share_labelling.energy(*problem, (plans[name].shares[:, 0] * 2).long()) for name in ("exact", "chains")
    )
    assert bool((exact <= chains + 1e-6).all())
    assert torch.allclose(exact.mean(), chains.mean(), rtol=1e-4)


def test_a_plan_compiles_into_one_graph_that_serves_every_key() -> None:
    """Unrolled rounds must not break the graph, nor a new key compile again."""
    images, _, inputs = batch_of(4, (16, 16))
    assert inputs.saliency is not None
    method, graphs = PuzzleMix(grids=(4,)), []

    def mixed(images: Tensor, maps: Tensor, streams: Streams) -> Tensor:
        return apply(images, method.plan(MixInputs(4, 16, 16, saliency=maps, images=images), streams))

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(mixed, fullgraph=True, backend=backend)
    for key in (1, 2):
        assert torch.equal(
            compiled(images, inputs.saliency, Streams([key])), mixed(images, inputs.saliency, Streams([key]))
        )
    assert len(graphs) == 1


def test_bad_parameters_are_refused() -> None:
    """Each message names the parameter."""
    for params, message in (
        ({"alpha": 0.0}, "`alpha` must be a number above 0"),
        ({"levels": 1}, "`levels` must be a whole number of at least 2, got 1"),
        ({"beta": -1.0}, "`beta` must be a number in"),
        ({"gamma": -1.0}, "`gamma` must be a number in"),
        ({"eta": -0.1}, "`eta` must be a number in"),
        ({"neighbour": 0}, "`neighbour` must be a whole number of at least 1, got 0"),
        ({"deviation": 0.0}, "`deviation` must be a number above 0"),
        ({"t_eps": 0.0}, "`t_eps` must be a number above 0"),
        ({"t_size": 0}, "`t_size` must be a whole number of at least 1, got 0"),
        ({"grids": ()}, "`grids` must be whole numbers of at least 1 or None"),
        ({"solver": "gco"}, "`solver` must be one of 'auto', 'exact', 'chains', got 'gco'"),
    ):
        with pytest.raises(MethodError, match=message):
            PuzzleMix(**params)
