"""Paired evaluation: every agent trains the same classifiers, from the same weights, on the same batches.

For each pair of an instance and a replicate all agents get one episode key, so that their runs differ only in what is
mixed. What counts is the accuracy on test images, which no environment can reach.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from rlmix.agents.agent import AbstractAgent, Feedback
from rlmix.agents.report import Report, Run
from rlmix.envs.heldout import test_split
from rlmix.envs.instances import Bucket, Instance, InstanceSet
from rlmix.envs.pool import Pool
from rlmix.envs.reward import Scores, measure
from rlmix.errors import InputError
from rlmix.ops import rng
from rlmix.policy.codec import Catalogue

Progress: TypeAlias = Callable[[int, int], None]
Split: TypeAlias = Literal["test", "reward"]

# Trainings side by side: on a CPU more of them are not faster, and their test logits stay small.
_SLOTS = 48
# 16 rows of any number of float32 columns are whole lines of a cache.
_ALIGNED = 16


@final
@dataclass(frozen=True, slots=True)
class _Job:
    """One training that has to be run."""

    instance: Instance
    replicate: int
    agent: str
    key: int


def evaluate(
    agents: Mapping[str, AbstractAgent],
    instances: InstanceSet,
    *,
    catalogue: Catalogue,
    replicates: int = 1,
    seed: int = 0,
    split: Split = "test",
    with_validation: bool = True,
    data_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Report:
    """Train each instance `replicates` times under each agent and measure the classifiers at the end.

    Args:
        agents: agents by name; their actions are entries of `catalogue`.
        instances: the training problems.
        catalogue: what the agents choose from.
        replicates: trainings of one instance by one agent, with different weights and batches.
        seed: episode keys are derived from it; same seed, same report.
        split: what is measured on: "test" for results; "reward", each instance's own held-out training images, for
            choosing between agents, so that test images decide nothing.
        with_validation: whether agents see statistics of the instances' validation split.
        data_dir: folder of data sets that have to lie on disk.
        device: where the classifiers train.
        progress: called with the number of finished trainings and that of all.

    Raises:
        InputError: there is no agent, or `replicates` is below 1.
        DataError: an instance's images are not there.
    """
    if not agents or replicates < 1:
        raise InputError(
            f"An evaluation needs agents and `replicates` of at least 1, got {len(agents)} agents and {replicates}."
        )
    jobs = [
        _Job(instance, replicate, agent, rng.derive(seed, rng.words(instance.id), replicate))
        for instance in instances.instances
        for replicate in range(replicates)
        for agent in agents
    ]
    pool = Pool(
        instances,
        seeds=[0],
        catalogue=catalogue,
        reward=None,
        masks=False,
        with_validation=with_validation,
        data_dir=data_dir,
        device=device,
    )
    finished: dict[_Job, Run] = {}
    tests: dict[str, tuple[Tensor, Tensor]] = {}
    for block in _blocks(jobs):
        actions = _train(agents, block, pool)
        scores = pool.scores() if split == "reward" else _test_scores(pool, block[0].instance, data_dir, tests)
        finished.update(zip(block, _runs(block, catalogue, actions, scores), strict=True))
        if progress is not None:
            progress(len(finished), len(jobs))
    return Report(
        instances=instances.name,
        digest=instances.digest,
        seed=seed,
        split=split,
        with_validation=with_validation,
        runs=tuple(finished[job] for job in jobs),
    )


def _blocks(jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
    """Yield the jobs in blocks of one kind of training each, whoever the agent is, so that they run side by side."""
    buckets: dict[Bucket, list[_Job]] = {}
    for job in jobs:
        buckets.setdefault(job.instance.bucket, []).append(job)
    for bucket in buckets.values():
        for start in range(0, len(bucket), _SLOTS):
            yield bucket[start : start + _SLOTS]


def _train(agents: Mapping[str, AbstractAgent], block: Sequence[_Job], pool: Pool) -> Tensor:
    """Train the block's classifiers to the end; return what was chosen, int64 [N, H]."""
    rows = {
        name: torch.tensor([row for row, job in enumerate(block) if job.agent == name])
        for name in dict.fromkeys(job.agent for job in block)
    }
    observations = pool.begin([job.instance for job in block], [job.key for job in block]).cpu()
    trace, done = [], False
    while not done:
        actions = torch.zeros(len(block), dtype=torch.int64)
        for name, own in rows.items():
            actions[own] = agents[name].act(observations[own])
        observations, rewards, done, _ = pool.step(actions)
        observations, rewards = observations.cpu(), rewards.cpu()
        for name, own in rows.items():
            agents[name].observe(
                Feedback(actions=actions[own], observations=observations[own], rewards=rewards[own], done=done)
            )
        trace.append(actions)
    return torch.stack(trace, dim=1)


def _test_scores(
    pool: Pool,
    instance: Instance,
    data_dir: str | os.PathLike[str] | None,
    tests: dict[str, tuple[Tensor, Tensor]],
) -> Scores:
    """Measure the pool's classifiers on the test images of their common data set; `tests` keeps what was loaded."""
    if instance.data not in tests:
        tests[instance.data] = test_split(instance, data_dir)
    images, labels = tests[instance.data]
    # Every classifier's rows then begin at the same alignment in memory, which the last bits of a product depend on.
    count = len(images)
    padded = torch.arange(count + -count % _ALIGNED) % count
    logits = pool.predict(images[padded])[:, :count]
    return measure(logits, labels.to(logits.device))


def _runs(block: Sequence[_Job], catalogue: Catalogue, actions: Tensor, scores: Scores) -> list[Run]:
    accuracies, totals = scores.accuracy.tolist(), scores.score.tolist()
    return [
        Run(
            instance=job.instance.id,
            agent=job.agent,
            replicate=job.replicate,
            total_steps=job.instance.total_steps,
            epochs=job.instance.total_steps * job.instance.batch_size / job.instance.train_size,
            accuracy=accuracies[row],
            score=totals[row],
            actions=tuple(catalogue.names[entry] for entry in actions[row].tolist()),
        )
        for row, job in enumerate(block)
    ]
