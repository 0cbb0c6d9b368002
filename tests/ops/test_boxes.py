"""rlmix.ops.boxes, against loops."""

from __future__ import annotations

import torch

from rlmix.ops import boxes


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
