"""A head start for a policy: what the reference table of the training instances says, before anything is tried.

Trying tells of one entry at a time, and at the end of a whole training only. The table has the scores of every entry
on every training instance, kept to the end and followed by a finish without any mix, so the policy can be fitted to all
of them at once: to choose an entry the more often, the more it gains there, and to finish where that gains. Other
changes within a training are left to the trials that follow.
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
from rlmix.agents.jobs import Progress
from rlmix.envs.instances import InstanceSet
from rlmix.envs.pool import Pool
from rlmix.envs.processes import ProcessPool
from rlmix.envs.reference import Table
from rlmix.envs.reward import LIMIT, SCALE, clean_entry, uniform_entry
from rlmix.ops import rng
from rlmix.policy.codec import Catalogue

EPOCHS = 160
BATCH = 256
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-3
# Two entries whose gains differ by so much, in units of the reward, are to be chosen with odds of e to 1: the table is
# noisy, and trying needs a policy that is not too sure.
TEMPERATURE = 0.5

# By how much an entry that nothing is known of counts as worse than those that something is known of.
_UNKNOWN = 1.0

# Words under the run's seed, and what choices are drawn for.
_SLOTS, _ORDER = (rng.words(f"head start {name}") for name in ("slots", "order"))
_HELD, _TRIED = 130, 131


def kept_decisions(horizon: int) -> list[int]:
    """Return after how many decisions a finish without any mix is tried: one or two before the end."""
    return [kept for kept in (horizon - 2, horizon - 1) if kept > 0]


def gains(table: Table, finishes: Tensor, catalogue: Catalogue) -> Tensor:
    """Return what each entry gains over uniform random mixing, in units of the reward.

    Args:
        table: scores of every entry.
        finishes: scores with a finish, float64 [n, E, K, REPLICATES], for K numbers of decisions before it.
        catalogue: of the entries.

    Returns:
        float32 [n, E, K + 1]: with each finish, and without any.
    """
    means = torch.cat([finishes, table.scores.unsqueeze(2)], 2).mean(3)
    uniform = means[:, uniform_entry(catalogue), -1].view(-1, 1, 1)
    return ((means - uniform) / SCALE).clamp(-LIMIT, LIMIT).float()


def goals(gained: Tensor, held: Tensor, catalogue: Catalogue, horizon: int) -> Tensor:
    """Return what each choice is worth at each decision of trainings, in units of the reward.

    Before the first finish a choice is worth what its entry gains with the finish that is the best for it on average
    over all instances: chosen by instance, noise would be taken for a gain. After that, going on and finishing are
    known of the entry that was held; of another one nothing is, and it counts as worse than both.

    Args:
        gained: of `gains`, float32 [n, E, K + 1], a row for each training.
        held: int64 [n], the entry that each training has had until then.
        catalogue: of the entries.
        horizon: H.

    Returns:
        float32 [n, H, E].
    """
    kept, clean = kept_decisions(horizon), clean_entry(catalogue)
    on_average = gained.mean(0)
    rows = torch.arange(len(gained))

    def best(first: int) -> Tensor:
        """Return for every entry what it gains with the best of the finishes from `first` on, float32 [n, E]."""
        column = on_average[:, first:].argmax(1) + first
        return gained.gather(2, column.expand(len(gained), -1).unsqueeze(2)).squeeze(2)

    found = best(0).unsqueeze(1).repeat(1, horizon, 1)
    for place, decision in enumerate(kept):
        finish, go_on = gained[rows, held, place], best(place + 1)[rows, held]
        found[:, decision] = (torch.minimum(finish, go_on) - _UNKNOWN).unsqueeze(1)
        found[rows, decision, held] = go_on
        found[:, decision, clean] = finish
    return found


def rollouts(
    pool: Pool | ProcessPool,
    instances: InstanceSet,
    *,
    passes: int,
    seed: int,
    ranges: Ranges,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor, list[str]]:
    """Return what is seen in trainings under random choices: half of them change at every decision, half never do.

    Args:
        pool: of the instances; its seeds and its count of waves are set back afterwards.
        instances: the training instances.
        passes: how often each is trained.
        seed: of the run.
        ranges: widened by what is seen.
        progress: called with the trainings done and those to do.

    Returns:
        Observations float32 [m, H, D]; the entry that each training had, int64 [m], which is uniform random mixing
        where it changed; and the ids of their instances.
    """
    kept, first_wave = pool.seeds, pool.wave
    # One bucket after the other, so that each wave has few kinds of trainings; a last wave is filled from the front.
    ordered = sorted(instances.instances, key=lambda one: repr(one.bucket)) * passes
    waves = -(-len(ordered) // len(kept))
    places = itertools.islice(itertools.cycle(ordered), waves * len(kept))
    ids = [one.id for one in places]
    seen, held = [], []
    for wave in range(waves):
        own = ids[wave * len(kept) : (wave + 1) * len(kept)]
        observations, entries = _wave(pool, own, rng.derive(seed, _SLOTS, wave))
        seen.append(observations)
        held.append(entries)
        ranges.add(observations)
        if progress is not None:
            progress((wave + 1) * len(kept), len(ids))
    pool.seed(kept, first_wave)
    return torch.cat(seen), torch.cat(held), ids


def fit(policy: ActorCriticPolicy, observations: Tensor, worth: Tensor, *, seed: int) -> None:
    """Fit actor and critic of a policy, in place.

    Args:
        policy: of a catalogue's entries.
        observations: float32 [n, H, D].
        worth: float32 [n, H, E], of `goals`.
        seed: of the run.
    """
    rows, gained = observations.flatten(0, 1), worth.flatten(0, 1)
    wanted = (gained / TEMPERATURE).softmax(1)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(rng.derive(seed, _ORDER))
    policy.set_training_mode(True)
    for _ in range(EPOCHS):
        order = torch.randperm(len(rows), generator=generator)
        for batch in torch.split(order, BATCH):
            choice = cast(Categorical, policy.get_distribution(rows[batch]).distribution)
            expected = (choice.probs * gained[batch]).sum(1).detach()
            value = policy.predict_values(rows[batch]).squeeze(1)
            # Categorical keeps logits normalised: they are logarithms of probabilities.
            surprise = -(wanted[batch] * choice.logits).sum(1)
            loss = functional.mse_loss(value, expected) + surprise.mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    policy.set_training_mode(False)


def _wave(pool: Pool | ProcessPool, ids: Sequence[str], key: int) -> tuple[Tensor, Tensor]:
    """Return the observations of one wave, float32 [N, H, D], and what each training had, int64 [N]."""
    entries, count = len(pool.catalogue), len(ids)
    pool.seed([rng.derive(key, slot) for slot in range(count)])
    seen = [pool.reset(instances=ids)]
    keys = torch.tensor([key])
    held = rng.integers(keys, _HELD, (count,), entries)[0]
    holds = torch.arange(count) % 2 == 0
    for decision in range(pool.horizon):
        tried = rng.integers(keys, _TRIED + decision, (count,), entries)[0]
        seen.append(pool.step(torch.where(holds, held, tried).numpy())[0])
    # The last one is seen when there is nothing left to choose.
    return torch.stack(seen[:-1], 1).cpu(), torch.where(holds, held, uniform_entry(pool.catalogue))
