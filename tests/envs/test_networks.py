"""Stacks of networks against one network at a time, written with torch's own parts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from rlmix.envs import dynamics
from rlmix.envs.networks import Stack, forward_of
from rlmix.errors import ConfigError
from rlmix.saliency import input_gradient
from rlmix.training.models.registry import build

CPU = torch.device("cpu")


def network(name="mlp"):
    return build(name, channels=1, height=8, width=8, num_classes=10)


def stack_of(count, name="mlp", looped=False):
    model = network(name)
    return Stack.initial(forward_of(model, looped=looped), weights(model, count), CPU)


def weights(model, count):
    return [dynamics.initial_weights(model, key) for key in range(count)]


def batch(count, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, size, 1, 8, 8, generator=generator)
    targets = torch.rand(count, size, 10, generator=generator)
    return images, targets / targets.sum(-1, keepdim=True)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_a_stack_trains_as_torchs_sgd_trains_each_network(decay):
    """A deployed training uses torch's optimiser; a policy learned with another would not carry over."""
    rates = torch.tensor([0.02, 0.05, 0.1])
    stack = stack_of(3)
    models = [network() for _ in range(3)]
    optimizers = []
    for model, start, rate in zip(models, weights(network(), 3), rates.tolist(), strict=True):
        model.load_state_dict(start)
        optimizers.append(torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay))
    for step in range(20):
        images, targets = batch(3, seed=step)
        losses = stack.descend(images, targets, rates, 0.9, decay, torch.ones(3, dtype=torch.bool))
        for row, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            loss = functional.cross_entropy(model(images[row]), targets[row])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert losses[row].item() == pytest.approx(loss.item(), abs=1e-5)
    for row, model in enumerate(models):
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(stack.parameters[name][row], parameter, atol=1e-4, rtol=0)


def test_looped_and_stacked_convolutions_agree():
    """The way that is faster on a machine must not decide what is learned there."""
    stacks = [stack_of(3, "cnn", looped) for looped in (True, False)]
    rates = torch.full((3,), 0.05)
    for step in range(20):
        images, targets = batch(3, seed=step)
        losses = [stack.descend(images, targets, rates, 0.9, 0.0, torch.ones(3, dtype=torch.bool)) for stack in stacks]
        torch.testing.assert_close(*losses, atol=1e-5 if step == 0 else 1e-4, rtol=0)
    images, _ = batch(3, seed=99)
    torch.testing.assert_close(*(stack.logits(images) for stack in stacks), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("name", "looped"), [("mlp", False), ("cnn", True), ("cnn", False)])
def test_saliency_of_a_stack_is_that_of_each_network(name, looped):
    """Methods with saliency would mix otherwise in the environment than where they are deployed."""
    stack, model = stack_of(3, name, looped), network(name)
    images, _ = batch(2)
    labels = torch.arange(32).view(2, 16) % 10
    maps = stack.saliency(images, labels, torch.tensor([2, 0]))
    for place, row in enumerate((2, 0)):
        model.load_state_dict({key: value[row].detach() for key, value in stack.parameters.items()})
        expected = input_gradient(model, images[place], labels[place])
        torch.testing.assert_close(maps[place], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("looped", [True, False])
def test_a_network_that_is_not_finite_keeps_its_parameters_and_harms_no_other(looped):
    """One diverged training would otherwise end a wave of sixty-four."""
    images, targets = batch(3)
    ill, well = stack_of(3, looped=looped), stack_of(3, looped=looped)
    with torch.no_grad():
        ill.parameters["1.weight"][1] = torch.nan
    before = {name: value[1].detach().clone() for name, value in ill.parameters.items()}
    for stack in (ill, well):
        alive = torch.ones(3, dtype=torch.bool)
        for _ in range(3):
            losses = stack.descend(images, targets, torch.full((3,), 0.1), 0.9, 0.0, alive)
            alive &= torch.isfinite(losses)
    assert alive.tolist() == [True, True, True]
    for name, value in ill.parameters.items():
        assert torch.equal(value[[0, 2]], well.parameters[name][[0, 2]])
        torch.testing.assert_close(value[1], before[name], equal_nan=True, rtol=0, atol=0)
        assert torch.isfinite(ill.momentum[name]).all()
    assert ill.finite().tolist() == [True, False, True]


def test_selected_networks_are_copies():
    """A fork that shares memory with its parent would train it."""
    stack = stack_of(3)
    copy = stack.select(torch.tensor([2, 2]))
    images, targets = batch(2)
    copy.descend(images, targets, torch.full((2,), 0.1), 0.9, 0.0, torch.ones(2, dtype=torch.bool))
    fresh = stack_of(3)
    assert all(torch.equal(stack.parameters[name], fresh.parameters[name]) for name in stack.parameters)
    assert not torch.equal(copy.parameters["1.weight"][0], stack.parameters["1.weight"][2])


def test_a_model_with_buffers_is_refused_as_a_stack():
    """Statistics of BatchNorm would be shared by all networks of a stack."""
    with pytest.raises(ConfigError, match="BatchNorm.*`looped=True`"):
        forward_of(network("resnet8"), looped=False)


def test_networks_with_batch_normalisation_train_as_torchs_own():
    """Statistics move in training, stay in saliency, are read in evaluation, and belong to one network each."""
    model = network("resnet8")
    stack = Stack.initial(forward_of(model, looped=True), weights(model, 2), CPU, dict(model.named_buffers()))
    models, rates = [network("resnet8") for _ in range(2)], torch.tensor([0.05, 0.1])
    optimizers = []
    for one, start, rate in zip(models, weights(network("resnet8"), 2), rates.tolist(), strict=True):
        one.load_state_dict(start, strict=False)
        optimizers.append(torch.optim.SGD(one.parameters(), lr=rate, momentum=0.9))
    for step in range(4):
        images, targets = batch(2, seed=step)
        maps = stack.saliency(images, targets.argmax(-1), torch.arange(2))
        stack.descend(images, targets, rates, 0.9, 0.0, torch.ones(2, dtype=torch.bool))
        for row, (one, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            expected = input_gradient(one.train(), images[row], targets[row].argmax(-1))
            torch.testing.assert_close(maps[row], expected, atol=1e-5, rtol=1e-3)
            loss = functional.cross_entropy(one(images[row]), targets[row])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    images, _ = batch(2, seed=9)
    logits = stack.logits(images)
    for row, one in enumerate(models):
        for name, buffer in one.named_buffers():
            torch.testing.assert_close(stack.buffers[name][row], buffer, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(logits[row], one.eval()(images[row]), atol=1e-3, rtol=1e-3)
    assert stack.buffers["1.num_batches_tracked"].tolist() == [4, 4]
    copy = stack.select(torch.tensor([1, 1]))
    copy.descend(*batch(2, seed=3), rates, 0.9, 0.0, torch.ones(2, dtype=torch.bool))
    assert stack.buffers["1.num_batches_tracked"].tolist() == [4, 4]
