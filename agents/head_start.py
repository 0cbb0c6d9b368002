"""A head start for a policy: what the reference table of the training instances says, before anything is tried.

Trying tells of one entry at a time, and at the end of a whole training only. The table has the scores of every entry
on every training instance, so the policy can be fitted to all of them at once: to choose an entry the more often, the
more it gains there, as if the choice held for the whole training. What a table cannot say, when to change, is left to
the trials that follow.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.distributions import Categorical
from torch.nn import functional

from rlmix.agents.callbacks import Ranges
from rlmix.envs.instances import InstanceSet
from rlmix.envs.pool import Pool
from rlmix.envs.processes import ProcessPool
from rlmix.envs.reference import Table
from rlmix.envs.reward import LIMIT, SCALE, uniform_entry
from rlmix.ops import rng
from rlmix.policy.codec import Catalogue

EPOCHS = 40
BATCH = 256
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-3
# Two entries whose gains differ by so much, in units of the reward, are to be chosen with odds of e to 1: the table is
# noisy, and trying needs a policy that is not too sure.
TEMPERATURE = 0.5

# Words under the run's seed, and what choices are drawn for.
_SLOTS, _ORDER = (rng.words(f"head start {name}") for name in ("slots", "order"))
_HELD, _TRIED = 130, 131


def gains(table: Table, catalogue: Catalogue) -> Tensor:
    """Return what each entry gains over uniform random mixing in units of the reward: float32 [n, E]."""
    means = table.scores.mean(2)
    uniform = means[:, uniform_entry(catalogue)].unsqueeze(1)
    return ((means - uniform) / SCALE).clamp(-LIMIT, LIMIT).float()


def rollouts(
    pool: Pool | ProcessPool, instances: InstanceSet, *, passes: int, seed: int, ranges: Ranges
) -> tuple[Tensor, list[str]]:
    """Return what is seen in trainings under random choices: half of them change at every decision, half never do.

    Args:
        pool: of the instances; its seeds and its count of waves are set back afterwards.
        instances: the training instances.
        passes: how often each is trained.
        seed: of the run.
        ranges: widened by what is seen.

    Returns:
        Observations float32 [m, H, D], and the id of the instance of each of the m trainings.
    """
    kept, first_wave = pool.seeds, pool.wave
    # One bucket after the other, so that each wave has few kinds of trainings; a last wave is filled from the front.
    ordered = sorted(instances.instances, key=lambda one: repr(one.bucket)) * passes
    waves = -(-len(ordered) // len(kept))
    places = itertools.islice(itertools.cycle(ordered), waves * len(kept))
    ids = [one.id for one in places]
    found = []
    for wave in range(waves):
        own = ids[wave * len(kept) : (wave + 1) * len(kept)]
        found.append(_wave(pool, own, rng.derive(seed, _SLOTS, wave)))
        ranges.add(found[-1])
    pool.seed(kept, first_wave)
    return torch.cat(found), ids


def fit(policy: ActorCriticPolicy, observations: Tensor, gained: Tensor, *, seed: int) -> None:
    """Fit actor and critic of a policy, in place.

    Args:
        policy: of a catalogue's entries.
        observations: float32 [n, H, D].
        gained: float32 [n, E], what each entry gains in the training that row shows.
        seed: of the run.
    """
    rows = observations.flatten(0, 1)
    goals = gained.repeat_interleave(observations.shape[1], 0)
    wanted = (goals / TEMPERATURE).softmax(1)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(rng.derive(seed, _ORDER))
    policy.set_training_mode(True)
    for _ in range(EPOCHS):
        order = torch.randperm(len(rows), generator=generator)
        for batch in torch.split(order, BATCH):
            choice = cast(Categorical, policy.get_distribution(rows[batch]).distribution)
            expected = (choice.probs * goals[batch]).sum(1).detach()
            value = policy.predict_values(rows[batch]).squeeze(1)
            # Categorical keeps logits normalised: they are logarithms of probabilities.
            surprise = -(wanted[batch] * choice.logits).sum(1)
            loss = functional.mse_loss(value, expected) + surprise.mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    policy.set_training_mode(False)


def _wave(pool: Pool | ProcessPool, ids: Sequence[str], key: int) -> Tensor:
    """Return the observations of one wave, float32 [N, H, D]."""
    entries, count = len(pool.catalogue), len(ids)
    pool.seed([rng.derive(key, slot) for slot in range(count)])
    seen = [pool.reset(instances=ids)]
    keys = torch.tensor([key])
    held = rng.integers(keys, _HELD, (count,), entries)[0]
    for decision in range(pool.horizon):
        tried = rng.integers(keys, _TRIED + decision, (count,), entries)[0]
        actions = torch.where(torch.arange(count) % 2 == 0, held, tried)
        seen.append(pool.step(actions.numpy())[0])
    # The last one is seen when there is nothing left to choose.
    return torch.stack(seen[:-1], 1).cpu()
