"""Paired evaluation: every agent trains the same classifiers, from the same weights, on the same batches.

For each pair of an instance and a replicate all agents get one episode key, so that their runs differ only in what is
mixed. What counts is the accuracy on test images, which no environment can reach.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from rlmix.agents.agent import AbstractAgent
from rlmix.agents.jobs import Job, Progress, Split, blocks, episode_key
from rlmix.agents.report import Report, Run
from rlmix.agents.runner import Block, Runner, Venue
from rlmix.envs.instances import InstanceSet
from rlmix.errors import InputError
from rlmix.policy.codec import AbstractCodec, Catalogue, codec_of


def evaluate(
    agents: Mapping[str, AbstractAgent],
    instances: InstanceSet,
    *,
    catalogue: Catalogue | AbstractCodec,
    replicates: int = 1,
    seed: int = 0,
    split: Split = "test",
    with_validation: bool = True,
    data_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    processes: int = 1,
    progress: Progress | None = None,
) -> Report:
    """Train each instance `replicates` times under each agent and measure the classifiers at the end.

    Args:
        agents: agents by name; their actions are entries of `catalogue`, or what it reads if it is a codec.
        instances: the training problems.
        catalogue: what the agents choose from: a catalogue, or another codec.
        replicates: trainings of one instance by one agent, with different weights and batches.
        seed: episode keys are derived from it; same seed, same report.
        split: what is measured on: "test" for results; "reward", each instance's own held-out training images, for
            choosing between agents, so that test images decide nothing.
        with_validation: whether agents see statistics of the instances' validation split.
        data_dir: folder of data sets that have to lie on disk.
        device: where the classifiers train.
        processes: how many the trainings are divided among; an agent that learns while it acts begins every block as
            it was given then.
        progress: called with the number of finished trainings and that of all.

    Raises:
        InputError: there is no agent, or `replicates` or `processes` is below 1.
        DataError: an instance's images are not there.
    """
    if not agents or replicates < 1:
        raise InputError(
            f"An evaluation needs agents and `replicates` of at least 1, got {len(agents)} agents and {replicates}."
        )
    jobs = [
        Job(instance, replicate, agent, episode_key(seed, instance, replicate))
        for instance in instances.instances
        for replicate in range(replicates)
        for agent in agents
    ]
    venue = Venue(
        horizon=instances.horizon,
        codec=codec_of(catalogue),
        with_validation=with_validation,
        data_dir=None if data_dir is None else os.fspath(data_dir),
        device=str(device),
    )
    together = list(blocks(jobs))
    finished: dict[Job, Run] = {}
    with Runner(processes) as runner:
        given = (Block(venue=venue, agents=agents, jobs=block, split=split) for block in together)
        for block, runs in zip(together, runner.run(given), strict=True):
            finished.update(zip(block, runs, strict=True))
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
