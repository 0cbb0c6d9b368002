"""Gamma and Dirichlet variates, against SciPy's distributions."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from rlmix.ops import rng
from rlmix.ops.gamma import dirichlet, gamma

KEYS = torch.arange(50)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 1.0, 2.0, 30.0])
def test_gamma_variates_follow_the_distribution(alpha: float) -> None:
    """Kolmogorov and Smirnov's test over 20,000 numbers; it fails by chance once in 10**6."""
    drawn = gamma(KEYS, rng.PRIOR, (400,), alpha)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (50, 400)
    assert stats.kstest(drawn.double().flatten().numpy(), stats.gamma(alpha).cdf).pvalue > 1e-6


def test_a_tensor_gives_each_number_a_shape_of_its_own() -> None:
    """Shapes below and above 1 take different ways, here side by side."""
    alpha = torch.tensor([0.3, 1.0, 5.0])
    together = gamma(KEYS, rng.PRIOR, (3,), alpha)
    for column, shape in enumerate(alpha.tolist()):
        assert torch.equal(together[:, column], gamma(KEYS, rng.PRIOR, (3,), shape)[:, column])


@pytest.mark.parametrize("alpha", [0.1, 2.0])
def test_a_part_of_a_dirichlet_variate_is_beta_distributed(alpha: float) -> None:
    """Kolmogorov and Smirnov's test over 20,000 numbers; it fails by chance once in 10**6."""
    drawn = dirichlet(KEYS, rng.PRIOR, (400, 5), alpha)
    assert torch.allclose(drawn.sum(-1), torch.ones(50, 400, dtype=torch.float64))
    assert stats.kstest(drawn[..., 2].flatten().numpy(), stats.beta(alpha, 4 * alpha).cdf).pvalue > 1e-6


def test_a_tiny_concentration_leaves_one_part_and_no_nan() -> None:
    """Gamma variates of such a shape are all 0 in floating point, and 0 / 0 would follow."""
    drawn = dirichlet(KEYS, rng.PRIOR, (20,), 1e-5)
    assert bool(torch.isfinite(drawn).all())
    assert float(drawn.amax(1).min()) > 0.5
