"""rlmix.ops.grid, against loops over pixels."""

from __future__ import annotations

import pytest
import torch

from rlmix.ops import grid

CASES = [((8, 8), (2, 4)), ((7, 10), (3, 4)), ((5, 5), (5, 1)), ((9, 6), (4, 6)), ((32, 31), (7, 7))]


@pytest.mark.parametrize(("size", "shape"), CASES)
def test_every_function_follows_the_one_rule(size: tuple[int, int], shape: tuple[int, int]) -> None:
    """Expansion, pooling, areas and means must agree on which pixel lies in which cell."""
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(2, *shape, generator=generator)
    maps = torch.rand(2, *size, generator=generator)
    sums, counts = torch.zeros(2, *shape), torch.zeros(shape)
    expanded = torch.zeros(2, *size)
    for y in range(size[0]):
        for x in range(size[1]):
            cell = (y * shape[0] // size[0], x * shape[1] // size[1])
            expanded[:, y, x] = values[:, cell[0], cell[1]]
            sums[:, cell[0], cell[1]] += maps[:, y, x]
            counts[cell] += 1
    assert torch.equal(grid.expand(values, size), expanded)
    assert torch.allclose(grid.pool(maps, shape), sums / counts, atol=1e-6)
    assert torch.allclose(grid.areas(size, shape), counts / counts.sum(), atol=1e-7)
    assert torch.allclose(grid.mean(values, size), expanded.mean((1, 2)), atol=1e-6)
    for length, count in zip(size, shape, strict=True):
        first = [min(i for i in range(length) if i * count // length == cell) for cell in range(count)]
        assert grid.starts(length, count).tolist() == first


def test_grids_nest_exactly() -> None:
    """Plans on different grids are joined on a common one, which must not move a border by a pixel."""
    for size in range(1, 40):
        for count in range(1, size + 1):
            for times in range(1, 4):
                assert torch.equal(grid.cells(size, count), grid.cells(size, count * times) // times)


def test_a_map_coarser_than_the_grid_is_expanded() -> None:
    """A network's features may have fewer cells than a method asks for."""
    maps = torch.arange(4.0).view(1, 2, 2)
    assert torch.equal(grid.pool(maps, (4, 4)), grid.expand(maps, (4, 4)))
    assert torch.equal(grid.pool(maps, (4, 1)), grid.expand(maps.mean(2, keepdim=True), (4, 1)))


def test_expansion_to_the_same_size_copies_nothing() -> None:
    """A mask of full resolution is used as it is."""
    values = torch.rand(2, 3, 4, 5)
    assert grid.expand(values, (4, 5)).data_ptr() == values.data_ptr()
