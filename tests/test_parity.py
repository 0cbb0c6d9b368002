"""One training by the pool and by a plain loop with a MixController: equal observations and equal decisions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rlmix.envs import dynamics
from rlmix.envs.instances import Instance, digits_set
from rlmix.envs.pool import Pool
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.codec import catalogue
from rlmix.policy.controller import MixController
from rlmix.policy.network import Layers, PolicyNetwork
from rlmix.policy.signals import names
from rlmix.policy.sources import Learned
from rlmix.training.models.registry import build

KEY = 20_260_101


def sensitive_policy(seed: int) -> LearnedPolicy:
    """Return a policy that reads every entry and whose choices change with it, so that a wrong entry shows."""
    entries = catalogue("v0")
    observed = names(entries)
    generator = torch.Generator().manual_seed(seed)

    def layers(outputs: int) -> Layers:
        widths = (len(observed), 64, 64, outputs)
        return tuple(
            (torch.randn(after, before, generator=generator) * 2 / before**0.5, torch.zeros(after))
            for before, after in itertools.pairwise(widths)
        )

    return LearnedPolicy(
        network=PolicyNetwork(actor=layers(len(entries)), critic=layers(1)),
        observation_names=observed,
        low=torch.full((len(observed),), -5.0),
        high=torch.full((len(observed),), 5.0),
        catalogue=entries,
        horizon=8,
        card={},
    )


def by_pool(instance: Instance, policy: LearnedPolicy, validation: bool) -> tuple[list[Tensor], list[str], Tensor]:
    """Train in a pool of one; return observations, decisions and the final logits on the validation images."""
    pool = Pool(
        digits_set("train", 8), seeds=[0], catalogue=policy.catalogue, reward=None, masks=False,
        with_validation=validation,
    )  # fmt: skip
    observation = pool.begin([instance], [KEY])
    seen, chosen, done = [], [], False
    while not done:
        seen.append(observation[0])
        action = policy.act(observation)
        observation, _, done, info = pool.step(action)
        chosen.append(info["decision"][0])
    source = dynamics.load_source(instance.data)
    return seen, chosen, pool.predict(source.images[dynamics.split(instance, source).validation_rows])[0]


def by_loop(instance: Instance, policy: LearnedPolicy, validation: bool) -> tuple[list[Tensor], list[str], Tensor]:
    """Train in an ordinary loop with torch's own SGD and schedule; return the same as `by_pool`."""
    source = dynamics.load_source(instance.data)
    split = dynamics.split(instance, source)
    images, labels = source.images[split.train_rows], split.train_labels
    held_out = (source.images[split.validation_rows], split.validation_labels)
    model = build("mlp", channels=1, height=8, width=8, num_classes=10)
    model.load_state_dict(dynamics.initial_weights(model, KEY))
    optimizer = torch.optim.SGD(model.parameters(), lr=instance.learning_rate, momentum=instance.momentum)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, instance.total_steps)
    mixer = MixController(
        Learned(policy), num_classes=10, total_steps=instance.total_steps, seed=KEY, num_examples=instance.train_size,
        validation=held_out if validation else None,
    )  # fmt: skip
    seen = []
    for step, rows in enumerate(dynamics.batch_rows(instance, KEY)):
        mixed, targets = mixer(images[rows], labels[rows], model=model)
        if mixer.decisions[-1][0] == step:
            assert mixer._seen is not None
            assert mixer._seen[0] is not None
            seen.append(mixer._seen[0].clone())
        loss = functional.cross_entropy(model(mixed), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mixer.observe(loss=loss, lr=scheduler.get_last_lr()[0])
        scheduler.step()
    named = dict(zip(policy.catalogue.decisions, policy.catalogue.names, strict=True))
    with torch.no_grad():
        return seen, [named[decision] for _, decision in mixer.decisions], model(held_out[0])


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("seed", [3, 4])
def test_pool_and_deployment_see_and_choose_the_same(seed: int, validation: bool) -> None:
    """A policy must see in deployment what it saw when it was trained, at every decision, for every entry."""
    instance = digits_set("train", 8).instances[1]
    assert instance.total_steps == 120
    policy = sensitive_policy(seed)
    pool_seen, pool_chosen, pool_logits = by_pool(instance, policy, validation)
    loop_seen, loop_chosen, loop_logits = by_loop(instance, policy, validation)
    assert len(pool_seen) == len(loop_seen) == 8
    for decision, (one, two) in enumerate(zip(pool_seen, loop_seen, strict=True)):
        wrong = [
            f"{name} {float(a)} {float(b)}"
            for name, a, b in zip(policy.observation_names, one, two, strict=True)
            if abs(float(a) - float(b)) > 1e-5
        ]
        assert wrong == [], f"at decision {decision}"
    assert pool_chosen == loop_chosen
    # The policy must have something to say, or equal decisions would show nothing.
    assert len(set(pool_chosen)) > 1
    assert torch.allclose(pool_logits, loop_logits, atol=1e-3)
