"""One training by the pool and by a plain loop with a MixController: equal observations and equal decisions."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rlmix.envs import dynamics
from rlmix.envs.instances import Instance, digits_set
from rlmix.envs.pool import Pool
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.controller import MixController
from rlmix.policy.network import Layers, PolicyNetwork
from rlmix.policy.parametric import find_codec
from rlmix.policy.signals import names
from rlmix.policy.sources import Learned
from rlmix.training.models.registry import build

KEY = 20_260_101


def sensitive_policy(seed: int, kind: str = "discrete") -> LearnedPolicy:
    """Return a policy that reads every entry and whose choices change with it, so that a wrong entry shows."""
    codec = find_codec(kind, "v0")
    observed = names(codec.catalogue)
    generator = torch.Generator().manual_seed(seed)

    def layers(outputs: int) -> Layers:
        widths = (len(observed), 64, 64, outputs)
        return tuple(
            (torch.randn(after, before, generator=generator) * 2 / before**0.5, torch.zeros(after))
            for before, after in itertools.pairwise(widths)
        )

    return LearnedPolicy(
        network=PolicyNetwork(actor=layers(codec.outputs), critic=layers(1)),
        observation_names=observed,
        low=torch.full((len(observed),), -5.0),
        high=torch.full((len(observed),), 5.0),
        catalogue=codec.catalogue,
        horizon=8,
        card={},
        codec=None if kind == "discrete" else codec,
    )


def by_pool(instance: Instance, policy: LearnedPolicy, validation: bool) -> tuple[list[Tensor], list[str], Tensor]:
    """Train in a pool of one; return observations, decisions and the final logits on the validation images."""
    pool = Pool(
        digits_set("train", 8), seeds=[0], catalogue=policy.actions, reward=None, masks=False,
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
    codec = policy.actions
    with torch.no_grad():
        return seen, [codec.text(codec.encode(decision)) for _, decision in mixer.decisions], model(held_out[0])


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


@pytest.mark.parametrize("seed", [5, 8])
def test_pool_and_deployment_set_the_same_parameters(seed: int) -> None:
    """As above for a policy that sets parameters, which rounding may move a little."""
    instance, policy = digits_set("train", 8).instances[1], sensitive_policy(seed, "hybrid")
    pool_seen, pool_chosen, _ = by_pool(instance, policy, True)
    loop_seen, loop_chosen, _ = by_loop(instance, policy, True)
    for one, two in zip(pool_seen, loop_seen, strict=True):
        torch.testing.assert_close(one, two, atol=1e-3, rtol=0)
    for one, two in zip(pool_chosen, loop_chosen, strict=True):
        found, expected = (re.split(r"[=)]", text) for text in (one, two))
        assert found[0] == expected[0]
        if found[0] in ("mixup(alpha", "cutmix(alpha", "rmix(threshold", "grafting(temperature"):
            assert float(found[1]) == pytest.approx(float(expected[1]), rel=1e-3, abs=1e-4)
    assert len(set(pool_chosen)) > 3
    assert any("=" in text for text in pool_chosen)
