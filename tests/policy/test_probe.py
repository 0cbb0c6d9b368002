"""Looking at a model: right logits, and no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlmix._files import equal_trees
from rlmix.errors import InputError
from rlmix.policy.probe import PROBE_EXAMPLES, RecentBatches, forward


def network() -> nn.Module:
    """Return a network with everything that a forward may change: BatchNorm statistics, dropout, mixed flags."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 10)
    )
    model[1].eval()
    return model


def images(count: int = 20) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))


def test_logits_are_those_of_evaluation_mode() -> None:
    """Dropout or batch statistics would make the observation depend on chance and on the batch."""
    model, pixels = network(), images()
    found = forward(model, pixels)
    assert torch.equal(found, forward(model, pixels))
    assert torch.allclose(found, model.eval()(pixels), atol=1e-6)
    assert not found.requires_grad


def test_nothing_of_the_model_moves() -> None:
    """A look that changed the training would make mixing with and without a policy incomparable."""
    model = network()
    torch.nn.functional.cross_entropy(model(images()), torch.zeros(20, dtype=torch.int64)).backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [part.grad.clone() for part in model.parameters() if part.grad is not None]
    flags, random = [module.training for module in model.modules()], torch.random.get_rng_state()
    forward(model, images())
    assert equal_trees(dict(model.state_dict()), state)
    assert equal_trees([part.grad for part in model.parameters()], gradients)
    assert [module.training for module in model.modules()] == flags
    assert flags == [True, True, False, True, True, True, True]
    assert torch.equal(torch.random.get_rng_state(), random)


class Careless(nn.Module):
    """Counts its calls in a buffer, and draws a number, in every mode."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.trained = False

    def train(self, mode: bool = True) -> Careless:
        """Note that it was called, as modules that merge weights do."""
        self.trained = True
        return super().train(mode)

    def forward(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        return pixels.flatten(1)[:, :3] + torch.rand(1) * 0


def test_careless_modules_leave_no_trace_either() -> None:
    """Buffers that are written in evaluation mode, and `train` methods that do more than set a flag, exist."""
    model, random = Careless(), torch.random.get_rng_state()
    forward(model, images(300))
    assert float(model.calls) == 0
    assert not model.trained
    assert torch.equal(torch.random.get_rng_state(), random)


def test_flags_come_back_after_an_error() -> None:
    """A training that survives an error must not go on in evaluation mode."""
    model = network()
    with pytest.raises(RuntimeError, match="expected input"):
        forward(model, torch.rand(2, 3, 8, 8))
    assert [module.training for module in model.modules()] == [True, True, False, True, True, True, True]


def test_autocast_trains_on_after_a_look() -> None:
    """A weight cast without gradients, kept in autocast's cache, would get no gradient in the same step."""
    model, pixels = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = forward(model, pixels)
        loss = model(pixels).float().square().sum()
    loss.backward()
    assert found.dtype == torch.float32
    assert all(part.grad is not None for part in model.parameters())
    assert torch.is_autocast_cache_enabled()


def test_wrapped_models_are_unwrapped() -> None:
    """In distributed training a forward of the wrapper would wait for the other processes."""
    model, pixels = network(), images()
    assert torch.equal(forward(nn.DataParallel(model), pixels), forward(model, pixels))


@pytest.mark.parametrize(("output", "given"), [((1, 2), "tuple"), (torch.zeros(4), r"\[4\]")])
def test_models_that_return_no_logits_are_refused(output: Any, given: str) -> None:
    """Detection models, and models with auxiliary heads, return other things."""

    class Other(nn.Module):
        def forward(self, pixels: Tensor) -> Any:
            return output

    with pytest.raises(InputError, match=rf"`model` must return logits \[n, num_classes\], got {given}"):
        forward(Other(), images())


def batch(size: int, label: int, side: int = 8) -> tuple[Tensor, Tensor]:
    return torch.full((size, 1, side, side), float(label)), torch.full((size,), label)


def test_recent_batches_are_kept_until_there_are_enough() -> None:
    """The newest come first, whole batches, and no more than are needed."""
    recent = RecentBatches()
    for number in range(9):
        recent.add(*batch(32, number))
    pixels, labels = recent.joined()
    assert len(labels) == PROBE_EXAMPLES
    assert labels[::32].tolist() == [8, 7, 6, 5]
    assert pixels[::32, 0, 0, 0].tolist() == [8, 7, 6, 5]
    recent.add(*batch(200, 9))
    assert recent.joined()[1].tolist() == [9] * 200
    recent.clear()
    assert recent.state() == []


def test_kept_batches_are_copies_of_one_size() -> None:
    """Loops that reuse a buffer, and trainings that change their resolution, must not break the look."""
    recent, (pixels, labels) = RecentBatches(), batch(20, 1)
    recent.add(pixels, labels)
    pixels.zero_()
    labels.zero_()
    assert recent.joined()[0].min() == 1
    assert recent.joined()[1].min() == 1
    recent.add(*batch(20, 2, side=16))
    assert recent.joined()[0].shape == (20, 1, 16, 16)
