"""Models by name."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from rlmix.errors import InputError, UnknownNameError
from rlmix.training.models.registry import build, init, names
from rlmix.training.models.standardize import Standardize


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32)])
def test_a_model_gives_one_logit_for_each_class(name: str, channels: int, side: int) -> None:
    """A stem that shrinks too much, or a head of the wrong width, shows at the first small data set."""
    model = build(name, channels=channels, height=side, width=side, num_classes=7)
    logits = model(torch.zeros(2, channels, side, side))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()


def test_a_large_image_keeps_the_stem_of_the_paper() -> None:
    """At 224 pixels a net without the strided stem costs sixteen times as much."""
    model = build("resnet18", channels=1, height=96, width=96, num_classes=3)
    assert model(torch.zeros(1, 1, 96, 96)).shape == (1, 3)
    assert model.conv1.kernel_size == (7, 7)
    assert model.conv1.in_channels == 1


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_small_models_can_be_stacked(name: str) -> None:
    """The pool trains many at once; a layer with buffers or without a batching rule would stop it."""
    models = [init(build(name, channels=1, height=8, width=8, num_classes=4), key) for key in range(3)]
    images = torch.rand(3, 5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    parameters, buffers = stack_module_state(models)
    assert not buffers
    stacked = vmap(lambda own, batch: functional_call(models[0], own, (batch,)))(parameters, images)
    for logits, model, batch in zip(stacked, models, images, strict=True):
        torch.testing.assert_close(logits, model(batch))


def test_weights_depend_on_the_key_alone() -> None:
    """Runs with one seed must begin alike, whatever was drawn before them; the global state must stay."""
    before = torch.get_rng_state()
    first = init(build("cnn", channels=1, height=8, width=8, num_classes=4), 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = init(build("cnn", channels=1, height=8, width=8, num_classes=4), 5)
    other = init(build("cnn", channels=1, height=8, width=8, num_classes=4), 6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_initial_weights_have_the_variance_that_is_documented() -> None:
    """A wrong fan would slow every training in the environment. False alarms: below 1e-6 (over 8 standard errors)."""
    model = init(build("mlp", channels=1, height=16, width=16, num_classes=4), 0)
    weight = model[1].weight
    bound = 1 / 16
    assert weight.abs().max() <= bound
    torch.testing.assert_close(weight.square().mean(), torch.tensor(bound**2 / 3), rtol=0.05, atol=0.0)
    assert not model[1].bias.any()
    convolution = init(build("cnn", channels=3, height=16, width=16, num_classes=4), 0)[3].weight
    torch.testing.assert_close(convolution.square().mean(), torch.tensor(2 / (64 * 9)), rtol=0.1, atol=0.0)


def test_an_unknown_model_names_the_nearest() -> None:
    """A misspelt name must not end in a list to search through."""
    with pytest.raises(UnknownNameError, match=r"no model `resnet19`. Did you mean `resnet18`\?"):
        build("resnet19", channels=1, height=8, width=8, num_classes=4)


def test_sizes_below_one_are_refused() -> None:
    """An empty data set would otherwise end in an error of some layer."""
    with pytest.raises(InputError, match="must be at least 1, got 1, 8, 8 and 0"):
        build("mlp", channels=1, height=8, width=8, num_classes=0)


def test_standardized_images_have_mean_zero_and_deviation_one() -> None:
    """Statistics of the wrong axis would scale every image differently."""
    images = torch.rand(50, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0]).view(
        3, 1, 1
    )
    result = Standardize(images)(images)
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(result.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0.0)
