"""What choosing the mix can gain on a set of instances, and how much of it can be known before a training begins.

Both are answered from reference tables, without an agent: by the unbiased oracle, which knows other trainings of the
very instance, and by a selector, which is fitted to the table of training instances and knows of a new one only what a
user would know, or what a policy sees in the first decisions of a training. An agent that stays below the selector has
not learned what could be read off; one that passes the oracle must have gained by something that no single entry gives.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.ensemble import ExtraTreesRegressor
from torch import Tensor

from rlmix.agents.callbacks import Ranges
from rlmix.agents.head_start import rollouts
from rlmix.agents.jobs import Progress
from rlmix.agents.statistics import Interval, stratified_bootstrap
from rlmix.envs.block import Library
from rlmix.envs.instances import Instance, InstanceSet
from rlmix.envs.processes import ProcessPool
from rlmix.envs.reference import Table
from rlmix.envs.reward import uniform_entry
from rlmix.envs.shell import open_pool
from rlmix.errors import InputError
from rlmix.policy.codec import Catalogue

Floats = npt.NDArray[np.float64]

BEST_FIXED, ORACLE, SELECTOR, INFORMED = "best fixed", "unbiased oracle", "selector", "selector, label noise known"
# Forests need little care; leaves of three keep single noisy trainings from deciding.
_TREES, _LEAF = 500, 3
# Trainings side by side that are watched.
_SLOTS = 64


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How well one way to choose an entry does.

    Attributes:
        name: of the way.
        accuracy: mean accuracy on val-R.
        to_uniform: mean difference to uniform random mixing, with its interval over instances.
        entries: how often each entry of the catalogue is chosen.
    """

    name: str
    accuracy: float
    to_uniform: Interval
    entries: tuple[int, ...]


def headroom(
    known: Table,
    known_instances: InstanceSet,
    judged: Table,
    judged_instances: InstanceSet,
    library: Library,
    *,
    seed: int = 0,
    watched: tuple[Tensor, Tensor] | None = None,
) -> tuple[Choice, ...]:
    """Return how well the best fixed entry, the unbiased oracle and selectors do on instances.

    Selectors are extremely randomised trees (Geurts, Ernst, Wehenkel 2006, https://doi.org/10.1007/s10994-006-6226-1)
    on what is known before a training; the second also knows what nobody would tell it, the noise of labels and inputs
    and the imbalance. Those that watch see a policy's observations: the first one, and that of their decision. They are
    judged as if they had chosen at the beginning, so they say what watching tells, not what is left to be gained by it.

    Args:
        known: scores of the training instances, which the best fixed entry is chosen on and selectors are fitted to.
        known_instances: these instances.
        judged: scores of the instances to judge on.
        judged_instances: these instances.
        library: of the catalogue.
        seed: of the forests.
        watched: what a policy sees in a training of each known and of each judged instance under random choices,
            float32 [n, H, D] each; None leaves these selectors out.

    Raises:
        InputError: tables of different catalogues, or observations of other instances than theirs.
    """
    if known.entries != judged.entries:
        raise InputError(f"the tables have different entries: {list(known.entries)} and {list(judged.entries)}.")
    scores, accuracies = judged.scores.numpy(), judged.accuracies.numpy()
    fitted = known.scores.mean(2).numpy()
    best = np.full(len(scores), int(fitted.mean(0).argmax()))
    # Of two replicates, one chooses and the other judges.
    others = scores.sum(2, keepdims=True) - scores
    oracle = others.argmax(1)
    chosen = {BEST_FIXED: np.stack([best] * scores.shape[2], 1), ORACLE: oracle}
    told = [
        (name, *(features(part.instances, library, informed=informed) for part in (known_instances, judged_instances)))
        for name, informed in ((SELECTOR, False), (INFORMED, True))
    ]
    for name, learned_from, seen in (*told, *(() if watched is None else _watching(*watched, known, judged))):
        forest = ExtraTreesRegressor(_TREES, min_samples_leaf=_LEAF, random_state=seed)
        forest.fit(learned_from, fitted - fitted.mean(1, keepdims=True))
        chosen[name] = np.stack([forest.predict(seen).argmax(1)] * scores.shape[2], 1)
    uniform = accuracies[:, uniform_entry(library.catalogue)].mean(1)
    return tuple(_judged(name, places, accuracies, uniform) for name, places in chosen.items())


def watch(
    instances: InstanceSet,
    catalogue: Catalogue,
    *,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    processes: int = 1,
    progress: Progress | None = None,
) -> Tensor:
    """Return what a policy that nothing is hidden from sees in a training of each instance under random choices.

    Args:
        instances: n of them.
        catalogue: what is chosen from.
        seed: of the trainings and the choices.
        data_dir: folder of data sets that have to lie on disk.
        device: where classifiers train.
        processes: how many the trainings are divided among; the result is the same for any number.
        progress: called with the trainings done and those to do.

    Returns:
        float32 [n, H, D], before each decision.

    Raises:
        DataError: images are missing.
    """
    count = min(_SLOTS, len(instances))
    shared: dict[str, Any] = {"data_dir": data_dir, "device": device, "processes": processes}
    pool = open_pool(count, instances=instances, actions=catalogue, reward=None, masks=False, **shared)
    try:
        ranges = Ranges.empty(len(pool.observation_names))
        observations, _, ids = rollouts(pool, instances, passes=1, seed=seed, ranges=ranges, progress=progress)
    finally:
        if isinstance(pool, ProcessPool):
            pool.close()
    # A last wave is filled with instances that were trained already.
    rows = {name: row for row, name in reversed(list(enumerate(ids)))}
    return observations[[rows[name] for name in instances.ids]]


def features(instances: Sequence[Instance], library: Library, *, informed: bool) -> Floats:
    """Return what a selector is told, float64 [n, F]: facts known before a training, on logarithmic scales.

    Args:
        instances: n of them.
        library: gives classes and parameters.
        informed: whether also what a user would not know: noise of labels, of inputs, and imbalance.
    """
    rows = []
    for one in instances:
        facts = {**library.facts(one), "steps": one.total_steps, "rate": one.learning_rate}
        hidden = [one.noise, one.input_noise, one.imbalance] if informed else []
        rows.append([*np.log(list(facts.values())), *hidden])
    return np.array(rows, dtype=np.float64)


def _watching(learned_from: Tensor, seen: Tensor, known: Table, judged: Table) -> Iterator[tuple[str, Floats, Floats]]:
    """Yield names, and what selectors see: the first observation and that of a decision."""
    for observations, table in ((learned_from, known), (seen, judged)):
        if observations.dim() != 3 or len(observations) != len(table.instances):
            raise InputError(
                f"`watched` must be observations [n, H, D] of {len(table.instances)} instances, got shape "
                f"{list(observations.shape)}."
            )
    horizon = learned_from.shape[1]
    for decision in sorted({0, 1, 2, horizon // 2} & set(range(horizon))):
        own, other = (torch.cat([part[:, 0], part[:, decision]], 1).double().numpy() for part in (learned_from, seen))
        yield f"{SELECTOR}, {decision} of {horizon} watched", own, other


def _judged(name: str, places: npt.NDArray[np.int64], accuracies: Floats, uniform: Floats) -> Choice:
    """Return a way's results; `places` are the chosen entries, [n, replicates]."""
    own = np.take_along_axis(accuracies, places[:, None, :], axis=1)[:, 0].mean(1)
    return Choice(
        name=name,
        accuracy=float(own.mean()),
        to_uniform=stratified_bootstrap(own - uniform, np.zeros(len(own))),
        entries=tuple(np.bincount(places[:, 0], minlength=accuracies.shape[1]).tolist()),
    )
