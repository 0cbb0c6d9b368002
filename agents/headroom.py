"""What choosing the mix can gain on a set of instances, and how much of it can be known before a training begins.

Both are answered from reference tables, without an agent: by the unbiased oracle, which knows other trainings of the
very instance, and by a selector, which is fitted to the table of training instances and knows of a new one only what a
user would know. An agent that stays below the selector has not learned what could be read off; one that passes the
oracle must have gained by something that no single entry gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import ExtraTreesRegressor

from rlmix.agents.statistics import Interval, stratified_bootstrap
from rlmix.envs.block import Library
from rlmix.envs.instances import Instance, InstanceSet
from rlmix.envs.reference import Table
from rlmix.envs.reward import uniform_entry
from rlmix.errors import InputError

Floats = npt.NDArray[np.float64]

BEST_FIXED, ORACLE, SELECTOR, INFORMED = "best fixed", "unbiased oracle", "selector", "selector, label noise known"
# Forests need little care; leaves of three keep single noisy trainings from deciding.
_TREES, _LEAF = 500, 3


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
) -> tuple[Choice, ...]:
    """Return how well the best fixed entry, the unbiased oracle and two selectors do on instances.

    Selectors are extremely randomised trees (Geurts, Ernst, Wehenkel 2006, https://doi.org/10.1007/s10994-006-6226-1)
    on what is known before a training; the second also knows what nobody would tell it, the noise of labels and inputs
    and the imbalance.

    Args:
        known: scores of the training instances, which the best fixed entry is chosen on and selectors are fitted to.
        known_instances: these instances.
        judged: scores of the instances to judge on.
        judged_instances: these instances.
        library: of the catalogue.
        seed: of the forests.

    Raises:
        InputError: tables of different catalogues.
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
    for name, informed in ((SELECTOR, False), (INFORMED, True)):
        forest = ExtraTreesRegressor(_TREES, min_samples_leaf=_LEAF, random_state=seed)
        forest.fit(
            features(known_instances.instances, library, informed=informed),
            fitted - fitted.mean(1, keepdims=True),
        )
        found = forest.predict(features(judged_instances.instances, library, informed=informed)).argmax(1)
        chosen[name] = np.stack([found] * scores.shape[2], 1)
    uniform = accuracies[:, uniform_entry(library.catalogue)].mean(1)
    return tuple(_judged(name, places, accuracies, uniform) for name, places in chosen.items())


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


def _judged(name: str, places: npt.NDArray[np.int64], accuracies: Floats, uniform: Floats) -> Choice:
    """Return a way's results; `places` are the chosen entries, [n, replicates]."""
    own = np.take_along_axis(accuracies, places[:, None, :], axis=1)[:, 0].mean(1)
    return Choice(
        name=name,
        accuracy=float(own.mean()),
        to_uniform=stratified_bootstrap(own - uniform, np.zeros(len(own))),
        entries=tuple(np.bincount(places[:, 0], minlength=accuracies.shape[1]).tolist()),
    )
