"""Temperature-scaled loss and calibration error, against dense searches, closed forms and slow loops."""

from __future__ import annotations

import math

import pytest
import torch

from rlmix.ops.calibration import expected_calibration_error, temperature_scaled_nll


def predictions(seed: int, *shape: int, skill: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [*shape, C] that favour the right class by `skill`, and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, generator=generator)
    labels = torch.randint(shape[-1], shape[:-1], generator=generator)
    return logits + skill * torch.nn.functional.one_hot(labels, shape[-1]), labels


def nll(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits.double(), labels))


@pytest.mark.parametrize("skill", [0.5, 1.0, 3.0])
def test_fit_is_as_good_as_a_dense_search(skill: float) -> None:
    """A search that stops beside the minimum would rank methods by their confidence."""
    logits, labels = predictions(1, 200, 10, skill=skill)
    loss, log_temperature = temperature_scaled_nll(logits, labels)
    grid = torch.linspace(-4, 4, 8001, dtype=torch.float64).tolist()
    losses = [nll(logits.double() / math.exp(point), labels) for point in grid]
    assert float(loss) <= min(losses) + 1e-12
    assert float(loss) == pytest.approx(min(losses), abs=1e-6)
    assert float(log_temperature) == pytest.approx(grid[losses.index(min(losses))], abs=2e-3)
    assert float(loss) == pytest.approx(nll(logits.double() / log_temperature.exp(), labels), abs=1e-9)


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 4.0, 20.0])
def test_scaling_the_logits_changes_the_temperature_alone(scale: float) -> None:
    """A reward that moves with the scale of the logits can be raised without learning anything."""
    logits, labels = predictions(2, 150, 10)
    loss, log_temperature = temperature_scaled_nll(logits.double(), labels)
    scaled_loss, scaled_temperature = temperature_scaled_nll(logits.double() * scale, labels)
    assert float(scaled_loss) == pytest.approx(float(loss), abs=1e-10)
    assert float(scaled_temperature) == pytest.approx(float(log_temperature) + math.log(scale), abs=1e-5)


def test_every_set_is_fitted_by_itself() -> None:
    """In a pool, one classifier's temperature must not depend on its neighbours."""
    logits, labels = predictions(3, 4, 2, 60, 5)
    losses, temperatures = temperature_scaled_nll(logits, labels)
    assert losses.shape == temperatures.shape == (4, 2)
    for row in range(4):
        for column in range(2):
            alone = temperature_scaled_nll(logits[row, column], labels[row, column])
            assert torch.equal(torch.stack(alone), torch.stack((losses[row, column], temperatures[row, column])))


def test_extreme_logits_give_finite_numbers() -> None:
    """A perfect, a constant and a perfectly wrong classifier occur at the ends of trainings."""
    labels = torch.arange(10)
    perfect = torch.nn.functional.one_hot(labels, 10).float()
    loss, log_temperature = temperature_scaled_nll(perfect, labels)
    assert 0 <= float(loss) < 1e-6
    assert math.isfinite(float(log_temperature))
    loss, log_temperature = temperature_scaled_nll(torch.full((10, 10), 3.0), labels)
    assert float(loss) == pytest.approx(math.log(10))
    assert math.isfinite(float(log_temperature))
    loss, _ = temperature_scaled_nll(-1000 * perfect, labels)
    # Infinitely hot is the best that can be done, which is the uniform prediction.
    assert float(loss) == pytest.approx(math.log(10), abs=0.03)


def test_calibration_error_agrees_with_a_loop() -> None:
    """Bins, weights or signs that are off by one would not be seen in a plot."""
    logits, labels = predictions(4, 300, 7)
    probabilities = logits.double().softmax(-1)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        bins.setdefault(max(0, math.ceil(max(row) * 15) - 1), []).append((max(row), row.index(max(row)) == label))
    expected = sum(
        abs(sum(hit for _, hit in members) / len(members) - sum(sure for sure, _ in members) / len(members))
        * len(members)
        / 300
        for members in bins.values()
    )
    assert float(expected_calibration_error(probabilities, labels)) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_known_cases() -> None:
    """Sure and right is 0, sure and wrong is 1."""
    sure = torch.eye(4)
    right, wrong = torch.arange(4), torch.arange(4).roll(1)
    errors = expected_calibration_error(torch.stack((sure, sure)), torch.stack((right, wrong)))
    assert errors.tolist() == [0.0, 1.0]
