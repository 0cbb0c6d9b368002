"""How well predicted probabilities match the labels: a score that ignores confidence, and the confidence's error."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Logits of standard deviation 1 are fitted with temperatures in exp(-5) to exp(5).
_BOUND = 5.0
_STEPS = 40
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def standard_deviation(values: Tensor) -> Tensor:
    """Return the standard deviation (of the whole population) along the last axis.

    The rounding of `torch.std` depends on how many rows are computed beside each other; this one's does not.
    """
    return (values - values.mean(-1, keepdim=True)).square().mean(-1).sqrt()


def temperature_scaled_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood at the best temperature, and the logarithm of that temperature.

    Guo, Pleiss, Sun, Weinberger 2017, https://arxiv.org/abs/1706.04599, Section 4.2. The logits are first divided by
    their standard deviation over the set, so multiplying them by a constant changes nothing but the temperature; then
    golden section in log temperature. The loss is convex in 1/temperature, hence has one minimum on the bracket (an
    end of it where the labels are always, or no better than never, right).

    Args:
        logits: [..., n, C] floating point; each leading index is a set with a temperature of its own.
        labels: int64 [..., n] in [0, C).

    Returns:
        Loss and log temperature of the logits as given, float64 [...]. Logits that are all equal count as of standard
        deviation 1; logits that are not finite give NaN.
    """
    values = logits.double()
    spread = standard_deviation(values.flatten(-2))
    spread = spread.masked_fill(spread == 0, 1.0)
    # Without its largest logit a row's exponentials stay in (0, 1] at every temperature.
    values = (values - values.amax(-1, keepdim=True)) / spread[..., None, None]
    own = values.gather(-1, labels.unsqueeze(-1)).squeeze(-1).mean(-1)

    def loss(log_temperature: Tensor) -> Tensor:
        inverse = torch.exp(-log_temperature)
        return (values * inverse[..., None, None]).exp_().sum(-1).log_().mean(-1) - own * inverse

    low, high = torch.full_like(spread, -_BOUND), torch.full_like(spread, _BOUND)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    left_loss, right_loss = loss(left), loss(right)
    for _ in range(_STEPS):
        lower = left_loss < right_loss
        low, high = torch.where(lower, low, left), torch.where(lower, right, high)
        inner = torch.where(lower, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        inner_loss = loss(inner)
        left, right = torch.where(lower, inner, right), torch.where(lower, left, inner)
        left_loss, right_loss = torch.where(lower, inner_loss, right_loss), torch.where(lower, left_loss, inner_loss)
    best = torch.where(left_loss < right_loss, left, right)
    return torch.minimum(left_loss, right_loss), best + spread.log()


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Tensor:
    """Return the mean distance between confidence and accuracy over equal bins of confidence, weighted by their sizes.

    Naeini, Cooper, Hauskrecht 2015, in the form of https://arxiv.org/abs/1706.04599, Eq. 3; a bin includes its upper
    end.

    Args:
        probabilities: [..., n, C] floating point.
        labels: int64 [..., n].
        bins: number of bins.

    Returns:
        float64 [...] in [0, 1].
    """
    confidence, predicted = probabilities.double().max(-1)
    gap = (predicted == labels).double() - confidence
    bin_of = (torch.ceil(confidence * bins) - 1).clamp(0, bins - 1)
    # A sum over a one-hot axis instead of `scatter_add_`, whose order of summation varies on a GPU.
    members = bin_of.unsqueeze(-1) == torch.arange(bins, device=gap.device)
    return (gap.unsqueeze(-1) * members).sum(-2).abs().sum(-1) / gap.shape[-1]
