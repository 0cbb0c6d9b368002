"""Moving cells, against the published rounds written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlmix.ops.transport import assign
from rlmix.testing.methods import OperationCounter


def slow_rounds(gains: Tensor, seen: Tensor, scale: float) -> list[int]:
    """Follow the published rounds for one image, on the whole matrix of costs in double precision.

    Args:
        gains: [h, w].
        seen: bool [h, w].
        scale: the cost of a move across the grid.

    Returns:
        The cell that won each place, or -1.
    """
    height, width = gains.shape
    count, rounds = height * width, max(height, width)
    worth, visible = gains.double().flatten().tolist(), seen.flatten().tolist()
    cost = [[0.0] * count for _ in range(count)]
    for cell in range(count):
        for place in range(count):
            far = (cell // width - place // width) ** 2 + (cell % width - place % width) ** 2
            cost[cell][place] = scale * far / max(1, rounds - 1) ** 2 - worth[cell] * visible[place]
    won = [-1] * count
    for _ in range(rounds):
        bids = [min(range(count), key=cost[cell].__getitem__) for cell in range(count)]
        for place in range(count):
            # The minimum of plan * cost: the cells that do not bid count as 0.
            fight = [cost[cell][place] if bids[cell] == place else 0.0 for cell in range(count)]
            first = min(range(count), key=fight.__getitem__)
            won[place] = first if bids[first] == place else -1
        for cell in range(count):
            if won[bids[cell]] != cell:
                cost[cell][bids[cell]] += 1.0
    return won


def normalised(maps: Tensor) -> Tensor:
    """Return maps with sum 1."""
    return maps / maps.sum((1, 2), keepdim=True)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 4), (5, 3), (6, 6)])
@pytest.mark.parametrize("power", [1.0, 6.0])
@pytest.mark.parametrize("scale", [0.05, 0.3])
def test_it_gives_what_the_published_rounds_give(height: int, width: int, power: float, scale: float) -> None:
    """Flat and peaked maps, cheap and dear moves; what is shown where nothing is seen does not matter."""
    generator = torch.Generator().manual_seed(height * width)
    gains = normalised(torch.rand(12, height, width, generator=generator) ** power)
    seen = torch.rand(12, height, width, generator=generator) < torch.linspace(0.1, 0.9, 12).view(-1, 1, 1)
    shown = assign(gains, seen, scale)
    assert shown.dtype == torch.int32
    moved = 0
    for image in range(12):
        expected = slow_rounds(gains[image], seen[image], scale)
        for place, cell in enumerate(shown[image].flatten().tolist()):
            if bool(seen[image].flatten()[place]):
                assert cell == expected[place]
                moved += cell != place
            else:
                assert cell == place
                assert expected[place] == -1 or expected[place] == place
    assert moved > 0


def test_an_image_that_is_seen_everywhere_stays() -> None:
    """Every cell's cheapest place is its own."""
    gains = normalised(torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(0)))
    still = torch.arange(16, dtype=torch.int32).view(4, 4)
    assert torch.equal(assign(gains, torch.ones(5, 4, 4, dtype=torch.bool), 0.8), still.expand(5, 4, 4))
    assert torch.equal(assign(gains, torch.zeros(5, 4, 4, dtype=torch.bool), 0.8), still.expand(5, 4, 4))


def test_a_salient_cell_out_of_sight_takes_the_nearest_place_in_sight() -> None:
    """The cell that it drives away is worth less and finds no other place that is worth the way."""
    gains = torch.full((1, 3, 3), 0.01)
    gains[0, 0, 0] = 0.92
    seen = torch.zeros(1, 3, 3, dtype=torch.bool)
    seen[0, 0, 2] = seen[0, 2, 2] = True
    assert assign(gains, seen, 0.8)[0].tolist() == [[0, 1, 0], [3, 4, 5], [6, 7, 8]]


def test_of_equal_bids_the_first_cell_wins() -> None:
    """Two cells out of sight, as far from the only place and worth as much."""
    gains = torch.tensor([[[0.45, 0.1, 0.45]]])
    seen = torch.tensor([[[False, True, False]]])
    assert assign(gains, seen, 0.8)[0].tolist() == [[0, 0, 2]]


def test_a_cell_without_saliency_keeps_its_place_if_nobody_wants_it() -> None:
    """No bid for it is below 0: where the released code shows zeros."""
    gains = torch.tensor([[[0.0, 1.0]]])
    assert assign(gains, torch.tensor([[[True, True]]]), 0.8)[0].tolist() == [[0, 1]]


def test_images_do_not_see_each_other_and_cost_no_operations() -> None:
    """What an image gets depends neither on the batch nor on its place; nothing is read back."""
    generator = torch.Generator().manual_seed(3)
    gains = normalised(torch.rand(7, 4, 4, generator=generator))
    seen = torch.rand(7, 4, 4, generator=generator) < 0.5
    together = assign(gains, seen, 0.8)
    counts = []
    for rows in (slice(0, 1), slice(2, 6)):
        with OperationCounter() as counter:
            alone = assign(gains[rows], seen[rows], 0.8)
        assert torch.equal(alone, together[rows])
        assert counter.read_backs == []
        counts.append(counter.counts)
    assert counts[0] == counts[1]
