"""A learned policy beside everything that it must beat, on instances that it has not seen."""

from __future__ import annotations

import os
from collections.abc import Collection

import torch

from rlmix.agents.agent import AbstractAgent, EncodedAgent, LearnedAgent
from rlmix.agents.baselines.fixed import FixedAgent
from rlmix.agents.evaluate import evaluate
from rlmix.agents.jobs import Progress
from rlmix.agents.report import Report, best_fixed, best_fixed_per_budget, best_in_other_replicates
from rlmix.envs.instances import InstanceSet
from rlmix.errors import ConfigError
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.codec import Catalogue
from rlmix.policy.signals import names

LEARNED = "learned"
BEST_FIXED = "best-fixed"
BEST_PER_BUDGET = "best-fixed-per-budget"
ORACLE = "oracle"
ORACLE_OF_ONE = "oracle-of-one"


def compare(
    policy: LearnedPolicy,
    heldout: InstanceSet,
    validation: InstanceSet,
    *,
    catalogue: Catalogue | None = None,
    replicates: int = 1,
    seed: int = 0,
    with_validation: bool = True,
    data_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    processes: int = 1,
    progress: Progress | None = None,
) -> Report:
    """Evaluate a policy, every fixed agent of a catalogue, and the best fixed ones.

    The best fixed agents are chosen on the validation instances, measured on held-out training images; their runs on
    the held-out instances are those of the fixed agents that they stand for.

    Args:
        policy: the policy.
        heldout: instances to compare on.
        validation: instances to choose the best fixed agents on.
        catalogue: what the fixed agents choose from; None takes the policy's, in which parameters that its actions set
            are in the middle of their ranges.
        replicates: trainings of each held-out instance by each agent.
        seed: episode keys are derived from it.
        with_validation: whether the policy sees statistics of the instances' validation split.
        data_dir: folder of data sets that have to lie on disk.
        device: where the classifiers train.
        processes: how many the trainings are divided among.
        progress: called with the number of finished trainings and that of all.

    Raises:
        ConfigError: the instances have another number of decisions than the policy.
        DataError: images are missing.
        InputError: `replicates` is below 1.
        UnknownNameError: an entry of `catalogue` that no action of the policy means.
    """
    if policy.horizon != heldout.horizon:
        raise ConfigError(
            f"The policy decides {policy.horizon} times in a training, the instances of `{heldout.name}` have "
            f"{heldout.horizon} decisions. Evaluate it on a recipe with `horizon: {policy.horizon}`."
        )
    catalogue, codec = policy.catalogue if catalogue is None else catalogue, policy.actions
    fixed: dict[str, AbstractAgent] = {name: FixedAgent(name, catalogue) for name in catalogue.names}
    # Side by side with the policy, they must act as it does.
    beside = {name: EncodedAgent(agent, catalogue, codec) for name, agent in fixed.items()}
    chosen = len(fixed) * len(validation)
    total = chosen + (len(fixed) + 1) * len(heldout) * replicates

    def count_from(before: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(before + done, total)

    selection = evaluate(
        fixed,
        validation,
        catalogue=catalogue,
        seed=seed,
        split="reward",
        data_dir=data_dir,
        device=device,
        processes=processes,
        progress=count_from(0),
    )
    report = evaluate(
        {LEARNED: LearnedAgent(policy, names(codec.catalogue)), **beside},
        heldout,
        catalogue=codec,
        replicates=replicates,
        seed=seed,
        with_validation=with_validation,
        data_dir=data_dir,
        device=device,
        processes=processes,
        progress=count_from(chosen),
    )
    return with_best_fixed(report, selection, catalogue.names)


def with_best_fixed(
    report: Report,
    selection: Report,
    entries: Collection[str],
    *,
    single: str = BEST_FIXED,
    per_budget: str = BEST_PER_BUDGET,
) -> Report:
    """Return `report` with the fixed agents that `selection` would have chosen, overall and for each budget.

    Args:
        report: has a run of every fixed agent.
        selection: an evaluation of the fixed agents on validation instances.
        entries: names of the fixed agents.
        single: what the best one overall is called.
        per_budget: what the best one of each budget is called.

    Raises:
        InputError: none of `entries` was evaluated.
    """
    best, lookup = best_fixed(selection, entries), best_fixed_per_budget(selection, entries)
    report = report.copied(single, lambda run: best)
    return report.copied(per_budget, lambda run: lookup.entry(steps=run.total_steps, epochs=run.epochs))


def with_oracle(report: Report, entries: Collection[str]) -> Report:
    """Return `report` with the unbiased oracles: for each instance the fixed agent that was best in other replicates.

    `ORACLE` has seen all of them: it is the best that choosing one entry for each instance can give, known from
    trainings of that very instance. `ORACLE_OF_ONE` has seen one, as if each entry had been tried once before. The
    naive oracle, which takes the best of the runs that it is judged by, also profits from their luck: with twelve
    entries of equal worth it would seem 1.6 standard deviations of a run better than any of them.

    Args:
        report: has a run of every fixed agent, in two replicates or more.
        entries: names of the fixed agents.

    Raises:
        InputError: none of `entries` was evaluated, or there is one replicate only.
    """
    best, tried = best_in_other_replicates(report, entries), best_in_other_replicates(report, entries, seen=1)
    report = report.copied(ORACLE, lambda run: best[run.instance, run.replicate])
    return report.copied(ORACLE_OF_ONE, lambda run: tried[run.instance, run.replicate])
