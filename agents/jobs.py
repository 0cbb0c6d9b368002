"""Trainings to be run, in blocks of one kind that stand side by side, and what is measured at their ends."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from rlmix.agents.agent import AbstractAgent, Feedback
from rlmix.agents.report import Run
from rlmix.envs.heldout import HeldOut
from rlmix.envs.instances import Bucket, Instance
from rlmix.envs.pool import Pool
from rlmix.envs.reward import Scores, measure
from rlmix.errors import InputError
from rlmix.ops import rng
from rlmix.ops.calibration import expected_calibration_error
from rlmix.policy.codec import AbstractCodec

Progress: TypeAlias = Callable[[int, int], None]
Split: TypeAlias = Literal["test", "reward"]

# Trainings side by side: on a CPU more of them are not faster, and their test logits stay small.
_SLOTS = 48
# 16 rows of any number of float32 columns are whole lines of a cache.
_ALIGNED = 16
# Test images of so many pixels are classified at once, by each of the trainings side by side.
_PIXELS = 2**20
# Logits of so many classes and images are measured at once.
_LOGITS = 2**23


@final
@dataclass(frozen=True, slots=True)
class Job:
    """One training that has to be run.

    Attributes:
        instance: the training problem.
        replicate: number of the repetition.
        agent: name of the agent.
        key: episode key, in [0, 2**63).
    """

    instance: Instance
    replicate: int
    agent: str
    key: int


def episode_key(seed: int, instance: Instance, replicate: int) -> int:
    """Return the key of all random numbers of a training, the same whoever the agent is."""
    return rng.derive(seed, rng.words(instance.id), replicate)


def blocks(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Yield the jobs in blocks of one kind of training each, whoever the agent is, so that they run side by side."""
    buckets: dict[Bucket, list[Job]] = {}
    for job in jobs:
        buckets.setdefault(job.instance.bucket, []).append(job)
    for bucket in buckets.values():
        for start in range(0, len(bucket), _SLOTS):
            yield bucket[start : start + _SLOTS]


def run_block(
    agents: Mapping[str, AbstractAgent],
    block: Sequence[Job],
    pool: Pool,
    *,
    heldout: HeldOut,
    split: Split = "test",
) -> list[Run]:
    """Train a block's classifiers side by side and measure them; return one run for each job.

    Args:
        agents: agents by name, at least those of the jobs.
        block: jobs of one kind of training, as `blocks` gives them.
        pool: where they train.
        heldout: the test images.
        split: what is measured on, as in `rlmix.agents.evaluate`.

    Raises:
        DataError: an instance's images are not there.
    """
    pool, places, actions = _train(agents, block, pool)
    # On val-R calibration errors are not measured.
    unmeasured: list[float | None] = [None] * len(pool.slots)
    scores, errors = (pool.scores(), unmeasured) if split == "reward" else _test_scores(pool, heldout)
    own = Scores(*(part[places] for part in scores))
    return _runs(block, pool.codec, actions, own, [errors[place] for place in places])


def _train(agents: Mapping[str, AbstractAgent], block: Sequence[Job], pool: Pool) -> tuple[Pool, list[int], Tensor]:
    """Train the block's classifiers to the end.

    Agents that choose alike train the same classifier, since all its random numbers follow from the key; so it is
    trained once for all of them, and forked where their choices part.

    Returns:
        The pool at the end; the slot of each job, N; and what was chosen, [N, H, *shape]: of a catalogue int64 [N, H].
    """
    rows = {
        name: torch.tensor([row for row, job in enumerate(block) if job.agent == name])
        for name in dict.fromkeys(job.agent for job in block)
    }
    places, firsts = _parted([(job.instance, job.key) for job in block])
    observations = pool.begin([block[row].instance for row in firsts], [block[row].key for row in firsts])
    observations = observations.cpu()[places]
    trace, done = [], False
    while not done:
        kind = torch.int64 if pool.codec.whole else torch.float32
        actions = torch.zeros(len(block), *pool.codec.shape, dtype=kind)
        for name, own in rows.items():
            chosen = agents[name].act(observations[own])
            if chosen.shape[1:] != actions.shape[1:]:
                raise InputError(
                    f"the agent `{name}` gives actions of shape {list(chosen.shape)}, which are no {pool.codec.kind} "
                    f"ones. Evaluate it with what its actions mean: catalogue=policy.actions."
                )
            actions[own] = chosen
        before = places
        places, firsts = _parted(
            [(place, repr(action)) for place, action in zip(before, actions.tolist(), strict=True)]
        )
        if len(firsts) > len(pool.slots):
            pool = pool.fork([before[row] for row in firsts])
        observations, rewards, done, _ = pool.step(actions[firsts])
        observations, rewards = observations.cpu()[places], rewards.cpu()[places]
        for name, own in rows.items():
            agents[name].observe(
                Feedback(actions=actions[own], observations=observations[own], rewards=rewards[own], done=done)
            )
        trace.append(actions)
    return pool, places, torch.stack(trace, dim=1)


def _parted(marks: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Return of each mark the place among the different ones, in the order in which they come, and each one's row."""
    firsts: dict[Hashable, int] = {}
    for row, mark in enumerate(marks):
        firsts.setdefault(mark, row)
    places = {mark: place for place, mark in enumerate(firsts)}
    return [places[mark] for mark in marks], list(firsts.values())


def _test_scores(pool: Pool, heldout: HeldOut) -> tuple[Scores, list[float | None]]:
    """Measure the pool's classifiers, each on its instance's test images; return scores and calibration errors."""
    tests = {slot.instance: heldout.of(slot.instance) for slot in pool.slots}
    images, labels = zip(*(tests[slot.instance] for slot in pool.slots), strict=True)
    counts = [len(part) for part in labels]
    logits = _logits(pool, images, max(counts))
    found: list[tuple[list[int], list[Tensor]]] = []
    for rows in _groups(counts, logits.shape[-1]):
        own = logits[rows, : counts[rows[0]]]
        truth = torch.stack([labels[row] for row in rows]).to(logits.device)
        error = expected_calibration_error(own.softmax(-1), truth)
        # A classifier that is not finite knows nothing: as sure of each class as of every other, and never right.
        error = torch.where(torch.isfinite(own).flatten(1).all(1), error, 1.0 / own.shape[-1])
        found.append((rows, [*measure(own, truth), error]))
    order = torch.argsort(torch.tensor([row for rows, _ in found for row in rows]))
    *scores, errors = (torch.cat([parts[place] for _, parts in found])[order.to(logits.device)] for place in range(4))
    return Scores(*scores), errors.tolist()


def _groups(counts: Sequence[int], classes: int) -> Iterator[list[int]]:
    """Yield the rows in groups of equally many images, small enough that what is computed of them fits in memory."""
    for count in dict.fromkeys(counts):
        rows = [row for row, own in enumerate(counts) if own == count]
        size = max(1, _LOGITS // (count * classes))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def _logits(pool: Pool, images: Sequence[Tensor], count: int) -> Tensor:
    """Return the logits of each slot's own images, float32 [N, count, C]; shorter parts are begun again.

    Every classifier's rows begin at the same alignment in memory, which the last bits of a product depend on, and are
    taken in portions that do not depend on how many slots there are.
    """
    pixels = images[0][0].numel()
    portion = max(_ALIGNED, _PIXELS // pixels // _ALIGNED * _ALIGNED)
    parts = []
    for start in range(0, count, portion):
        size = min(portion, count - start)
        places = torch.arange(start, start + size + -size % _ALIGNED)
        parts.append(pool.predict([part[places % len(part)] for part in images])[:, :size])
    return torch.cat(parts, dim=1)


def _runs(
    block: Sequence[Job], codec: AbstractCodec, actions: Tensor, scores: Scores, errors: Sequence[float | None]
) -> list[Run]:
    totals, accuracies, likelihoods = (part.tolist() for part in scores)
    return [
        Run(
            instance=job.instance.id,
            agent=job.agent,
            replicate=job.replicate,
            total_steps=job.instance.total_steps,
            epochs=job.instance.total_steps * job.instance.batch_size / job.instance.train_size,
            accuracy=accuracies[row],
            score=totals[row],
            ts_nll=likelihoods[row],
            ece=errors[row],
            # Without spaces, which stand between actions in a file of runs.
            actions=tuple(codec.text(action).replace(" ", "") for action in actions[row].tolist()),
        )
        for row, job in enumerate(block)
    ]
