"""rlmix.ops.boxes, against loops."""

from __future__ import annotations

import torch

from rlmix.ops import boxes
from rlmix.ops.blend import coordinates


def test_intervals_cover_the_pixels_that_a_loop_covers() -> None:
    """Clipped at both borders, empty for sides below two."""
    for size in (1, 5, 8):
        for centre in range(size):
            for side in range(size + 1):
                first, last = boxes.centred(torch.tensor([centre]), torch.tensor([side]), size)
                low, high = max(centre - side // 2, 0), min(centre + side // 2, size)
                assert (int(first), int(last)) == (low, high)
                covered = [1.0 if low <= pixel < high else 0.0 for pixel in range(size)]
                assert boxes.interval(first, last, size).tolist() == [covered]


def test_an_interval_inside_has_every_place_equally_often() -> None:
    """Numbers spread evenly over [0, 1) meet each of the size - side + 1 places alike, the ends included."""
    for size in (1, 5, 224):
        for side in (0, 1, size // 2, size):
            places = size - side + 1
            positions = (torch.arange(4 * places) + 0.5) / (4 * places)
            first, last = boxes.inside(positions, torch.full((4 * places,), side), size)
            assert first.tolist() == [place for place in range(places) for _ in range(4)]
            assert torch.equal(last - first, torch.full_like(first, side))
    highest = torch.tensor([1.0 - 2.0**-24])
    for size in range(1, 1025):
        assert int(boxes.inside(highest, torch.zeros(1, dtype=torch.int64), size)[0]) == size


def test_a_lattice_begins_every_period() -> None:
    """Against a remainder, for holes from nothing to the whole period."""
    for size in (1, 7, 12):
        for period in (1, 3, 12):
            for side in range(period + 1):
                expected = [1.0 if pixel % period < side else 0.0 for pixel in range(size)]
                assert boxes.lattice(torch.tensor([side]), period, size).tolist() == [expected]


def test_a_source_fits_an_interval_without_a_rounding_error() -> None:
    """Pixel k of an interval of n shows pixel (k * size) // n of the source, in whole numbers, for every n."""
    for size in (*range(1, 41), 224, 333, 1024):
        sides = torch.arange(1, size + 1)
        first = (sides * 7919) % (size - sides + 1)
        scale, shift = boxes.fit(first, first + sides, size)
        one, zero = torch.ones_like(scale), torch.zeros_like(scale)
        rows, _, _ = coordinates((size, 1), None, torch.stack([scale, one, shift, zero], 1), torch.device("cpu"))
        offset = torch.arange(size) - first.unsqueeze(1)
        inside = (offset >= 0) & (offset < sides.unsqueeze(1))
        expected = (offset * size) // sides.unsqueeze(1)
        assert torch.equal(rows.squeeze(2)[inside], expected[inside])


def test_an_interval_around_a_centre_is_the_centred_one() -> None:
    """Two ways to the same pixels, in whole numbers and in floating point."""
    for size in (1, 5, 8, 224):
        centre = torch.arange(size).repeat_interleave(size + 1)
        side = torch.arange(size + 1).repeat(size)
        expected = boxes.interval(*boxes.centred(centre, side, size), size)
        assert torch.equal(boxes.around(centre.float(), (side // 2).float(), size), expected)
