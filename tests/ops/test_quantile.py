"""rlmix.ops.quantile."""

from __future__ import annotations

import torch

from rlmix.ops.quantile import row_quantile


def test_it_is_the_diagonal_of_the_table_that_torch_quantile_builds() -> None:
    """The released R-Mix takes this diagonal; levels at both ends and ties included."""
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 4, 16, 64):
        values = torch.rand(50, count, generator=generator)
        values[:10] = values[:10].round(decimals=1)
        levels = torch.rand(50, generator=generator)
        levels[:4] = torch.tensor([0.0, 1.0, 0.5, 0.99])
        expected = torch.quantile(values, levels, dim=1).diagonal()
        assert torch.allclose(row_quantile(values, levels), expected, atol=3e-7)
